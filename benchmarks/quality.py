"""How good the answers are, in parallel and sequentially: `python -m benchmarks.quality`.

The paper's retrieval tasks: N students, one of whom has a GPA between two bounds. A right final
answer may hide a leak between branches, so every branch is judged as well: did it copy its own
student's GPA, and is its verdict right? With `--outline ask`, the request for a list is answered
sequentially, too.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import data_folder, report, short_name
from benchmarks.scoring import Score
from langchain_pos import ParallelReasoningLLM
from langchain_pos.reasoning.prompts import ENGLISH

_ASKED = "sequential, asked"


def main(
    model: Annotated[str | None, typer.Option(help="folder or hub name; default: shipped")] = None,
    task: Annotated[list[str] | None, typer.Option(help="file stem in the data folder")] = None,
    rows: Annotated[int, typer.Option(help="questions of each task")] = 50,
    data: Annotated[Path | None, typer.Option(help="folder with the paper's tasks")] = None,
    dtype: str = "auto",
    quantization: str | None = None,
    outline: Annotated[str, typer.Option(help="auto, native, ask or paper")] = "auto",
    visibility: Annotated[str, typer.Option(help="auto, isolated, first or titles")] = "auto",
    name: Annotated[str, typer.Option(help="name of the JSON file")] = "quality",
) -> None:
    """Answer the paper's retrieval questions both ways, alternating, greedily."""
    folder = data_folder(data)
    # Both ways begin alike, and each shall pay for its own prefill.
    llm = ParallelReasoningLLM(
        model=model,
        dtype=dtype,
        quantization=quantization,
        outline=outline,
        visibility=visibility,
        prefix_cache_tokens=0,
    )
    name_of_model = short_name(llm.reasoner.model_name if model is None else model)
    llm.invoke({"question": "warm-up", "steps": ["a", "b"]}, max_branch_tokens=4)
    table, details = [], []
    for stem in task or ["retrieval_10", "retrieval_30"]:
        lines = (folder / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        scores = {"parallel": Score(), "sequential": Score()}
        if outline == "ask":  # for the same list, written one entry after the other
            scores[_ASKED] = Score()
        for line in lines:
            row = json.loads(line)
            for mode, score in scores.items():
                prompt = row["prompt"]
                if mode == _ASKED:
                    prompt = ENGLISH.ask.replace("{question}", prompt)
                began = time.perf_counter()
                result = llm.invoke(prompt, mode="parallel" if mode == "parallel" else "sequential")
                verdict = score.add(row, result, time.perf_counter() - began)
                said = {"mode": mode, "answered": result.mode, "text": result.text}
                details.append({"id": row["id"], **said, **verdict})
        table += [score.row(stem, mode) for mode, score in scores.items()]
    report(
        name,
        table,
        model=name_of_model,
        engine=llm.engine.describe() | {"model": name_of_model},
        runs=details,
    )


if __name__ == "__main__":
    typer.run(main)
