"""Steps every live request together, one forward pass after another.

Whoever waits for a request drives the engine until that request has what he waits for, and thereby
everybody's. Where several wait, and where tasks of event loops do, one thread drives for all of
them (`engine/driver.py`). A request that nobody waits for does not move.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
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
from langchain_pos.engine.scheduler.pass_budget import PassBudget
from langchain_pos.engine.scheduler.request import Part, Request
from langchain_pos.errors import NonFiniteLogitsError, OutOfSlotsError, RequestCancelled

T = TypeVar("T")
Sampler = Callable[[torch.Tensor, Sequence[RowSampling]], list[int | NonFiniteLogitsError]]
"""Chooses a token for each row of logits; see `sampling.sample`."""


@dataclass
class _Turn:
    """Who drives: taken and given back under one condition variable."""

    condition: threading.Condition = field(default_factory=threading.Condition)
    taken: bool = False


class Scheduler:
    """Many requests, one forward pass at a time.

    Args:
        forward: the model with its forest.
        max_rows, draft_rows, row_seconds: how much goes into a pass; see `PassBudget`.
        max_parked: tokens of prompts to keep for later requests; see `PrefixCache`.
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
        self.budget = PassBudget(max_rows, draft_rows, row_seconds)
        self.sampler = sampler
        self.prefixes = PrefixCache(forward.forest, forward.cache, max_parked=max_parked)
        self._turn = _Turn()
        self._driver = Driver()
        self._led = False  # by the driver's thread, in the last pass
        self._incoming: FairQueue[Request[Any]] = FairQueue()
        self._live: list[Request[Any]] = []

    # ----------------------------------------------------------- for the caller

    def submit(
        self,
        make: Callable[[Request[T]], Steps[T]],
        *,
        reserve: int,
        caller: Hashable | None = None,
    ) -> Request[T]:
        """Queue a request. It runs while somebody waits for it, or for any other one.

        Args:
            make: builds the generator; it opens segments through `self.root(request)`.
            reserve: slots that it may need at most; it starts when they are free and it is its
                turn.
            caller: on whose behalf; callers take turns, and None is a caller of its own.

        Raises:
            OutOfSlotsError: `reserve` exceeds what the engine may ever hold.
        """
        limit = self.forward.forest.max_slots
        if reserve > limit:
            raise OutOfSlotsError(
                f"the request may need {reserve} KV-cache slots (prompt and budgets together), "
                f"the engine holds at most {limit}; ask for smaller budgets or raise max_slots"
            )
        request: Request[T] = Request(reserve, caller)
        request._steps = make(request)
        with self._turn.condition:
            self._incoming.add(request.caller, request)
        return request

    def root(self, request: Request[Any], prompt_ids: Sequence[int] = ()) -> Segment:
        """The segment that a prompt of `request` goes into.

        Args:
            request: whose it is.
            prompt_ids: the prompt, to share its beginning with others that begin alike.

        Returns:
            a segment whose end says how many of `prompt_ids` need not be fed: the root of a new
            tree, or a child of what is shared.
        """
        request.ledger.expected = min(request.reserve, len(prompt_ids) + ROOM)
        segment, chain, known = self.prefixes.root(request.ledger, prompt_ids)
        ends = [*(prefix.segment.start for prefix in chain), segment.start][1:]
        request._shared += [
            Feed(prefix.segment, tokens, start=prefix.segment.start, shared=True)
            for prefix, end in zip(chain, ends, strict=True)
            if (tokens := prefix.tokens[prefix.segment.start : end])
        ]
        request.shared_slots = segment.start
        request.cached_tokens += known
        return segment

    def run(self, request: Request[T]) -> T:
        """Wait for the request's result. Cancels it when interrupted."""
        try:
            self.wait(lambda: request.done)
            return request.result()
        finally:
            self.cancel(request)

    def stream(self, request: Request[T]) -> Generator[Any, None, None]:
        """The request's events as they come; raises its error at the end if it has one.

        Closing the iterator cancels the request.
        """
        try:
            while True:
                self.wait(lambda: bool(request.events) or request.done)
                while request.events:
                    yield request.events.popleft()
                if request.done and not request.events:
                    request.result()
                    return
        finally:
            self.cancel(request)

    def wait(self, until: Callable[[], bool]) -> None:
        """Drive the engine until `until()`, or sleep while another thread does."""
        while not self._is_led() and self._pass(until):
            self._led = False
        if not until():
            self._driver.sleep(until, self._drive)

    def _is_led(self) -> bool:
        """Whether the thread for all drives, or did so last and there is still company."""
        in_company = len(self._live) + len(self._incoming) > 1
        return self._driver.busy or (self._led and in_company)

    async def await_news(self, until: Callable[[], bool]) -> None:
        """See `wait`; for a task of any loop. Another thread drives."""
        await self._driver.asleep(until, self._drive)

    def cancel(self, request: Request[Any]) -> None:
        """End a request and free its slots: at once, or when the pass under way is over.

        To be called behind a request that is done as well: the calling thread waits no more, and
        gives its workers back.
        """
        give_back_workers()
        if request.done:
            return
        with self._turn.condition:
            request.cancelled = True
            if not self._turn.taken:
                self._sweep()

    def _drive(self, until: Callable[[], bool]) -> None:
        while self._pass(until, patient=True):
            self._led = True

    def _pass(self, until: Callable[[], bool], *, patient: bool = False) -> bool:
        """One step, unless `until()` is true, or another thread has the turn.

        Args:
            until: whether there is no need.
            patient: wait for the turn.

        Returns:
            whether there was a step.
        """
        turn, driving = self._turn, False
        try:
            with turn.condition:
                while patient and turn.taken and not until():
                    turn.condition.wait()
                if turn.taken or until():
                    return False
                driving = turn.taken = True
            self._step()
        finally:
            if driving:
                self._give_back_turn()
        return True

    def _give_back_turn(self) -> None:
        with self._turn.condition:
            try:
                self._sweep()
            finally:
                self._turn.taken = False
                self._turn.condition.notify_all()

    def _sweep(self) -> None:
        """End what has been cancelled. The caller holds the condition and no pass is under way."""
        for request in [*self._live, *self._incoming]:
            if request.cancelled:
                self._end(request, error=RequestCancelled("the request was cancelled"))

    # ------------------------------------------------------------- one step

    def _step(self) -> None:
        # 1. Requests whose slots are free join; callers take turns, and nobody is overtaken.
        self._admit()
        # 2. One pass over what the live ones want fed.
        parts = self.budget.fill(self._live)
        if parts:
            self._run_pass(parts)
        # 3. Whoever has all his tokens goes on.
        for request in list(self._live):
            if request._feeds and request._waiting_rows() == 0:
                self._resume(request)

    def _admit(self) -> None:
        reserved = sum(request.reserve for request in self._live)
        while (request := self._incoming.first()) is not None:
            if self._live and reserved + request.reserve > self.forward.forest.max_slots:
                return
            self._incoming.take()
            reserved += request.reserve
            self._live.append(request)
            self._resume(request)

    def _run_pass(self, parts: list[Part]) -> None:
        wanted = [index for index, part in enumerate(parts) if part.rows()]
        rows = [row for index in wanted for row in parts[index].rows()]
        ends = [part.feed.segment.end for part in parts]
        failure: Exception | None = None
        began = time.perf_counter()
        try:
            logits = self.forward.run(
                [(p.feed.segment, [*p.token_ids, *p.draft.token_ids]) for p in parts],
                wanted,
                [len(parts[index].draft) for index in wanted],
            )
            tokens = self.sampler(logits, rows) if rows else []
        except BaseException as error:
            # Whoever stays alive feeds these tokens once more.
            for part, end in zip(parts, ends, strict=True):
                self.forward.forest.truncate(part.feed.segment, end)
            if not isinstance(error, Exception):
                raise
            failure = error
        if failure is not None:
            self._fail_pass(parts, failure)
            return
        self.budget.took(parts, time.perf_counter() - began)
        for part in parts:
            if not part.feed.shared:
                part.request._fed[part.index] += len(part.token_ids)
        for request in self._live:
            request._catch_up()
        for index in wanted:
            part = parts[index]
            mine, tokens = tokens[: 1 + len(part.draft)], tokens[1 + len(part.draft) :]
            part.request._sampled[part.index] = self._verify(part, mine)
        for request in {id(part.request): part.request for part in parts}.values():
            request.passes += 1

    def _verify(self, part: Part, sampled: list[int | NonFiniteLogitsError]) -> Sampled:
        """Keep the guesses that were right; the others' slots are free again."""
        right = part.draft.accepted(sampled)
        segment = part.feed.segment
        self.forward.forest.truncate(segment, segment.end - len(part.draft) + right)
        last = sampled[right]
        if not part.draft:
            return last
        # Where a grammar leaves no choice, the guess stands for whatever was sampled.
        pairs = zip(part.draft.expected[:right], part.draft.token_ids, strict=False)
        tokens = [guess if wanted is None else wanted for wanted, guess in pairs]
        if isinstance(last, NonFiniteLogitsError):
            return Verified(tuple(tokens), len(part.draft), last)
        return Verified((*tokens, last), len(part.draft))

    def _fail_pass(self, parts: list[Part], error: Exception) -> None:
        """No memory: the request that holds most ends, the others try again. Otherwise all end."""
        requests = list({id(part.request): part.request for part in parts}.values())
        if _is_out_of_memory(error):
            largest = max(requests, key=lambda r: r.ledger.slots + r._waiting_rows())
            if not isinstance(error, OutOfSlotsError):
                reason = (str(error) or type(error).__name__).splitlines()[0]
                error.__traceback__ = None  # its frames hold the tensors that took the memory
                error = OutOfSlotsError(
                    f"out of memory with {largest.ledger.slots} KV-cache slots held ({reason}); "
                    "ask for smaller budgets or fewer branches"
                )
            requests = [largest]
            if self.forward.device.type == "cuda":
                torch.cuda.empty_cache()
        for request in requests:
            self._resume(request, error)

    def _resume(self, request: Request[Any], error: Exception | None = None) -> None:
        """Send a generator its tokens, or throw the error into it; take its next wishes."""
        steps = request._steps
        if steps is None:
            return
        try:
            if error is not None:
                feeds = steps.throw(error)
            elif request._feeds:
                own = [
                    s
                    for s, feed in zip(request._sampled, request._feeds, strict=True)
                    if not feed.shared
                ]
                feeds = steps.send(own)
            else:
                feeds = next(steps)
            if not feeds:
                raise ValueError("the request wants nothing fed; it would never go on")
            for feed in feeds:
                self.forward.check(feed.token_ids)
                if feed.start is not None:
                    self.forward.forest.truncate(feed.segment, feed.start)
            feeds = [*(f for f in request._shared if not f.segment.released), *feeds]
            request._shared = []
        except StopIteration as stop:
            self._end(request, result=stop.value)
        except Exception as failure:  # noqa: BLE001  it belongs to the request's caller
            self._end(request, error=failure)
        except BaseException:  # the driver is interrupted in what may be another's request
            self._end(request, error=RequestCancelled("the request was interrupted"))
            raise
        else:
            request._feeds = feeds
            request._fed = [0] * len(feeds)
            request._sampled = [None] * len(feeds)

    def _end(
        self, request: Request[Any], *, result: Any = None, error: BaseException | None = None
    ) -> None:
        if request.done:
            return
        try:
            if request._steps is not None:
                request._steps.close()
        except Exception as failure:  # noqa: BLE001  it fails while it is closed
            error = error or failure
        request._result, request._error = result, error
        request._feeds = []
        if request in self._live:
            self._live.remove(request)
        else:
            self._incoming.remove(request.caller, request)
        for segment in list(request.ledger.segments):
            self.forward.forest.release(segment)
        request.done = True


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        # torch's allocator on the CPU, on Windows and elsewhere
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
    )
