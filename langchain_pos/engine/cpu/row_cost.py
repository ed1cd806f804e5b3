"""How many rows a forward pass takes for little more than the price of one."""

from __future__ import annotations

import time
from dataclasses import dataclass

from langchain_pos.engine.forest.segments import Ledger, Segment
from langchain_pos.engine.forward.forward_pass import ForwardPass

DRAFT_ROWS = 32
"""Where nothing is measured: free on a CPU with matrix units, and on any GPU."""
_SIZES = (1, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256)
_DEARER = 1.3
_PATIENCE = 0.5  # seconds
_LEAST_ROUNDS, _MOST_ROUNDS = 2, 6


@dataclass(frozen=True)
class RowCost:
    """What the rows of a pass cost on this machine.

    Attributes:
        free: rows that cost at most 1.3 times as much as one; one of the sizes that are measured.
        seconds: of a further row where rows are not free any more; None when it is not known.
    """

    free: int = DRAFT_ROWS
    seconds: float | None = None


def row_cost(forward: ForwardPass) -> RowCost:
    """Measure what rows cost.

    All sizes are timed in turn, several times, and the fastest pass of each counts, so that what
    else the machine is doing hits all alike. Takes about half a second at most; a model too slow
    to be measured in that time gets `DRAFT_ROWS`.
    """
    ledger = Ledger()
    root = forward.forest.root(ledger)
    best = dict.fromkeys(_SIZES, float("inf"))
    began = time.perf_counter()
    try:
        _seconds(forward, root, 1)  # sets up what is made when first needed
        for done in range(_MOST_ROUNDS):
            for rows in _SIZES:
                best[rows] = min(best[rows], _seconds(forward, root, rows))
                late = time.perf_counter() - began > _PATIENCE
                if late and done < _LEAST_ROUNDS:
                    return RowCost()
            if late:
                break
    finally:
        forward.forest.release(root)
    free = max((rows for rows in _SIZES if best[rows] <= _DEARER * best[1]), default=1)
    most, fewer = _SIZES[-1], DRAFT_ROWS
    return RowCost(free, max(best[most] - best[fewer], 1e-6) / (most - fewer))


def _seconds(forward: ForwardPass, root: Segment, rows: int) -> float:
    """A pass whose every row is sampled."""
    began = time.perf_counter()
    logits = forward.run([(root, [0] * rows)], [0], [rows - 1])
    logits.amax(dim=-1).tolist()  # waits for the device
    forward.forest.truncate(root, 0)
    return time.perf_counter() - began
