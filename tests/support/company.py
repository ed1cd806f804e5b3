"""Questions that are asked alone and in company, and whether that made a difference."""

from __future__ import annotations

from langchain_pos import ReasoningResult
from tests.support.scripted import without_clocks

QUESTIONS = [
    "Which of them?",
    "哪一个？",
    "Who, and why not the other one of the two?",
    "What now?",
]


def same(one: ReasoningResult, other: ReasoningResult) -> bool:
    """Whether two results agree in all but clocks and what shared passes leave for drafts."""
    left, right = without_clocks(one), without_clocks(other)
    for shared in ("forward_passes", "drafts", "peak_slots"):
        del left[shared], right[shared]
    return left == right
