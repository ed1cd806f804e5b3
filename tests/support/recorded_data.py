"""A made-up folder in the form of the paper's data, small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

STUDENTS = {"Ann Lee": 3.1, "Ben Ray": 2.4, "Cleo Fox": 4.0}
QUESTION = (
    "\n".join(
        f"The student named {name} is 20 years old, graduated from a school with a GPA of {gpa}."
        for name, gpa in STUDENTS.items()
    )
    + "\n\nQuestion: Which student has a GPA between 2.3 and 2.5?"
)
STEPS = "\n\n".join(f"####{name}: GPA is {gpa}." for name, gpa in STUDENTS.items())
PARALLEL = f"Let us see.\n\n{STEPS}\n####%%%%\n\nname: Ben Ray"
PLANNING = (
    "分析两个方面。\n\n####经济:\n收入增加。\n\n####环境:\n土壤变好。\n####%%%%\n\n综上所述。"
)
KINDS = {
    "logic_gpa_resume_10": (QUESTION, PARALLEL),
    "logic_gpa_resume_30": (QUESTION, PARALLEL),
    "industry_tasks": ("请从两个维度分析有机农业。", PLANNING),
}


def transcript(kind: str, number: int = 0) -> dict[str, object]:
    """A row of `paper_transcripts.jsonl`."""
    prompt, parallel = KINDS[kind]
    return {
        "id": f"Qwen2.5-7B-Instruct/{kind}/{number:03}",
        "prompt": prompt,
        "stage1": None,
        "parallel": parallel,
        "sequential": parallel.replace("\n\n", "\n"),
        "parallel_tokens": 40,
        "sequential_tokens": 40,
    }


def trace(kind: str) -> dict[str, object]:
    """A row of `paper_traces.jsonl`."""
    return {
        "id": f"Qwen2.5-7B-Instruct/{kind}/000",
        "prompt_chars": 200,
        "preamble_tokens": 4,
        "branches": [[2, 3], [1, 5], [3, 2]],
        "conclusion_tokens": 5,
    }


def write(folder: Path) -> Path:
    """Write all files of the folder; returns it."""
    question = {"id": "q-0", "prompt": QUESTION, "gold_keys": "Ben Ray", "gold_values": 2.4}
    files: dict[str, list[dict[str, object]]] = {
        "paper_transcripts": [transcript(kind) for kind in KINDS],
        "paper_traces": [trace(kind) for kind in KINDS],
        "retrieval_10": [question],
        "planning": [{"id": "p-0", "task": KINDS["industry_tasks"][0], "answer": "…"}],
    }
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
