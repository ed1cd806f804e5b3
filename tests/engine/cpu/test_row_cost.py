"""Rows that cost little more than one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from langchain_pos.engine import engine as front
from langchain_pos.engine.cpu.row_cost import _SIZES, RowCost, measure_row_cost
from tests.support.tiny import ids, tiny_engine


class Machine:
    """A clock of our own: what passes of so many rows take, and which of them ran."""

    def __init__(self, price: Callable[[int], float], first: float = 0.0) -> None:
        self.price, self.first = price, first
        self.ran: list[int] = []
        self.clock = 0.0

    def seconds(self, rows: int) -> float:
        """A pass; the first one of each size takes longer."""
        took = self.price(rows) + (0 if rows in self.ran else self.first)
        self.ran.append(rows)
        self.clock += took
        return took


def steps(base: float, dearer_from: int) -> Callable[[int], float]:
    """Passes that take twice as long from some number of rows on."""
    return lambda rows: base * (2 if rows >= dearer_from else 1)


@pytest.mark.parametrize(
    ("dearer_from", "free"), [(2, 1), (5, 4), (10, 8), (33, 32), (65, 64), (200, 128), (999, 256)]
)
@pytest.mark.parametrize("base", [0.0001, 0.016, 2.0])
def test_the_last_size_before_a_pass_gets_dear(base: float, dearer_from: int, free: int) -> None:
    """On a fast machine as on a slow one; nothing dearer than the first dear size is tried."""
    machine = Machine(steps(base, dearer_from), first=base / 2)
    cost = measure_row_cost(machine.seconds, most=1024)
    assert cost.free == free
    dear = [size for size in _SIZES if size >= dearer_from]
    assert max(machine.ran) <= (dear or [256])[0]
    assert machine.clock < 0.6 + 40 * base


def test_what_takes_too_long_is_not_said_to_be_free() -> None:
    """A pass of 16 ms that takes 154 with 32 rows: the last size that was measured counts."""
    machine = Machine(lambda rows: 0.016 + 0.0045 * (rows - 1))
    assert measure_row_cost(machine.seconds, most=1024).free == 1
    slow = Machine(lambda rows: 5.0 if rows == 1 else 40.0)
    assert measure_row_cost(slow.seconds, most=1024).free == 1


def test_a_further_row_costs_what_it_adds() -> None:
    """Where the first dear size was timed; where all are free, nobody knows."""
    dear = measure_row_cost(Machine(lambda rows: 0.01 + 0.001 * rows).seconds, most=1024)
    assert dear.free == 4
    assert dear.seconds == pytest.approx(0.001)
    assert measure_row_cost(Machine(lambda rows: 0.001).seconds, most=1024) == RowCost(256, None)


def test_no_more_rows_than_there_are_slots() -> None:
    """An engine of few slots can be measured, too."""
    machine = Machine(lambda rows: 0.001)
    assert measure_row_cost(machine.seconds, most=50).free == 48
    assert max(machine.ran) <= 50
    assert measure_row_cost(machine.seconds, most=1).free == 1


def test_what_is_made_when_first_needed_is_not_timed() -> None:
    """A CUDA graph is recorded in the first pass of its size: that says nothing of the next."""
    machine = Machine(steps(0.001, 65), first=0.05)
    assert measure_row_cost(machine.seconds, most=1024).free == 64


def test_a_machine_that_does_other_things_as_well() -> None:
    """Delays now and then do not make rows dear that are free."""
    generator = random.Random(4)
    machine = Machine(lambda rows: 0.001 * (1 if generator.random() < 0.6 else 3))
    assert measure_row_cost(machine.seconds, most=1024).free >= 16


@pytest.mark.parametrize("max_slots", [200, 40])
def test_an_engine_measures_its_own_passes(monkeypatch: pytest.MonkeyPatch, max_slots: int) -> None:
    """Within its slots, all of them free afterwards; what is found the scheduler shares out."""
    most = []

    def measured(seconds: Callable[[int], float], limit: int) -> RowCost:
        most.append(limit)
        assert seconds(1) > 0
        assert seconds(limit) > 0
        return RowCost(12, 0.5)

    monkeypatch.setattr(front, "measure_row_cost", measured)
    engine = tiny_engine(draft_rows=None, max_slots=max_slots)
    assert most == [max_slots]
    budget = engine.scheduler.budget
    assert budget.pace is not None
    assert (budget.draft_rows, budget.pace.row) == (12, 0.5)
    assert engine.describe()["draft_rows"] == "12"
    assert engine.slots_in_use == 0


def test_a_short_context_is_not_overrun_by_measuring() -> None:
    """A model with learned positions has nothing for those beyond its last one."""
    engine = tiny_engine(
        "gpt2", settings={"n_positions": 30, "max_position_embeddings": 30}, draft_rows=None
    )
    assert engine.scheduler.budget.draft_rows in _SIZES
    assert engine.scheduler.budget.draft_rows <= 30
    assert len(engine.generate(ids(20), max_new_tokens=10).token_ids) == 10


def test_an_engine_that_is_given_a_number_measures_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is set is what the scheduler shares among drafts."""
    monkeypatch.setattr(front, "measure_row_cost", pytest.fail)
    assert tiny_engine(draft_rows=7).scheduler.budget.draft_rows == 7
