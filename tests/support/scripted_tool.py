"""`ParallelSubtasksTool` over a scripted model, its subtasks, and what it makes of them."""

from __future__ import annotations

from typing import Any

from langchain_pos import ParallelSubtasksTool
from tests.support.scripted import Script, scripted_llm

RULES = {"####Ann:": " GPA 3.1", "####Ben:": " GPA 2.4"}
SUBTASKS = [
    {"title": "Ann", "prompt": "Read Ann's GPA."},
    {"title": "Ben", "prompt": "Read Ben's GPA."},
]
ARGS = {"subtasks": SUBTASKS, "context": "Two resumes."}
CONTENT = "## Ann\nGPA 3.1\n\n## Ben\nGPA 2.4"


def the_tool(rules: dict[str, Any] = RULES, **fields: Any) -> tuple[ParallelSubtasksTool, Script]:
    """The tool over a scripted model."""
    llm, script = scripted_llm(rules, **fields)
    return ParallelSubtasksTool(llm=llm), script
