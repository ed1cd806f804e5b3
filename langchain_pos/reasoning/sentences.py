"""What the branches of a list say twice."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SENTENCE = re.compile(r"(?:\S+\s+){3}\S|[\u3040-\u9fff]{8}")
"""Four words, or eight characters of a script without spaces. Shorter ones, such as "Not in the
range.", are answers that many questions have."""


def sentences(text: str) -> list[str]:
    """The sentences of a text without marks of lists, but for very short ones."""
    parts = re.split(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+", text)
    return [part.strip(" -*") for part in parts if _SENTENCE.search(part)]


def go_in_circles(texts: Sequence[str]) -> bool:
    """Whether most of these texts mostly say what those before them have said.

    One sentence may stand in all of them: that a candidate is too young is said of several. Of some
    sixty lists that models of 135M to 1.5B wrote for everyday questions, the two that ran on to 64
    entries go in circles, with 12 of the first 20 and 67 of 68; the others have at most one such
    entry in four.
    """
    said: set[str] = set()
    nothing_new = 0
    for text in texts:
        own = sentences(text)
        again = sum(sentence in said for sentence in own)
        nothing_new += again > 1 and 2 * again > len(own)
        said.update(own)
    return 2 * nothing_new > len(texts)
