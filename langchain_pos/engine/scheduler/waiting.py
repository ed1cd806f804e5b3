"""Waiting for a request: its events as they come, in a thread or beside an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any

from langchain_pos.errors import AnswerTimeoutError

if TYPE_CHECKING:
    from langchain_pos.engine.scheduler.request import Request
    from langchain_pos.engine.scheduler.scheduler import Scheduler


def events(
    scheduler: Scheduler, request: Request[Any], timeout: float | None = None
) -> Generator[Any, None, None]:
    """A request's events as they come; its error at the end if it has one.

    Closing the iterator cancels the request.

    Args:
        scheduler: runs it.
        request: queued already.
        timeout: seconds from the first wait; looked at between forward passes.

    Raises:
        AnswerTimeoutError: the seconds are over.
    """
    news = _News(request, timeout)
    try:
        while True:
            scheduler.wait(news)
            while request.events:
                yield request.events.popleft()
            if request.done and not request.events:
                request.result()
                return
            news.check()
    finally:
        scheduler.cancel(request)


async def aevents(
    scheduler: Scheduler, request: Request[Any], timeout: float | None = None
) -> AsyncGenerator[Any, None]:
    """See `events`; one await for each piece of news, and no thread of the caller's.

    Ends only when the request's slots are free, also when the task is cancelled.
    """
    news = _News(request, timeout)
    try:
        while True:
            await scheduler.await_news(news)
            while request.events:
                yield request.events.popleft()
            if request.done and not request.events:
                request.result()
                return
            news.check()
    finally:
        scheduler.cancel(request)
        while not request.done:  # a pass is under way; its slots are free when it is over
            await asyncio.sleep(0.001)


class _News:
    """True once a request has an event, has ended, or has used up its time."""

    def __init__(self, request: Request[Any], timeout: float | None) -> None:
        self._request = request
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout

    def __call__(self) -> bool:
        return bool(self._request.events) or self._request.done or self._late

    @property
    def _late(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def check(self) -> None:
        """Raise when the time is over."""
        if self._late:
            raise AnswerTimeoutError(
                f"the answer was not complete after timeout={self._timeout} seconds; give it more "
                "time, or smaller budgets"
            )
