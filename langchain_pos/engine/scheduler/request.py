"""A coroutine run by the scheduler, and its share of a pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from langchain_pos.engine.decoding.drafts import NO_DRAFT, Accuracy, Draft
from langchain_pos.engine.decoding.sequence import Feed, Sampled, Steps
from langchain_pos.engine.forest.segments import Ledger, SegmentForest
from langchain_pos.engine.forest.slots import SlotPool
from langchain_pos.engine.sampling import RowSampling
from langchain_pos.engine.scheduler.fair_queue import Caller
from langchain_pos.engine.scheduler.pending import Pending
from langchain_pos.engine.scheduler.replay import FedTokens

T = TypeVar("T")


class Request(Pending[T]):
    """A coroutine run by the scheduler, and the segments that it holds.

    Args:
        make: creates the coroutine once the request is admitted.
        reserve: most slots that it may hold.
        expected: most slots that it is likely to hold.
        expected_states: slots that the states of its segments are likely to count as.
        caller: on whose behalf; None counts as a separate caller.

    Attributes:
        passes: forward passes that fed at least one of its tokens.
        ledger: its segments and slots.
        shared_slots: slots of the shared prefix under its last root.
        shared_states: slots that the states of that prefix count as.
        cached_tokens: tokens of its prompts that it did not have to feed.
        cancelled: whether its end has been requested.
        preemptions: how often it lost its slots to an older request and was fed again.
    """

    def __init__(
        self,
        make: Callable[[Request[T]], Steps[T]],
        reserve: int,
        expected: int,
        expected_states: int = 0,
        caller: Hashable | None = None,
    ) -> None:
        super().__init__()
        self.reserve = reserve
        self.expected = expected
        self.expected_states = expected_states
        self.caller = Caller(self if caller is None else caller)
        self.passes = 0
        self.ledger = Ledger()
        self.shared_slots = 0
        self.shared_states = 0
        self.cached_tokens = 0
        self.cancelled = False
        self.preemptions = 0
        self._accuracy = Accuracy()
        self._age = 0  # place in the order of admission
        self._make: Callable[[Request[T]], Steps[T]] | None = make
        self._steps: Steps[T] | None = None
        self._feeds: list[Feed] = []
        self._fed: list[int] = []  # tokens fed of each feed
        self._sampled: list[Sampled] = []
        self._lead = 0  # number of feeds at the front that the coroutine did not request
        self._replays = False  # those restore what its segments held before
        self._prefix: list[Feed] = []  # shared prefixes under its roots
        self._unfed_prefix: list[Feed] = []  # those to be fed before its next tokens
        self._held = FedTokens()

    @property
    def peak_slots(self) -> int:
        """Most slots that it held at once, shared ones and those of its states included."""
        return self.ledger.peak_slots + self.shared_slots + self.shared_states

    @property
    def peak_states(self) -> int:
        """Of these, those that its states count as, at most."""
        return self.ledger.peak_states + self.shared_states

    def cancel(self) -> None:
        """End the request and free its slots: soon, or after the current pass."""
        self.cancelled = True

    # ------------------------------------------------------------ for the scheduler

    def _begin(self) -> Steps[T]:
        """The coroutine, created when first needed: one that never starts would warn."""
        if self._steps is None:
            if self._make is None:
                raise RuntimeError("the request has ended")
            self._steps = self._make(self)
            self._make = None
        return self._steps

    def _take(self, feeds: list[Feed]) -> None:
        """Set the coroutine's next feeds."""
        lead = [feed for feed in self._unfed_prefix if not feed.segment.released]
        self._unfed_prefix = []
        self._feeds, self._lead = [*lead, *feeds], len(lead)
        self._fed = [0] * len(self._feeds)
        self._sampled = [None] * len(self._feeds)

    def _waiting_rows(self) -> int:
        return sum(len(feed.token_ids) for feed in self._feeds) - sum(self._fed)

    def _catch_up(self) -> None:
        """Account for shared prefixes that others have fed, or lost again."""
        for index, feed in enumerate(self._feeds):
            if not feed.shared:
                break
            there = feed.segment.end - (feed.start or 0)
            self._fed[index] = min(max(there, 0), len(feed.token_ids))
        if self._replays:
            lead = zip(self._feeds[: self._lead], self._fed, strict=False)
            self._replays = any(fed < len(feed.token_ids) for feed, fed in lead)

    def _note(self, part: Part, accepted: int, before: int, forest: SegmentForest) -> None:
        """Record that a pass has fed a part, and `accepted` tokens of its draft."""
        feed = part.feed
        if feed.shared:
            return
        self._fed[part.index] += len(part.token_ids)
        if part.index < self._lead:
            return
        others = [*self.ledger.segments, *(feed.segment for feed in self._prefix)]
        fed = [*part.token_ids, *part.draft.token_ids[:accepted]]
        self._held.note(feed.segment, before, fed, forest, others)

    def _probable_slots(self, pool: SlotPool) -> int:
        """Slots that it is likely to hold, its states included, the shared prefix not."""
        tokens = max(self.ledger.slots, self.expected - self.shared_slots)
        return tokens + max(self._states_of_all(pool), self.expected_states)

    def _states_of_all(self, pool: SlotPool) -> int:
        """Slots for the states of its segments, also of those that are fed in the next pass."""
        return sum(pool.states(max(len(s.slots), 1)) for s in self.ledger.segments)

    def _can_be_put_back(self) -> bool:
        """Whether its segments can be fed again as they were."""
        return self._replays or self._held.can_replay(self.ledger.segments)

    def _put_back(self, forest: SegmentForest) -> None:
        """Empty its segments; they are fed again before anything else of the request."""
        if self._replays:  # not everything is restored yet, and nothing follows it
            self._fed[: self._lead] = [0] * self._lead
        else:
            lead = [feed for feed in self._prefix if not feed.segment.released]
            lead += self._held.feeds(self.ledger.segments)
            self._feeds = [*lead, *self._feeds[self._lead :]]
            self._fed = [*[0] * len(lead), *self._fed[self._lead :]]
            self._sampled = [*[None] * len(lead), *self._sampled[self._lead :]]
            self._lead, self._replays = len(lead), True
        # Twice as much as it turned out to need, so that a request is put back only a few times.
        self.expected = min(self.reserve, max(self.expected, 2 * self.ledger.slots))
        self.expected_states = max(self.expected_states, self._states_of_all(forest.pool))
        for segment in self.ledger.segments:
            forest.truncate(segment, segment.start)
        self.preemptions += 1


@dataclass
class Part:
    """Tokens of one of a request's feeds that go into the current pass."""

    request: Request[Any]
    index: int
    token_ids: list[int]
    completes: bool
    draft: Draft = NO_DRAFT

    @property
    def feed(self) -> Feed:
        """The feed that it is part of."""
        return self.request._feeds[self.index]

    def rows(self) -> list[RowSampling]:
        """How the tokens after it and after each draft token are chosen."""
        if not self.completes or self.feed.sampling is None:
            return []
        return [self.feed.sampling, *self.feed.draft_sampling[: len(self.draft)]]
