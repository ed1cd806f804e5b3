"""How many rows a forward pass can have for little more than the cost of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DRAFT_ROWS = 32
"""Used if nothing is measured: free on a CPU with matrix units, and on any GPU."""
_SIZES = (1, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_DEARER = 1.3
_PATIENCE = 0.5  # seconds
_MOST_PASSES = 30
_ROUNDS = 4


@dataclass(frozen=True)
class RowCost:
    """The cost of the rows of a pass on this machine.

    Attributes:
        free: rows that cost at most 1.3 times as much as one; one of the measured sizes.
        seconds: per further row once rows are no longer free; None if unknown.
    """

    free: int = DRAFT_ROWS
    seconds: float | None = None


def measure_row_cost(seconds: Callable[[int], float], most: int) -> RowCost:
    """Time passes of more and more rows, up to the first size that costs more than 1.3 times one.

    Each size runs once before it is timed, because of one-time setup. For half a second each is
    timed several times, in turn with one row, and the fastest of each counts, so that other load
    on the machine affects both alike. Larger models are timed once per size, for no longer than 30
    more passes of one row; after that, the last size found to be free counts.

    Args:
        seconds: runs a pass of n rows, all of them sampled, and returns its duration.
        most: maximum rows of a pass; at least 1.
    """
    seconds(1)
    one = seconds(1)
    spent, hard_limit = one, _PATIENCE + _MOST_PASSES * one
    free = 1
    for rows in _SIZES[1:]:
        if rows > most:
            break
        spent += seconds(rows)
        if spent > hard_limit:
            break
        best = seconds(rows)
        spent += best
        for _ in range(_ROUNDS):
            if spent > _PATIENCE:
                break
            again, now = seconds(1), seconds(rows)
            one, best, spent = min(one, again), min(best, now), spent + again + now
        if best > _DEARER * one:
            return RowCost(free, (best - one) / (rows - 1))
        free = rows
    return RowCost(free)
