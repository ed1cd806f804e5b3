"""What `join="reuse"` changes: `python -m benchmarks.joins`.

The paper's retrieval questions with either join, alternating, on one engine. The branches are the
same by construction; what differs is what the conclusion makes of them.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import data_folder, report
from benchmarks.scoring import Score
from langchain_pos import ParallelReasoningLLM

JOINS = ("reprefill", "reuse")


def main(
    model: Annotated[str | None, typer.Option(help="folder or hub name; default: shipped")] = None,
    task: Annotated[list[str] | None, typer.Option(help="file stem in the data folder")] = None,
    rows: Annotated[int, typer.Option(help="questions of each task")] = 50,
    data: Annotated[Path | None, typer.Option(help="folder with the paper's tasks")] = None,
    dtype: str = "auto",
) -> None:
    """Measure and report."""
    folder = data_folder(data)
    # Every answer pays for its own prefill.
    llm = ParallelReasoningLLM(model=model, dtype=dtype, prefix_cache_tokens=0)
    llm.invoke({"question": "warm-up", "steps": ["a", "b"]}, max_branch_tokens=4)
    table, details = [], []
    for stem in task or ["retrieval_10", "retrieval_30"]:
        lines = (folder / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        scores = {join: Score() for join in JOINS}
        seconds: dict[str, list[float]] = {join: [] for join in JOINS}
        slots: dict[str, list[int]] = {join: [] for join in JOINS}
        same = 0
        for line in lines:
            row = json.loads(line)
            answers = []
            for join, score in scores.items():
                began = time.perf_counter()
                result = llm.invoke(row["prompt"], join=join)
                verdict = score.add(row, result, time.perf_counter() - began)
                seconds[join].append(result.timings.conclude)
                slots[join].append(result.peak_slots)
                answers.append(result.conclusion)
                details.append({"id": row["id"], "join": join, **verdict})
            same += answers[0] == answers[1]
        for join, score in scores.items():
            whole = score.row(stem, "parallel")
            table.append(
                {
                    "task": stem,
                    "join": join,
                    "questions": len(lines),
                    "answers right": whole["answers right"],
                    "same conclusion": f"{same}/{len(lines)}",
                    "seconds in stage 3": round(statistics.median(seconds[join]), 4),
                    "peak slots": statistics.median(slots[join]),
                }
            )
    report("joins", table, model=llm.reasoner.model_name, runs=details)


if __name__ == "__main__":
    typer.run(main)
