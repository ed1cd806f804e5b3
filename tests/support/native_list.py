"""A scripted model that answers "Who?" with a list, in whichever way it is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from langchain_pos import ParallelReasoningLLM
from langchain_pos.reasoning.native_form import NATIVE as NATIVE_FORM
from langchain_pos.reasoning.native_form import NativeSkeleton
from langchain_pos.reasoning.settings import ReasoningSettings
from tests.support.scripted import Script, scripted_llm

ASKED = "Who?\n\nAnswer:\n"
LIST: dict[str, str | list[str]] = {
    ASKED: "Some of them:\n\n1. **Ann**:",
    "1. **Ann**:": " is tall\n   - and old.\n\n2. **Ben**:",
    "2. **Ben**:": " is small.\n\nThat is all.",
    "1. **Ann**: ...\n\n": "2. **Ben**: ...\n\nT",
    "is small.": "\n\nThat is all.",
}
"""A model that writes a list of two and a sentence after it, in whichever way it is asked."""
GOES_ON: dict[str, str | list[str]] = {
    **LIST,
    "2. **Ben**:": " is small.\n\n3. **Cem**:",
    "is small.": "\n\n3. **Cem**:",
    "3. **Cem**: ...\n\n": "4. **Dan**: ...\n\nT",
    "3. **Cem**:": " is quick.\n\n4. **Dan**:",
    "4. **Dan**:": " is slow.\n\nThat is all.",
    "is slow.": "\n\nThat is all.",
}
"""A list that ends after two entries where its bodies are left out, and after four with them."""


def tight(rules: Mapping[str, str | list[str]]) -> dict[str, str | list[str]]:
    """The same list right under its lead-in, and without empty lines."""
    return {cue: re.sub(r"\n\n(?=\d\.)", "\n", str(text)) for cue, text in rules.items()}


TIGHT = tight(GOES_ON)
BULLETS = {
    re.sub(r"\d\. ", "- ", cue): re.sub(r"\d\. ", "- ", str(text)) for cue, text in TIGHT.items()
}
"""The same with bullets."""
EMPTY = {**LIST, "1. **Ann**:": "", "2. **Ben**:": ""}
"""Heads, and nothing under them."""
UNWILLING = {cue: text for cue, text in LIST.items() if "..." not in cue}
"""The same model, which would not leave out a body."""
WRITTEN = (
    "Some of them:\n\n1. **Ann**: is tall\n   - and old.\n\n2. **Ben**: is small.\n\nThat is all."
)
NATIVE: dict[str, Any] = {"outline": "native", "max_pressure": 0.2, "max_sequential_tokens": 120}


def native_llm(
    rules: dict[str, str | list[str]], **fields: Any
) -> tuple[ParallelReasoningLLM, Script]:
    """A runnable that answers in native form, and its script."""
    return scripted_llm(rules, **{**NATIVE, **fields})


def begun(text: str, **settings: Any) -> NativeSkeleton:
    """The skeleton of a list that begins like this."""
    opened = NATIVE_FORM.opened(text)
    assert opened is not None
    return NATIVE_FORM.skeleton(ReasoningSettings(**settings), "", opened)
