"""What the doctor recommends, by scripted models."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_pos.cli.doctor import LISTS, NO_LISTS, try_out
from tests.support.scripted import scripted_llm

HEADS = {
    "1. **Ann**:": " is tall.\n\n2. **Ben**:",
    "2. **Ben**:": " is small.",
    "1. **Ann**: ...\n\n": "2. **Ben**: ...\n\n",
}


def answers(lists: str, others: str) -> dict[str, Any]:
    """Rules by which questions that suit a list, and the others, are answered."""
    asked = {f"{question}\n\nAnswer:\n": lists for question in LISTS}
    return asked | {f"{question}\n\nAnswer:\n": others for question in NO_LISTS} | HEADS


@pytest.mark.parametrize(
    ("lists", "others", "recommended"),
    [
        ("1. **Ann**:", "No.", "outline='native'"),
        ("No.", "No.", "mode='sequential'"),
        ("1. **Ann**:", "1. **Ann**:", "mode='sequential'"),
    ],
)
def test_the_form_that_the_model_writes_is_recommended(
    lists: str, others: str, recommended: str
) -> None:
    """Lists where they suit and nowhere else: native; otherwise no form of its own."""
    llm, _ = scripted_llm(answers(lists, others), max_pressure=0.2)
    *tried, last = try_out(llm)
    assert recommended in last
    assert len(tried) >= len(LISTS) + len(NO_LISTS)
