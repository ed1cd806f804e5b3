"""What goes into a pass: guesses are worth a row where they raise the tokens a second."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from langchain_pos.engine.decoding.drafts import Accuracy, Draft, Source
from langchain_pos.engine.decoding.sequence import Feed
from langchain_pos.engine.forest.segments import Ledger, Segment
from langchain_pos.engine.scheduler.pace import Pace
from langchain_pos.engine.scheduler.pass_budget import PassBudget
from langchain_pos.engine.scheduler.request import Part, Request

SEGMENT = Segment(1, 0, Ledger())


def learnt(base: float, row: float) -> Pace:
    """A pace that has seen passes of one to four rows."""
    pace = Pace(row)
    for rows in [1, 2, 3, 4] * 20:
        pace.note(rows, base + row * rows)
    return pace


def parts_with(guesses: list[tuple[int, float]]) -> list[Part]:
    """For each a sequence that guesses so many tokens, right with that probability."""
    parts = []
    for count, right in guesses:
        request: Request[Any] = Request(lambda _: iter(()), 1, 1)  # type: ignore[arg-type, return-value]
        request._accuracy.of = lambda _, right=right: right  # type: ignore[method-assign, misc]
        request._feeds = [Feed(SEGMENT, [0], draft=Draft.of(range(count)))]
        parts.append(Part(request, 0, [0], completes=True))
    return parts


def allotted(budget: PassBudget, parts: list[Part], rows: int, room: int = 999) -> list[int]:
    """How many of each sequence's guesses go along."""
    budget._add_drafts(parts, rows, room)
    return [len(part.draft) for part in parts]


class TestDrafts:
    @pytest.mark.parametrize("row", [0.01, 0.05, 0.2, 0.5])
    @pytest.mark.parametrize(
        "guesses", [[(9, 0.9)], [(9, 0.3)], [(5, 0.9), (5, 0.5)], [(4, 0.7), (4, 0.7), (2, 0.99)]]
    )
    def test_no_other_choice_gives_more_tokens_a_second(
        self, row: float, guesses: list[tuple[int, float]]
    ) -> None:
        """Against all that could be chosen."""
        rows, right = len(guesses), [p for _, p in guesses]

        def rate(lengths: tuple[int, ...]) -> float:
            chances = [p**k for n, p in zip(lengths, right, strict=True) for k in range(1, n + 1)]
            return (rows + sum(chances)) / (1.0 + row * (rows + sum(lengths)))

        budget = PassBudget(draft_rows=1, pace=learnt(1.0, row))
        chosen = tuple(allotted(budget, parts_with(guesses), rows))
        best = max(product(*(range(count + 1) for count, _ in guesses)), key=rate)
        assert rate(chosen) == pytest.approx(rate(best), rel=1e-3)

    def test_free_rows_are_taken_in_any_case(self) -> None:
        """The likelier guesses first; without a pace no more than them."""
        parts = parts_with([(9, 0.1), (3, 0.9)])
        for pace in (None, Pace(0.5), learnt(1.0, 0.9)):
            assert allotted(PassBudget(draft_rows=6, pace=pace), parts, 2) == [1, 3]

    def test_no_more_than_there_is_room_for(self) -> None:
        """Slots bound them."""
        budget = PassBudget(draft_rows=64, pace=learnt(1.0, 0.0))
        assert sum(allotted(budget, parts_with([(9, 0.9), (9, 0.9)]), 2, room=5)) == 5
        assert allotted(budget, parts_with([(9, 0.9)]), 2, room=-3) == [0]

    def test_many_rows_leave_none(self) -> None:
        """Fewer than no free rows are none."""
        budget = PassBudget(draft_rows=4, pace=learnt(1.0, 0.3))
        assert allotted(budget, parts_with([(4, 0.4)] * 30), 30) == [0] * 30


