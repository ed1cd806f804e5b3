"""What goes into a forward pass: everybody's next tokens, prompts in chunks, drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_pos.engine.cpu.row_cost import DRAFT_ROWS
from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.scheduler.request import Part, Request

_RIGHT = 0.4
"""Share of guesses that are right, at least; two thirds are in the paper's tasks."""
_MOST_SLOWER = 0.5
"""Share by which guesses may make a pass slower."""
_SHORT = 32
"""A request that wants fewer tokens fed is decoding; one that wants more has a prompt."""
_CHUNK = 256
"""Rows of prompts in a pass in which others decode: so long nobody else gets a token."""


@dataclass
class PassBudget:
    """How much goes into a pass.

    Attributes:
        max_rows: tokens fed in one pass at most; a longer prompt is fed in chunks.
        draft_rows: rows that a pass may have when drafts fill it up: as many as cost little more
            than one. Sequences take theirs first, drafts share what is left.
        row_seconds: what a further row costs where rows are not free any more; None allows no
            more than `draft_rows`.
        pass_seconds: what passes without a prompt have taken lately.
    """

    max_rows: int = 1024
    draft_rows: int = DRAFT_ROWS
    row_seconds: float | None = None
    pass_seconds: float = 0.0

    def fill(self, live: Sequence[Request[Any]], free_slots: int) -> list[Part]:
        """Up to `max_rows` tokens, the shortest wishes first: a long prompt stalls nobody.

        While others decode, prompts are fed in smaller chunks, so that tokens keep coming.

        Args:
            live: requests that may feed something.
            free_slots: drafts take no more slots than this leaves; other tokens may.
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
        left = min(self.rows_for_drafts(rows, len(live)), free_slots - rows)
        self._add_drafts(parts, left)
        return parts

    @staticmethod
    def _add_drafts(parts: list[Part], left: int) -> None:
        """Share the `left` rows among those who have guesses."""
        guessing = [part for part in parts if part.completes and part.feed.draft]
        for waiting, part in zip(range(len(guessing), 0, -1), guessing, strict=True):
            part.draft = part.feed.draft.shortened(max(left // waiting, 0))
            left -= len(part.draft)

    def rows_for_drafts(self, rows: int, live: int) -> int:
        """How many rows drafts may add to a pass of `live` requests that has `rows` without them.

        Those that are free. In company a pass takes longer, because the keys and values of all its
        requests are read: then d guesses, of which a share p is right, raise the tokens a second

            (rows + p * d) / (pass_seconds + d * row_seconds)

        as long as p * pass_seconds > rows * row_seconds.
        """
        free = self.draft_rows - rows
        if self.row_seconds is None or live < 2:
            return free
        if _RIGHT * self.pass_seconds <= rows * self.row_seconds:
            return free
        worth = int(_MOST_SLOWER * self.pass_seconds / self.row_seconds)
        return max(free, min(worth, self.draft_rows * live))

    def took(self, parts: Sequence[Part], seconds: float) -> None:
        """A pass of `parts` has taken so many seconds."""
        if all(len(part.token_ids) <= _SHORT for part in parts):  # no prompt among them
            self.pass_seconds += (seconds - self.pass_seconds) / 8
