"""Writes docs/benchmarks.md from the JSON files: `python -m benchmarks.render`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, markdown

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Every table is written by a command of `benchmarks/`, which also leaves a JSON file with machine,
versions and date in `benchmarks/results/`; `python -m benchmarks.render` makes this page from
them. The machines are small and shared: compare the rows of one table with each other, and do not
quote seconds across tables.

**No GPU figures yet**: nothing here has been run on CUDA.
"""

WHAT = {
    "quality": """## Quality

`python -m benchmarks.quality` asks the shipped model the paper's retrieval questions (10 or 30
students, one of whom has a GPA in a range), greedily, in parallel and sequentially in turn. A
final answer can be right by luck and hide a leak between branches, so every branch is judged as
well: *values right* is the share of students whose own GPA was copied into their branch, *verdicts
right* the share judged right. *Steps complete*: all students, in order, none invented. Medians over
the questions for passes, tokens and seconds; seconds include prefill.""",
    "drafts": """## Drafts

`python -m benchmarks.drafts` answers the same questions with and without drafts, in turn, and
checks that the texts are equal.""",
    "grammar": """## Grammar

`python -m benchmarks.grammar`: compiling the skeleton's grammar for 150,000 random tokens, and one
mask at each place of a skeleton.""",
}


def main() -> None:
    """Render all results that are there."""
    parts = [HEAD]
    for name, text in WHAT.items():
        path = RESULTS / f"{name}.json"
        if path.is_file():
            parts.append(f"{text}\n\n{section(json.loads(path.read_text()))}\n")
    PAGE.write_text("\n".join(parts))
    print(f"written to {PAGE}")


def section(result: dict[str, Any]) -> str:
    """Table, and the machine below it."""
    machine = result["machine"]
    where = ", ".join(
        [
            machine.get("gpu") or machine["processor"],
            f"{machine['cores']} cores",
            f"torch {machine['torch']}",
            f"transformers {machine['transformers']}",
            machine["date"],
        ]
    )
    return f"{markdown(result['rows'])}\n\n<small>{where}</small>"


if __name__ == "__main__":
    main()