class TestPace:
    def test_it_is_the_line_through_recent_passes(self) -> None:
        """As weighted least squares have it, with the cost at load as a weak prior."""
        rng = np.random.default_rng(0)
        rows = rng.integers(1, 30, 200)
        seconds = 3.0 + 0.25 * rows + rng.normal(0, 0.2, 200)
        pace = Pace(0.25)
        for count, took in zip(rows.tolist(), seconds.tolist(), strict=True):
            pace.note(count, took)
        weights = np.sqrt((1 - 1 / 32) ** np.arange(199, -1, -1))
        lines = np.stack([np.ones(200), rows], axis=1) * weights[:, None]
        base, row = np.linalg.lstsq(lines, seconds * weights, rcond=None)[0]
        assert pace.row == pytest.approx(row, rel=0.01)
        for count in (1, 8, 40):
            assert pace.seconds(count) == pytest.approx(base + row * count, rel=0.01)

    def test_it_begins_with_what_was_measured_at_load(self) -> None:
        """Passes that all have as many rows say nothing of what one costs."""
        pace = Pace(0.1)
        assert not pace.known
        for _ in range(50):
            pace.note(3, 2.0)
        assert pace.known
        assert pace.row == pytest.approx(0.1)
        assert pace.seconds(5) == pytest.approx(2.2)

    def test_it_follows_a_longer_prompt(self) -> None:
        """Rows become dearer, and cheaper again."""
        pace = learnt(1.0, 0.1)
        for rows in [1, 5, 9] * 60:
            pace.note(rows, 2.0 + 0.4 * rows)
        assert pace.row == pytest.approx(0.4, rel=0.05)
        assert pace.seconds(4) == pytest.approx(3.6, rel=0.05)

    def test_a_pause_of_the_machine_is_not_believed(self) -> None:
        """One pass that took a thousand times as long."""
        pace = learnt(1.0, 0.1)
        pace.note(4, 1000.0)
        assert pace.seconds(1) < 1.5
        assert pace.row < 0.3

    @pytest.mark.parametrize("rows", [1, 30])
    def test_a_slow_beginning_is_soon_forgotten(self, rows: int) -> None:
        """The first pass makes kernels ready."""
        pace = Pace(0.002)
        pace.note(rows, 2.0)
        for count in [1, 2, 3, 4] * 4:
            pace.note(count, 0.03 + 0.002 * count)
        assert pace.row == pytest.approx(0.002, rel=0.01)
        assert pace.seconds(8) == pytest.approx(0.046, rel=0.01)

    def test_it_is_never_nothing(self) -> None:
        """Whatever the figures say."""
        pace = Pace(0.0)
        for rows in [1, 9] * 20:
            pace.note(rows, 1.0 if rows == 1 else 0.1)
        assert pace.row == 0
        assert pace.seconds(10_000) > 0


class TestAccuracy:
    def test_each_source_has_its_own(self) -> None:
        """Of a draft, those count that were looked at: up to the first that was wrong."""
        accuracy, draft = Accuracy(), Draft.of([1, 2, 3, 4])
        caller = Draft.of([1], "caller")
        before = accuracy.of(caller)
        for _ in range(80):
            accuracy.learn(draft, 1)
        assert accuracy.of(draft) == pytest.approx(0.5, rel=0.02)
        assert accuracy.of(caller) == before
        for _ in range(80):
            accuracy.learn(draft, 4)
        assert accuracy.of(draft) > 0.98

    def test_an_empty_draft_says_nothing(self) -> None:
        """It was not looked at."""
        accuracy = Accuracy()
        before = accuracy.of(Draft.of([1]))
        accuracy.learn(Draft.of([]), 0)
        assert accuracy.of(Draft.of([1])) == before

    @pytest.mark.parametrize("source", ["caller", "lookup", "token"])
    def test_a_draft_keeps_its_source(self, source: Source) -> None:
        """Also where it is cut."""
        assert Draft.of([1, 2], source).shortened(1).source == source
