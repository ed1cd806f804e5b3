"""An answer that is on its way: its chunks as they come, for sync and async callers."""

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
    """One question on its way.

    Args:
        pending: its work.
        tracer: is told its spans; None where nobody listens.
    """

    def __init__(self, pending: Pending[ReasoningResult], tracer: RunTracer | None) -> None:
        self.pending = pending
        self._tracer = tracer

    def chunks(self) -> Generator[ReasoningChunk, None, ReasoningResult]:
        """The chunks as they come; returns the result, or raises what has ended the question.

        Closing the iterator cancels it.
        """
        try:
            with closing(self.pending.stream()) as events:
                for event in events:
                    if isinstance(event, ReasoningChunk):
                        yield event
                    elif self._tracer is not None:
                        run(self._tracer.tell(event))
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
                        await arun(self._tracer.tell(event))
        except BaseException as error:
            if self._tracer is not None:
                await arun(self._tracer.fail(error))
            raise

    def take_events(self) -> None:
        """Tell the tracer what has happened; nobody wants the chunks."""
        while self.pending.events:
            event = self.pending.events.popleft()
            if self._tracer is not None and not isinstance(event, ReasoningChunk):
                run(self._tracer.tell(event))

    def fail(self, error: BaseException) -> None:
        """Tell the tracer what has ended the question."""
        if self._tracer is not None:
            run(self._tracer.fail(error))


def answer_all(
    count: int, limit: int | None, ask: Callable[[int], PendingAnswer]
) -> Generator[tuple[int, ReasoningResult | Exception], None, None]:
    """Answer many questions together, each with its place, as they are done.

    Closing the iterator cancels those that are still under way.

    Args:
        count: how many there are.
        limit: how many are under way at the same time, at most; None for all.
        ask: asks the one at a place; may raise what is that one's answer then.
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
                except Exception as error:  # noqa: BLE001 - each question has its own
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
