"""How good the answers are, in parallel and sequentially: `python -m benchmarks.quality`.

The paper's retrieval tasks: N students, one of whom has a GPA between two bounds. A right final
answer may hide a leak between branches, so every branch is judged as well: did it copy its own
student's GPA, and is its verdict right?
"""

from __future__ import annotations

import json
import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import data_folder, report
from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.schema import END_MARK

_RECORD = re.compile(r"student named (.+?) is \d+ years old.*?GPA of (\d+(?:\.\d+)?)")
_BOUNDS = re.compile(r"GPA between (\d+(?:\.\d+)?) and (\d+(?:\.\d+)?)")
_STEP = re.compile(r"^####(?!%)([^:\n]+):(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NO = re.compile(r"\b(no|not|outside|below|above|n't|does not|isn't)\b", re.IGNORECASE)


@dataclass
class Score:
    """Counts over all questions of one task and mode."""

    questions: int = 0
    right: int = 0
    complete: int = 0
    parallel: int = 0
    students: int = 0
    values: int = 0
    verdicts: int = 0
    seconds: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, row: dict[str, Any], result: ReasoningResult, seconds: float) -> dict[str, Any]:
        """Judge one result; returns what was found."""
        records = {name: float(gpa) for name, gpa in _RECORD.findall(row["prompt"])}
        low, high = map(float, _BOUNDS.findall(row["prompt"])[0])
        if result.mode == "parallel":
            steps = [(branch.title, branch.text) for branch in result.branches]
        else:
            steps = [(title.strip(), body) for title, body in _STEP.findall(result.conclusion)]
        bodies = dict(steps)
        values = verdicts = 0
        for name, gpa in records.items():
            body = bodies.get(name, "")
            found = _NUMBER.search(body)
            values += found is not None and float(found[0]) == gpa
            verdicts += bool(body) and (_NO.search(body) is None) == (low <= gpa <= high)
        answer = result.conclusion.rpartition(END_MARK)[2]
        named = {name for name in records if re.search(rf"\b{re.escape(name)}\b", answer)}
        verdict = {
            "right": named == {row["gold_keys"]},
            "complete": [title for title, _ in steps] == list(records),
            "values": values,
            "verdicts": verdicts,
        }
        self.questions += 1
        self.right += verdict["right"]
        self.complete += verdict["complete"]
        self.parallel += result.mode == "parallel"
        self.students += len(records)
        self.values += values
        self.verdicts += verdicts
        self.seconds.append(seconds)
        self.passes.append(result.forward_passes.total)
        self.tokens.append(result.usage.output_tokens)
        return verdict

    def row(self, task: str, mode: str) -> dict[str, Any]:
        """One line of the table."""
        return {
            "task": task,
            "mode": mode,
            "questions": self.questions,
            "answers right": f"{self.right / self.questions:.1%}",
            "steps complete": f"{self.complete / self.questions:.1%}",
            "values right": f"{self.values / self.students:.1%}",
            "verdicts right": f"{self.verdicts / self.students:.1%}",
            "answered in this mode": f"{self.parallel if mode == 'parallel' else self.questions}",
            "forward passes": statistics.median(self.passes),
            "tokens written": statistics.median(self.tokens),
            "seconds": round(statistics.median(self.seconds), 3),
        }


def main(
    model: Annotated[str | None, typer.Option(help="folder or hub name; default: shipped")] = None,
    task: Annotated[list[str] | None, typer.Option(help="file stem in the data folder")] = None,
    rows: Annotated[int, typer.Option(help="questions of each task")] = 50,
    data: Annotated[Path | None, typer.Option(help="folder with the paper's tasks")] = None,
    dtype: str = "auto",
    name: Annotated[str, typer.Option(help="name of the JSON file")] = "quality",
) -> None:
    """Answer the paper's retrieval questions both ways, alternating, greedily."""
    folder = data_folder(data)
    llm = ParallelReasoningLLM(model=model, dtype=dtype)
    llm.invoke({"question": "warm-up", "steps": ["a", "b"]}, max_branch_tokens=4)
    table, details = [], []
    for stem in task or ["retrieval_10", "retrieval_30"]:
        lines = (folder / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        scores = {"parallel": Score(), "sequential": Score()}
        for line in lines:
            row = json.loads(line)
            for mode, score in scores.items():
                began = time.perf_counter()
                result = llm.invoke(row["prompt"], mode=mode)
                verdict = score.add(row, result, time.perf_counter() - began)
                details.append({"id": row["id"], "mode": mode, **verdict})
        table += [score.row(stem, mode) for mode, score in scores.items()]
    report(
        name,
        table,
        model=llm.reasoner.model_name,
        engine=llm.engine.describe() | {"model": llm.reasoner.model_name},
        runs=details,
    )


if __name__ == "__main__":
    typer.run(main)
