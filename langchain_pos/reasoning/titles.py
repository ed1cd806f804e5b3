"""What titles say about their steps: whether these can be written side by side.

Rules on words, read off what models wrote.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from langchain_pos.reasoning.markdown_list import LONGEST_TITLE
from langchain_pos.results.data import STEP_MARK

_EMPTY_TITLE = re.compile(
    r"(?:step|title|point|item|aspect|part|section|步骤|标题|要点)?\s*[\d.…:：-]*", re.IGNORECASE
)
_WORDS = "step|phase|schritt|paso|étape|etape|шаг"
_SEQUENTIAL = re.compile(
    rf"(?:{_WORDS}|stage|day)\s*\d+\b|第[\d一二三四五六七八九十]+[步阶天]"
    r"|(?:introduction|conclusion|summary|example usage|explanation|dear\b)",
    re.IGNORECASE,
)
"""Titles of parts that build on one another, or that are parts of one text."""
_STEP = re.compile(
    rf"(?:{_WORDS})\s*\d+\s*(?:[.:–—-].*)?|第[\d一二三四五六七八九十]+步",
    re.IGNORECASE,
)
"""A 1.5B model that is asked for the paper's form writes "Step 1". Of 4,037 titles in the paper's
runs none is such a one."""
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
NEEDS_ORDER = "its steps build on one another"
_PROCEDURE = re.compile(
    r"\b(?:the|these|those|following)\s+(?:(?!some\b|several\b|few\b|of\b)[\w,-]+\s+){0,3}steps\b"
    r"(?!\s+(?:that\s+)?you\s+(?:can|could|may|might)\s+take)|\bstep[- ]by[- ]step\b"
    r"|\b(?:diese|folgende)n?\s+(?:\w+\s+)?schritte|\bschritt für schritt\b"
    r"|\b(?:les étapes|étapes suivantes|étape par étape)\b"
    r"|\b(?:los pasos|siguientes pasos|estos pasos|paso a paso)\b"
    r"|\b(?:следующие шаги|эти шаги|шаг за шагом|пошагов)|(?<!一些)步[骤驟]",
    re.IGNORECASE,
)
"""Lines that lead in to steps of which each needs the one before. Measured on the first 160 tokens
that Qwen2.5-Coder-0.5B answers to 299 everyday questions: of the lists in answers that a person
judged not to suit parallel writing, 21 of 37 begin so; of those that suit, 5 of 55. "Some steps you
can take" leads in to advice as a rule (1 of 37, 4 of 55)."""


def counts_steps(titles: Sequence[str]) -> bool:
    """Whether titles count the steps of a procedure; of the first two, one that does is enough."""
    return any(_STEP.fullmatch(title) for title in titles[:2])


def fault_of(titles: Sequence[str], before: int = 0) -> str | None:
    """What keeps entries with these titles from being written together.

    Args:
        titles: one after the other.
        before: entries of the same list before them.
    """
    if any(_SEQUENTIAL.match(title) for title in titles[:2]):
        return NEEDS_ORDER
    uncounted = [_without(place, title) for place, title in enumerate(titles, before + 1)]
    for (one, other), (stem, again) in zip(pairwise(titles), pairwise(uncounted), strict=True):
        if stem == again:
            return f"{one!r} and {other!r} only count, so their branches would be the same"
    for title in titles:
        if len(title) > LONGEST_TITLE or _EMPTY_TITLE.fullmatch(title) or STEP_MARK in title:
            return f"{title!r} is not the title of an entry"
    return None


def same(title: str, titles: Sequence[str]) -> bool:
    """Whether a title is one of these, but for marks and capitals."""
    words = _words(title)
    return any(words == _words(other) for other in titles)


def leads_in_to_steps(line: str) -> bool:
    """Whether a line leads in to steps of which each needs the one before."""
    return _PROCEDURE.search(line) is not None


def _without(place: int, title: str) -> str:
    """A title's words without its own place in the list, or the place before that.

    Counting may begin with none, or after an entry such as "Warm-up".
    """
    words = _words(title)
    for number in (place, place - 1):
        forms = [rf"(?<!\d)0*{number}(?:st|nd|rd|th)?(?!\d)"]
        if 0 < number <= len(_ORDINALS):
            forms.append(rf"\b{_ORDINALS[number - 1]}\b")
        words = re.sub("|".join(forms), "", words)
    return words.strip()


def _words(title: str) -> str:
    return " ".join(re.findall(r"\w+|[+#]+", title.casefold()))  # C, C++ and C# differ
