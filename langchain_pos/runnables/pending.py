"""Answers in progress: their chunks as they arrive, for sync and async callers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING

from langchain_pos.engine.scheduler.pending import cancel_all, wait_for_news
from langchain_pos.errors import RequestCancelled
from langchain_pos.results.result import ReasoningChunk, ReasoningResult
from langchain_pos.runnables.tracing import RunTracer, arun, run

if TYPE_CHECKING:
    from langchain_pos.engine.scheduler.pending import Pending


class PendingAnswer:
    """One question in progress.

    Args:
        pending: its work.
        tracer: receives its spans; None if no handler listens.
    """

    def __init__(self, pending: Pending[ReasoningResult], tracer: RunTracer | None) -> None:
        self.pending = pending
        self._tracer = tracer

    def chunks(self) -> Generator[ReasoningChunk, None, ReasoningResult]:
        """The chunks as they arrive; returns the result, or raises the question's error.

        Closing the iterator cancels it.
        """
        try:
            with closing(self.pending.stream()) as events:
                for event in events:
                    if isinstance(event, ReasoningChunk):
                        yield event
                    elif self._tracer is not None:
                        run(self._tracer.handle(event))
            return self.pending.result()
        except BaseException as error:
            self.fail(error)
            raise

    async def achunks(self) -> AsyncGenerator[ReasoningChunk, None]:
        """See `chunks`."""
        try:
            async with aclosing(self.pending.astream()) as events:
                async for event in events:
                    if isinstance(event, ReasoningChunk):
                        yield event
                    elif self._tracer is not None:
                        await arun(self._tracer.handle(event))
        except BaseException as error:
            if self._tracer is not None:
                await arun(self._tracer.fail(error))
            raise

    def take_events(self) -> None:
        """Pass spans on to the tracer and drop the chunks."""
        while self.pending.events:
            event = self.pending.events.popleft()
            if self._tracer is not None and not isinstance(event, ReasoningChunk):
                run(self._tracer.handle(event))

    def fail(self, error: BaseException) -> None:
        """Pass the error that ended the question on to the tracer."""
        if self._tracer is not None:
            run(self._tracer.fail(error))


def answer_all(
    count: int, limit: int | None, ask: Callable[[int], PendingAnswer]
) -> Generator[tuple[int, ReasoningResult | Exception], None, None]:
    """Answer many questions together, yielding each with its index as it is done.

    Closing the iterator cancels those still in progress.

    Args:
        count: number of questions.
        limit: how many may be in progress at once; None for all.
        ask: asks the question at an index; an error that it raises becomes that question's answer.
    """
    ahead = iter(range(count))
    under_way: dict[int, PendingAnswer] = {}
    try:
        while True:
            while len(under_way) < (limit or count):
                place = next(ahead, None)
                if place is None:
                    break
                try:
                    under_way[place] = ask(place)
                except Exception as error:  # noqa: BLE001 - it is this question's answer
                    yield place, error
            if not under_way:
                return
            wait_for_news([asked.pending for asked in under_way.values()])
            for place, asked in list(under_way.items()):
                asked.take_events()
                if asked.pending.done and not asked.pending.events:
                    del under_way[place]
                    yield place, _answer(asked)
    except BaseException as stopped:
        for asked in under_way.values():
            asked.fail(stopped)
        raise
    finally:
        cancel_all([asked.pending for asked in under_way.values()])


def _answer(asked: PendingAnswer) -> ReasoningResult | Exception:
    error = asked.pending.error
    if error is None:
        return asked.pending.result()
    asked.fail(error)
    return error if isinstance(error, Exception) else RequestCancelled(repr(error))
