"""A generator on its way through the scheduler, and its share of a pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from langchain_pos.engine.decoding.drafts import NO_DRAFT, Draft
from langchain_pos.engine.decoding.sequence import Feed, Sampled, Steps
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.sampling import RowSampling
from langchain_pos.engine.scheduler.fair_queue import Caller

T = TypeVar("T")


class Request(Generic[T]):
    """A generator on its way through the scheduler, and what it holds.

    Attributes:
        passes: forward passes that fed at least one of its tokens.
        ledger: its segments and slots.
        events: what it has told its caller and nobody has taken yet.
        shared_slots: slots of the shared prefix that its last root stands on.
        cached_tokens: tokens of its prompts that it did not have to feed.
        done: whether it has ended, in whichever way.
    """

    def __init__(self, reserve: int, caller: Hashable | None = None) -> None:
        self.reserve = reserve
        self.caller = Caller(self if caller is None else caller)
        self.passes = 0
        self.ledger = Ledger()
        self.events: deque[Any] = deque()
        self.shared_slots = 0
        self.cached_tokens = 0
        self.done = False
        self.cancelled = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._steps: Steps[T] | None = None
        self._feeds: list[Feed] = []
        self._fed: list[int] = []  # tokens fed of each feed
        self._sampled: list[Sampled] = []
        self._shared: list[Feed] = []  # to be fed before its next tokens

    def emit(self, event: Any) -> None:
        """Tell the caller something; `Scheduler.stream` yields it."""
        self.events.append(event)

    def result(self) -> T:
        """What the generator returned, or the error that ended it."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    @property
    def error(self) -> BaseException | None:
        """What ended it, None when nothing went wrong."""
        return self._error

    def _waiting_rows(self) -> int:
        return sum(len(feed.token_ids) for feed in self._feeds) - sum(self._fed)

    def _catch_up(self) -> None:
        """Others may have fed what is shared with them, or lost it again."""
        for index, feed in enumerate(self._feeds):
            if not feed.shared:
                break
            there = feed.segment.end - (feed.start or 0)
            self._fed[index] = min(max(there, 0), len(feed.token_ids))


@dataclass
class Part:
    """Tokens of one feed of a request that go into the current pass."""

    request: Request[Any]
    index: int
    token_ids: list[int]
    completes: bool
    draft: Draft = NO_DRAFT

    @property
    def feed(self) -> Feed:
        """What its request wants fed."""
        return self.request._feeds[self.index]

    def rows(self) -> list[RowSampling]:
        """How the tokens behind it and behind each of its draft are chosen."""
        if not self.completes or self.feed.sampling is None:
            return []
        return [self.feed.sampling, *self.feed.draft_sampling[: len(self.draft)]]
