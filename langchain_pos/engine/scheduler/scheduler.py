"""Steps all live requests together, one forward pass after another.

One thread does it for all (`Driver`). Callers submit requests and wait for them (`Pending`); a
request runs whether or not a caller waits.

Requests are admitted by the slots that they are likely to hold. If slots run out all the same, the
youngest request is *put back*: its segments are emptied, and once there is room again, fed with
what they held. Its coroutine does not notice, and the oldest request always continues, so every
request gets its turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

from langchain_pos.engine.cache.prefixes import PrefixCache
from langchain_pos.engine.cpu.openmp import give_back_workers
from langchain_pos.engine.cpu.row_cost import DRAFT_ROWS
from langchain_pos.engine.decoding.drafts import Verified
from langchain_pos.engine.decoding.sequence import Feed, Sampled, Steps
from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.forest.slots import ROOM
from langchain_pos.engine.forward.forward_pass import ForwardPass
from langchain_pos.engine.sampling import RowSampling, sample
from langchain_pos.engine.scheduler.driver import Driver
from langchain_pos.engine.scheduler.fair_queue import FairQueue
from langchain_pos.engine.scheduler.pace import Pace
from langchain_pos.engine.scheduler.pass_budget import PassBudget, slots_for
from langchain_pos.engine.scheduler.request import Part, Request
from langchain_pos.errors import NonFiniteLogitsError, OutOfSlotsError, RequestCancelled

T = TypeVar("T")
Sampler = Callable[[torch.Tensor, Sequence[RowSampling]], list[int | NonFiniteLogitsError]]
"""Chooses a token for each row of logits; see `sampling.sample`."""

SHARED = 2
"""Segments of shared prefixes that a request alone may stand on."""
_LIKELY = 5
"""Segments that a request is likely to have at once, where it does not say fewer."""


class Scheduler:
    """Many requests, one forward pass at a time.

    Args:
        forward: the model with its forest.
        max_rows, draft_rows: see `PassBudget`.
        row_seconds: see `Pace`; None if rows are free, or what they cost is not known.
        max_parked: prompt tokens to keep for later requests; see `PrefixCache`.
        sampler: chooses the tokens of a pass; benchmarks replay recorded texts through it.
    """

    def __init__(
        self,
        forward: ForwardPass,
        *,
        max_rows: int = 1024,
        draft_rows: int = DRAFT_ROWS,
        row_seconds: float | None = None,
        max_parked: int = 0,
        sampler: Sampler = sample,
    ) -> None:
        self.forward = forward
        pace = None if row_seconds is None else Pace(row_seconds)
        self.budget = PassBudget(max_rows, draft_rows, pace)
        self.sampler = sampler
        self.prefixes = PrefixCache(forward.forest, forward.cache, max_parked=max_parked)
        self._driver = Driver(forward.device)
        # Callers add to `_incoming`, under `_driver.changed`; everything else is the thread's.
        self._incoming: FairQueue[Request[Any]] = FairQueue()
        self._live: list[Request[Any]] = []  # the oldest first
        self._put_back: list[Request[Any]] = []  # the oldest first
        self._admitted = 0

    # ----------------------------------------------------------- for the caller

    def submit(
        self,
        make: Callable[[Request[T]], Steps[T]],
        *,
        reserve: int,
        expected: int | None = None,
        segments: int | None = None,
        caller: Hashable | None = None,
    ) -> Request[T]:
        """Queue a request, which runs from now on.

        Args:
            make: creates the coroutine, in the engine's thread when the request is admitted; it
                opens segments through `self.root(request)`.
            reserve: most slots that its tokens may take.
            expected: most slots that it is likely to hold; it is admitted when these are free and
                it is its turn. None expects `ROOM` slots, or `reserve` if that is less, and the
                whole prompt once that is known. Too low a number costs passes when slots run out,
                too high a number makes others wait for nothing.
            segments: that it has at once, which matters for states; None expects a few.
            caller: on whose behalf; callers take turns, and None counts as a separate caller.

        Raises:
            OutOfSlotsError: `reserve`, with the states of its segments, exceeds the engine's slots.
        """
        pool, limit = self.forward.forest.pool, self.forward.forest.max_slots
        states = pool.states(reserve, SHARED + segments) if segments else 0
        if reserve + states > limit:
            also = f" and {states} for the states of {segments} segments" if states else ""
            raise OutOfSlotsError(
                f"the request may need {reserve} KV-cache slots (prompt and budgets together){also}"
                f", the engine holds at most {limit}; use smaller budgets or raise max_slots"
            )
        probably = min(reserve, ROOM if expected is None else expected)
        states = pool.states(probably, segments or _LIKELY)
        request = Request(make, reserve, probably, states, caller)
        give_back_workers()  # of the thread that hands the work over
        with self._driver.changed:
            self._incoming.add(request.caller, request)
            try:
                self._driver.wake(self)
            except BaseException:  # no further thread can be started
                self._incoming.remove(request.caller, request)
                raise
        return request

    def paused(self) -> AbstractContextManager[None]:
        """Context in which no pass runs: requests submitted in it begin together.

        Waiting for a request inside it would block forever.
        """
        return self._driver.paused()

    def root(self, request: Request[Any], prompt_ids: Sequence[int] = ()) -> Segment:
        """The segment for a prompt of `request`.

        Args:
            request: its owner.
            prompt_ids: the prompt, to share its beginning with others that begin alike.

        Returns:
            a segment whose end is the number of `prompt_ids` that need not be fed: the root of a
            new tree, or a child of a shared prefix.
        """
        request.ledger.expected = min(request.reserve, len(prompt_ids) + ROOM)
        request.expected = min(request.reserve, max(request.expected, len(prompt_ids)))
        segment, chain, known = self.prefixes.root(request.ledger, prompt_ids)
        ends = [*(prefix.segment.start for prefix in chain), segment.start][1:]
        feeds = [
            Feed(prefix.segment, tokens, start=prefix.segment.start, shared=True)
            for prefix, end in zip(chain, ends, strict=True)
            if (tokens := prefix.tokens[prefix.segment.start : end])
        ]
        request._prefix += feeds
        request._unfed_prefix += feeds
        request.shared_slots = segment.start
        request.shared_states = sum(
            self.forward.forest.pool.states(end - prefix.segment.start)
            for prefix, end in zip(chain, ends, strict=True)
        )
        request.cached_tokens += known
        return segment

    # -------------------------------------------------------------- for the driver

    def has_work(self) -> bool:
        """Whether there are requests."""
        return bool(self._live or self._put_back or len(self._incoming))

    def step(self) -> None:
        """One forward pass, with the steps before and after it."""
        # 1. Cancelled requests leave, requests whose slots are free join.
        self._sweep()
        self._admit()
        # 2. One pass over the live requests' feeds.
        parts = self._fill()
        if parts:
            self._run_pass(parts)
        # 3. Requests that have all their tokens continue.
        self._sweep()
        for request in list(self._live):
            if request._feeds and request._waiting_rows() == 0:
                self._resume(request)

    def fail(self, error: BaseException) -> None:
        """End all requests with an error of the scheduler itself."""
        for request in self._all():
            self._end(request, error=error)

    def forked(self) -> None:
        """Drop the parent process's requests at the next step."""
        for request in self._all():
            request.cancelled = True
            request._listeners = ()  # threads and loops of the parent
            request.finish(error=RequestCancelled("the process has been forked"))

    def _all(self) -> list[Request[Any]]:
        with self._driver.changed:
            return [*self._live, *self._put_back, *self._incoming]

    def _sweep(self) -> None:
        """End cancelled requests."""
        for request in self._all():
            if request.cancelled:
                self._end(request, error=RequestCancelled("the request was cancelled"))

    # ------------------------------------------------------------------- admission

    def _admit(self) -> None:
        """Admit requests that were put back first, then by turns; none is overtaken."""
        while self._put_back and self._fits(self._put_back[0]):
            self._live.append(self._put_back.pop(0))
            self._live.sort(key=lambda request: request._age)
        while not self._put_back:
            with self._driver.changed:
                request = self._incoming.first()
                if request is None or not self._fits(request):
                    return
                self._incoming.take()
                self._live.append(request)
            self._admitted += 1
            request._age = self._admitted
            self._resume(request)

    def _fits(self, comer: Request[Any]) -> bool:
        """Whether the slots that all are likely to hold suffice with one more request."""
        if not self._live:
            return True
        pool = self.forward.forest.pool
        requests = (*self._live, comer)
        probable = sum(request._probable_slots(pool) for request in requests)
        return self.prefixes.slots + probable <= pool.total

    def _fill(self) -> list[Part]:
        """The next pass. If its slots are not free, the youngest requests are put back."""
        pool = self.forward.forest.pool
        while True:
            parts = self.budget.fill(self._live, pool)
            if slots_for(parts, pool) <= pool.free:
                return parts
            if not self._trim_prefixes() and not self._put_back_youngest():
                return parts  # the pass will report what is missing

    def _put_back_youngest(self) -> bool:
        """Put back the youngest request, but never the oldest; returns whether there was one."""
        for request in self._live[:0:-1]:
            if request._can_be_put_back():
                request._put_back(self.forward.forest)
                self._live.remove(request)
                self._put_back.append(request)
                self._put_back.sort(key=lambda other: other._age)
                return True
        return False

    def _trim_prefixes(self) -> bool:
        """Empty prefixes shared only by requests put back; returns whether there were any.

        These remain users of the prefix, and feed it again as its first users did.
        """
        forest, free = self.forward.forest, self.forward.forest.pool.free
        needed: dict[Segment, int] = {}
        for request in self._live:
            for feed in request._prefix:
                end = (feed.start or 0) + len(feed.token_ids)
                needed[feed.segment] = max(needed.get(feed.segment, 0), end)
        for request in self._put_back:
            for feed in request._prefix:
                end = needed.get(feed.segment, feed.segment.start)
                if not feed.segment.released and end < feed.segment.end:
                    forest.truncate(feed.segment, end)
        return forest.pool.free > free

    # -------------------------------------------------------------------- one pass

    def _run_pass(self, parts: list[Part]) -> None:
        forest = self.forward.forest
        wishes = [part.rows() for part in parts]
        sampled = [index for index, wish in enumerate(wishes) if wish]
        rows = [row for wish in wishes for row in wish]
        held = [len(part.feed.segment.slots) for part in parts]
        failure: Exception | None = None
        began = time.perf_counter()
        try:
            logits = self.forward.run(
                [(p.feed.segment, [*p.token_ids, *p.draft.token_ids]) for p in parts],
                sampled,
                [len(parts[index].draft) for index in sampled],
            )
            tokens = self.sampler(logits, rows) if rows else []
        except Exception as error:  # noqa: BLE001  handled after it has let go of its tensors
            failure = error
        if failure is not None:
            # Surviving requests feed these tokens again.
            for part, before in zip(parts, held, strict=True):
                segment = part.feed.segment
                forest.truncate(segment, segment.start + before)
            self._fail_pass(parts, failure)
            return
        self.budget.took(parts, time.perf_counter() - began)
        at = 0
        for part, wish, before in zip(parts, wishes, held, strict=True):
            accepted = 0
            if wish:
                mine, at = tokens[at : at + len(wish)], at + len(wish)
                accepted = part.draft.accepted(mine)
                part.request._sampled[part.index] = _verified(part, mine, accepted)
                part.request._accuracy.learn(part.draft, accepted)
            if accepted < len(part.draft):  # the slots of wrong guesses are free again
                segment = part.feed.segment
                forest.truncate(segment, segment.end - len(part.draft) + accepted)
            part.request._note(part, accepted, before, forest)
        for request in self._live:
            request._catch_up()
        for request in {part.request for part in parts}:
            request.passes += 1

    def _fail_pass(self, parts: list[Part], error: Exception) -> None:
        """Out of memory: the request that holds most ends, the others retry. Else all end."""
        requests = list(dict.fromkeys(part.request for part in parts))
        if _is_out_of_memory(error):
            largest = max(requests, key=lambda r: r.ledger.held + r._waiting_rows())
            if not isinstance(error, OutOfSlotsError):
                reason = (str(error) or type(error).__name__).splitlines()[0]
                error.__traceback__ = None  # its frames hold the tensors that took the memory
                error = OutOfSlotsError(
                    f"out of memory with {largest.ledger.slots} KV-cache slots held ({reason}); "
                    "use smaller budgets or fewer branches"
                )
            requests = [largest]
            if self.forward.device.type == "cuda":
                torch.cuda.empty_cache()
        for request in requests:
            if request._replays:  # its segments are not yet in the state that its coroutine expects
                self._end(request, error=error)
            else:
                self._resume(request, error)

    def _resume(self, request: Request[Any], error: Exception | None = None) -> None:
        """Send a coroutine its tokens, or throw the error into it; take its next feeds."""
        try:
            steps = request._begin()
            if error is not None:
                feeds = steps.throw(error)
            else:
                own = request._sampled[request._lead :] if request._feeds else None
                feeds = steps.send(own)  # type: ignore[arg-type]  # a coroutine starts with None
            if not feeds:
                raise ValueError("the request feeds nothing; it would never continue")
            for feed in feeds:
                self.forward.check(feed.token_ids)
                if feed.start is not None and feed.start < feed.segment.end:
                    self.forward.forest.truncate(feed.segment, feed.start)
        except StopIteration as stop:
            self._end(request, result=stop.value)
        except BaseException as failure:  # noqa: BLE001  it belongs to the request's caller
            self._end(request, error=failure)
        else:
            request._take(feeds)

    def _end(
        self, request: Request[Any], *, result: Any = None, error: BaseException | None = None
    ) -> None:
        """End the request and release all that it holds, whatever goes wrong."""
        try:
            if request._steps is not None:
                request._steps.close()
        except BaseException as failure:  # noqa: BLE001  it fails while it is closed
            error = error or failure
        request._make, request._steps, request._feeds = None, None, []
        with self._driver.changed:
            if request in self._live:
                self._live.remove(request)
            elif request in self._put_back:
                self._put_back.remove(request)
            else:
                self._incoming.remove(request.caller, request)
        for segment in [*request.ledger.segments] * 2:  # again if a release has failed
            try:
                self.forward.forest.release(segment)
            except BaseException as failure:  # noqa: BLE001  the others must be released as well
                error = error or failure
        request.finish(result, error)


def _verified(part: Part, sampled: list[int | NonFiniteLogitsError], right: int) -> Sampled:
    """The reply to a request for a part of whose draft `right` guesses were right."""
    last = sampled[right]
    if not part.draft:
        return last
    # Where a grammar leaves no choice, the guess replaces whatever was sampled.
    pairs = zip(part.draft.expected[:right], part.draft.token_ids, strict=False)
    tokens = [guess if expected is None else expected for expected, guess in pairs]
    if isinstance(last, NonFiniteLogitsError):
        return Verified(tuple(tokens), len(part.draft), last)
    return Verified((*tokens, last), len(part.draft))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        # torch's allocator on the CPU, on Windows and elsewhere
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
    )
