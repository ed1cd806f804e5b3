"""How many rows a forward pass takes for little more than the price of one."""

from __future__ import annotations

import time

from langchain_pos.engine.forward import ForwardPass
from langchain_pos.engine.segments import Ledger, Segment

DRAFT_ROWS = 32
"""Where nothing is measured: free on a CPU with matrix units, and on any GPU."""
_STEPS = (32, 64, 128, 256)
_DEARER = 1.3
_PATIENCE = 1.0  # seconds
_RUNS = 3


def free_rows(forward: ForwardPass) -> int:
    """Rows that cost at most 1.3 times as much as one, as a power of two: `_STEPS`, or less.

    Takes about a second at most: a model too slow to be measured in that time gets `DRAFT_ROWS`.
    """
    ledger = Ledger()
    root = forward.forest.root(ledger)
    began = time.perf_counter()
    try:
        one = _seconds(forward, root, 1, runs=_RUNS)
        if (time.perf_counter() - began) * len(_STEPS) > _PATIENCE:
            return DRAFT_ROWS
        free = DRAFT_ROWS // 2
        for rows in _STEPS:
            if _seconds(forward, root, rows, runs=_RUNS) > _DEARER * one:
                return free
            free = rows
            if time.perf_counter() - began > _PATIENCE:
                return free
        return free
    finally:
        forward.forest.release(root)


def _seconds(forward: ForwardPass, root: Segment, rows: int, *, runs: int) -> float:
    """The fastest of some passes whose every row is sampled, after one to warm up."""
    best = float("inf")
    for run in range(runs + 1):
        began = time.perf_counter()
        logits = forward.run([(root, [0] * rows)], [0], [rows - 1])
        logits.amax(dim=-1).tolist()  # waits for the device
        if run:
            best = min(best, time.perf_counter() - began)
        forward.forest.truncate(root, 0)
    return best
