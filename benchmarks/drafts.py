"""What drafts save: `python -m benchmarks.drafts`.

The same questions with and without drafts, alternating, on one engine. The texts must be equal;
in half precision, rows that share a pass may round differently, so differences are counted.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import data_folder, report
from langchain_pos import ParallelReasoningLLM


def main(
    model: Annotated[str | None, typer.Option(help="folder or hub name; default: shipped")] = None,
    task: Annotated[list[str] | None, typer.Option(help="file stem in the data folder")] = None,
    rows: Annotated[int, typer.Option(help="questions of each task")] = 20,
    data: Annotated[Path | None, typer.Option(help="folder with the paper's tasks")] = None,
    dtype: str = "auto",
) -> None:
    """Measure and report."""
    folder = data_folder(data)
    # Both ways begin alike, and each shall pay for its own prefill.
    llm = ParallelReasoningLLM(model=model, dtype=dtype, prefix_cache_tokens=0)
    llm.invoke({"question": "warm-up", "steps": ["a", "b"]}, max_branch_tokens=4)
    table = []
    for stem in task or ["retrieval_10", "retrieval_30"]:
        lines = (folder / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        for mode in ("parallel", "sequential"):
            seconds: dict[bool, list[float]] = defaultdict(list)
            passes: dict[bool, list[int]] = defaultdict(list)
            equal = drafted = accepted = 0
            for line in lines:
                texts = []
                for drafts in (False, True):
                    began = time.perf_counter()
                    result = llm.invoke(json.loads(line)["prompt"], mode=mode, drafts=drafts)
                    seconds[drafts].append(time.perf_counter() - began)
                    passes[drafts].append(result.forward_passes.total)
                    texts.append(result.text)
                drafted += result.drafts.drafted
                accepted += result.drafts.accepted
                equal += texts[0] == texts[1]
            table.append(
                {
                    "task": stem,
                    "mode": mode,
                    "questions": len(lines),
                    "equal texts": equal,
                    "passes without": statistics.median(passes[False]),
                    "passes with": statistics.median(passes[True]),
                    "guesses right": f"{accepted / max(drafted, 1):.0%}",
                    "seconds without": round(statistics.median(seconds[False]), 3),
                    "seconds with": round(statistics.median(seconds[True]), 3),
                }
            )
    report(
        "drafts",
        table,
        model=llm.reasoner.model_name,
        engine=llm.engine.describe() | {"model": llm.reasoner.model_name},
    )


if __name__ == "__main__":
    typer.run(main)
