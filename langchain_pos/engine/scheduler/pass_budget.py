"""The contents of a forward pass: next tokens of all requests, prompts in chunks, drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_pos.engine.cpu.row_cost import DRAFT_ROWS
from langchain_pos.engine.decoding.drafts import NO_DRAFT
from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.forest.slots import SlotPool
from langchain_pos.engine.scheduler.request import Part, Request

_MOST_SLOWER = 0.5
"""Share of a recent pass's time that drafts may take."""
_SHORT = 32
"""A request that feeds up to this many tokens is decoding; one that feeds more has a prompt."""
_CHUNK = 256
"""Rows of prompts in a pass in which others decode: their tokens wait for that pass."""


def slots_for(parts: Sequence[Part], pool: SlotPool) -> int:
    """Slots that parts of a pass take, their drafts and states included."""
    more: dict[Segment, int] = {}
    for part in parts:
        segment = part.feed.segment
        more[segment] = more.get(segment, 0) + len(part.token_ids) + len(part.draft)
    return sum(pool.cost(len(segment.slots), count) for segment, count in more.items())


@dataclass
class PassBudget:
    """How much goes into a pass.

    Attributes:
        max_rows: most tokens fed in one pass; a longer prompt is fed in chunks.
        draft_rows: rows up to which drafts may fill a pass: as many as cost little more than one.
            Sequences take theirs first, drafts share the rest.
        row_seconds: cost of a further row once rows are no longer free; None if unknown: then
            drafts take no more than `draft_rows`.
        pass_seconds: recent duration of passes without a prompt.
    """

    max_rows: int = 1024
    draft_rows: int = DRAFT_ROWS
    row_seconds: float | None = None
    pass_seconds: float = 0.0

    def fill(self, live: Sequence[Request[Any]], pool: SlotPool) -> list[Part]:
        """Up to `max_rows` tokens, the shortest requests first, so that long prompts stall none.

        While others decode, prompts are fed in smaller chunks, so that tokens keep coming.

        Args:
            live: requests that may feed something.
            pool: its free slots limit drafts only; other tokens may exceed them.
        """
        parts: list[Part] = []
        waiting: list[tuple[int, Request[Any]]] = []
        for request in live:
            request._catch_up()
            waiting.append((request._waiting_rows(), request))
        waiting.sort(key=lambda pair: pair[0])
        room = prompt_room = self.max_rows
        if any(0 < rows <= _SHORT for rows, _ in waiting):
            prompt_room = min(room, _CHUNK)
        planned: dict[Segment, int] = {}  # where shared segments will end
        for rows, request in waiting:
            is_prompt = rows > _SHORT
            for index, feed in enumerate(request._feeds):
                if request._replays and index == request._lead:
                    break  # a segment is fed once in a pass, and these may be fed again in this one
                done = request._fed[index]
                if feed.shared and feed.segment in planned:
                    done = max(done, planned[feed.segment] - (feed.start or 0))
                rest = len(feed.token_ids) - done
                count = max(min(rest, room, prompt_room if is_prompt else room), 0)
                if count:
                    taken = list(feed.token_ids[done : done + count])
                    parts.append(Part(request, index, taken, count == rest))
                    room -= count
                    prompt_room -= count if is_prompt else 0
                if feed.shared:
                    end = planned.get(feed.segment, feed.segment.end)
                    planned[feed.segment] = end + count
                if count < rest:
                    break  # a request's later feeds may build on this one
        rows = sum(len(part.token_ids) for part in parts)
        right = [part.request._right for part in parts if part.feed.draft]
        worth = self.rows_for_drafts(rows, sum(right) / len(right)) if right else 0
        left = min(worth, pool.free - slots_for(parts, pool))
        self._add_drafts(parts, left)
        if slots_for(parts, pool) > pool.free:  # they would need a further state on the way
            for part in parts:
                part.draft = NO_DRAFT
        return parts

    @staticmethod
    def _add_drafts(parts: list[Part], left: int) -> None:
        """Share the `left` rows among the parts that have drafts."""
        guessing = [part for part in parts if part.completes and part.feed.draft]
        for waiting, part in zip(range(len(guessing), 0, -1), guessing, strict=True):
            part.draft = part.feed.draft.shortened(max(left // waiting, 0))
            left -= len(part.draft)

    def rows_for_drafts(self, rows: int, right: float) -> int:
        """How many rows drafts may add to a pass that has `rows` without them.

        The free ones; and as d guesses, of which a share p is right, raise the tokens per second

            (rows + p * d) / (pass_seconds + d * row_seconds)

        as long as p * pass_seconds > rows * row_seconds, then as many as take half of the time that
        recent passes took, drafts included: the more there are, the fewer are right.

        Args:
            rows: tokens that are fed in any case.
            right: p, the share of recent guesses that were right.
        """
        free = self.draft_rows - rows
        if self.row_seconds is None or right * self.pass_seconds <= rows * self.row_seconds:
            return free
        return max(free, int(_MOST_SLOWER * self.pass_seconds / self.row_seconds))

    def took(self, parts: Sequence[Part], seconds: float) -> None:
        """Record how many seconds a pass of `parts` took."""
        if all(len(part.token_ids) <= _SHORT for part in parts):  # no prompt among them
            self.pass_seconds += (seconds - self.pass_seconds) / 8
