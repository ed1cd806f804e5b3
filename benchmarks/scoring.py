"""Judges answers to the paper's retrieval tasks, branch by branch.

N students, one of whom has a GPA between two bounds. A right final answer may hide a leak between
branches, so every branch is judged as well: did it copy its own student's GPA, and is its verdict
right?
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_pos.results.data import END_MARK
from langchain_pos.results.result import ReasoningResult

_RECORD = re.compile(r"student named (.+?) is \d+ years old.*?GPA of (\d+(?:\.\d+)?)")
_BOUNDS = re.compile(r"GPA between (\d+(?:\.\d+)?) and (\d+(?:\.\d+)?)")
_STEP = re.compile(r"^####(?!%)([^:\n]+):(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NO = re.compile(r"\b(no|not|outside|below|above|n't|does not|isn't)\b", re.IGNORECASE)


def names_it(prompt: str, conclusion: str, gold: str) -> bool:
    """Whether an answer, behind its steps, names the right one, and no other of the prompt's."""
    answer = conclusion.rpartition(END_MARK)[2]
    names = {name for name, _ in _RECORD.findall(prompt)} | {gold}
    named = set()
    for name in sorted(names, key=len, reverse=True):  # "Ann Lee" does not name "Ann"
        answer, count = re.subn(rf"\b{re.escape(name)}\b", "", answer)
        named |= {name} if count else set()
    return named == {gold}


def steps_of(result: ReasoningResult, names: Sequence[str]) -> list[tuple[str, str]]:
    """The steps of an answer, in its order: whom each is about, and what it says.

    A sequential answer is cut into the paper's steps; one in another form is cut wherever it names
    somebody for the first time. A step about nobody in `names` keeps its title.
    """
    if result.mode == "parallel":
        steps = [(branch.title, branch.text) for branch in result.branches]
    else:
        steps = [(title.strip(), body) for title, body in _STEP.findall(result.conclusion)]
    if not steps:
        every = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        _, *pieces = re.split(f"({every})", result.conclusion)
        found: dict[str, str] = {}
        for name, said in zip(pieces[::2], pieces[1::2], strict=True):
            found.setdefault(name, said)
        return list(found.items())
    return [
        (next((n for n in names if re.search(rf"\b{re.escape(n)}\b", title)), title), body)
        for title, body in steps
    ]


def is_retrieval(row: dict[str, Any]) -> bool:
    """Whether a row has the form that `Score` judges."""
    return "gold_keys" in row and bool(_RECORD.search(row["prompt"]))


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
        steps = steps_of(result, list(records))
        bodies = dict(steps)
        values = verdicts = 0
        for name, gpa in records.items():
            body = bodies.get(name, "")
            values += gpa in map(float, _NUMBER.findall(body))
            verdicts += bool(body) and (_NO.search(body) is None) == (low <= gpa <= high)
        verdict = {
            "right": names_it(row["prompt"], result.conclusion or result.text, row["gold_keys"]),
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
