"""A state, as far as the forest knows it, and how many of them a segment may hold."""

from __future__ import annotations

from typing import Protocol

STRIDE = 512
"""Positions between the states that a segment keeps, so that at most so many tokens are fed again.
A state is as large as the keys and values of a thousand tokens or so."""
MOST = 8
"""States that a segment keeps on the way at most; the stride is doubled then."""
HELD = 3
"""States that a segment holds beside those: after its last token, before its guesses, and the one
that the current pass makes."""

NO_REUSE = (
    'join="reuse" is given, but this model has layers with a running state: each branch has one of '
    'its own, and none of them has read all branches. Allowed is join="reprefill", which feeds the '
    "branches once more"
)
"""Why the branches of such a model cannot be joined where they lie."""


def states_held(tokens: int, segments: int = 1) -> int:
    """States that segments hold at most, with so many tokens in all of them together."""
    return segments * HELD + min(tokens // STRIDE, segments * MOST) if tokens else 0


class State(Protocol):
    """What layers with a running state carry from one token to the next; it never changes."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""

    def is_finite(self) -> bool:
        """Whether every number in it is one. Waits for the device."""
