"""Rows that cost little more than one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from langchain_pos.engine import Engine
from langchain_pos.engine.cpu import row_cost as measuring
from langchain_pos.engine.cpu.row_cost import DRAFT_ROWS, row_cost
from tests.support.tiny import tiny_engine


@pytest.mark.parametrize(
    ("base", "dearer_from", "expected"),
    [(0.001, 33, 32), (0.001, 65, 64), (0.001, 200, 128), (0.001, 999, 256), (0.001, 2, 1),
     (0.001, 10, 8),
     (0.001, 5, 4), (9.0, 999, DRAFT_ROWS), (0.02, 999, 256), (0.08, 999, DRAFT_ROWS)],
)  # fmt: skip
def test_the_last_step_before_a_pass_gets_dear(
    monkeypatch: pytest.MonkeyPatch, base: float, dearer_from: int, expected: int
) -> None:
    """By a clock of our own: a pass takes twice as long from some number of rows on."""
    engine = tiny_engine()
    clock = [0.0]

    def run(feeds: Sequence[Any], sampled: Sequence[int], drafted: Sequence[int]) -> torch.Tensor:
        rows = len(feeds[0][1])
        engine.forward.forest.extend(feeds[0][0], rows)
        clock[0] += base * (2 if rows >= dearer_from else 1)
        return torch.zeros(rows, 8)

    monkeypatch.setattr(engine.forward, "run", run)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    cost = row_cost(engine.forward)
    assert cost.free == expected
    if cost.seconds is not None:
        dearer = base if 32 < dearer_from <= 256 else 0
        assert cost.seconds == pytest.approx(max(dearer, 1e-6) / 224, rel=1e-3)
    assert engine.slots_in_use == 0


def test_an_engine_measures_unless_it_is_told() -> None:
    """What is measured or set is what the scheduler shares among drafts."""
    told = tiny_engine(draft_rows=7)
    assert told.scheduler.budget.draft_rows == 7
    measured = tiny_engine(draft_rows=None)
    assert measured.scheduler.budget.draft_rows in measuring._SIZES
    assert measured.slots_in_use == 0
    assert isinstance(measured, Engine)
    assert measured.describe()["draft_rows"] == str(measured.scheduler.budget.draft_rows)
