"""The contents of a forward pass: next tokens of all requests, prompts in chunks, drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import Any

from langchain_pos.engine.cpu.row_cost import DRAFT_ROWS
from langchain_pos.engine.decoding.drafts import NO_DRAFT
from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.forest.slots import SlotPool
from langchain_pos.engine.scheduler.pace import Pace
from langchain_pos.engine.scheduler.request import Part, Request

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
        pace: what rows cost where they are not free; None if that is not known, or they all are:
            then drafts take no more than `draft_rows`.
    """

    max_rows: int = 1024
    draft_rows: int = DRAFT_ROWS
    pace: Pace | None = None

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
        self._add_drafts(parts, rows, pool.free - slots_for(parts, pool))
        if slots_for(parts, pool) > pool.free:  # they would need a further state on the way
            for part in parts:
                part.draft = NO_DRAFT
        return parts

    def _add_drafts(self, parts: Sequence[Part], rows: int, room: int) -> None:
        """Add to a pass of `rows` the guesses that are worth a row, at most `room`.

        Those that are most likely right come first. A row that is not free is worth its price if it
        raises the tokens a second, the expected number of right guesses among them: if

            chance / row > (rows + sum of chances so far) / seconds(rows so far)

        where a guess has the chance p^k if it is the k-th of its draft and each is right with
        probability p if those before it are (Leviathan, Kalman and Matias, arXiv 2211.17192,
        section 3.3, with the price of a row in place of a second model's).
        """
        guessing = [part for part in parts if part.completes and part.feed.draft]
        right = [part.request._accuracy.of(part.feed.draft) for part in guessing]
        lengths = [0] * len(guessing)
        best = [(-chance, place) for place, chance in enumerate(right)]
        heapify(best)
        tokens, free = float(rows), self.draft_rows - rows
        for added in range(room):
            if not best:
                break
            chance, place = -best[0][0], best[0][1]
            if added >= free and not self._is_worth(chance, tokens, rows + added):
                break
            tokens += chance
            lengths[place] += 1
            if lengths[place] < len(guessing[place].feed.draft):
                heapreplace(best, (-chance * right[place], place))
            else:
                heappop(best)
        for part, length in zip(guessing, lengths, strict=True):
            part.draft = part.feed.draft.shortened(length)

    def _is_worth(self, chance: float, tokens: float, rows: int) -> bool:
        """Whether a further row that gives a token with this chance makes a pass worth more."""
        if self.pace is None or not self.pace.known:
            return False
        return chance * self.pace.seconds(rows) > tokens * self.pace.row

    def took(self, parts: Sequence[Part], seconds: float) -> None:
        """Record how many seconds a pass of `parts` took."""
        if self.pace is None or any(len(part.token_ids) > _SHORT for part in parts):
            return  # or a prompt is among them
        self.pace.note(sum(len(part.token_ids) + len(part.draft) for part in parts), seconds)
