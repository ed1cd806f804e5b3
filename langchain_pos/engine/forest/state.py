"""A state, as far as the forest knows it."""

from __future__ import annotations

from typing import Protocol


class State(Protocol):
    """What layers with a running state carry from one token to the next; it never changes."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""

    def keep(self) -> None:
        """It is kept for long: it shall not hold the memory of others that it was made with."""

    def is_finite(self) -> bool:
        """Whether every number in it is one. Waits for the device."""
