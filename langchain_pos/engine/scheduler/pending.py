"""Work in progress that reports events, and waiting for it: in a thread, or on any event loop.

One class for both kinds of work: the engine's scheduler, and tasks that call a server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Generic, TypeVar

from langchain_pos.errors import AnswerTimeoutError

T = TypeVar("T")
_LOOK = 0.25
"""Seconds after which a waiter checks again. Events wake it at once, but on some systems a thread
that waits indefinitely receives no signals."""


class Pending(ABC, Generic[T]):
    """A result in progress, and the events that precede it.

    Attributes:
        events: reported, but not yet taken.
        done: whether it has ended in any way, and holds no resources any more.
    """

    def __init__(self) -> None:
        self.events: deque[Any] = deque()
        self.done = False
        self._result: T | None = None
        self._error: BaseException | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()
        self._changing = threading.Lock()

    # ------------------------------------------------------------------ for the worker

    def emit(self, event: Any) -> None:
        """Report an event to the caller."""
        self.events.append(event)
        self._notify()

    def finish(self, result: T | None = None, error: BaseException | None = None) -> None:
        """End with a result or an error. Only the first call counts."""
        if self.done:
            return
        self._result, self._error = result, error
        self.done = True
        self._notify()

    @abstractmethod
    def cancel(self) -> None:
        """Request its end: `done` follows soon. No effect if it has ended."""

    def _notify(self) -> None:
        for notify in self._listeners:
            notify()

    # ----------------------------------------------------------------- for the caller

    def result(self) -> T:
        """The result; raises the error that ended it. Only once it is `done`."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    @property
    def error(self) -> BaseException | None:
        """The error that ended it, None if nothing went wrong."""
        return self._error

    @contextmanager
    def listening(self, notify: Callable[[], None]) -> Iterator[None]:
        """Have `notify` called, in any thread, after every event and at the end."""
        with self._changing:
            self._listeners = (*self._listeners, notify)
        try:
            yield
        finally:
            with self._changing:
                self._listeners = tuple(each for each in self._listeners if each is not notify)

    def wait(self, timeout: float | None = None) -> T:
        """Block until it has ended. Events are not taken.

        Args:
            timeout: seconds.

        Returns:
            the result.

        Raises:
            AnswerTimeoutError: the time is up; it has been cancelled.
        """
        deadline, news = _Deadline(timeout), threading.Event()

        def ended() -> None:
            if self.done:
                news.set()

        try:
            with self.listening(ended):
                while not self.done:
                    deadline.check()
                    news.wait(deadline.look)
                    news.clear()
        finally:
            self.stop()
        return self.result()

    def stream(self, timeout: float | None = None) -> Generator[Any, None, None]:
        """The events as they arrive; raises the error at the end, if there is one.

        Closing the iterator cancels the work, and returns when it has ended.

        Args:
            timeout: seconds from the first event asked for to the end.

        Raises:
            AnswerTimeoutError: the time is up; it has been cancelled.
        """
        deadline, news = _Deadline(timeout), threading.Event()
        try:
            with self.listening(news.set):
                while True:
                    news.clear()
                    while self.events:
                        yield self.events.popleft()
                    if self.done and not self.events:
                        break
                    deadline.check()
                    news.wait(deadline.look)
        finally:
            self.stop()
        self.result()

    async def astream(self, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        """See `stream`; suspends a task of any event loop instead of a thread."""
        deadline, news = _Deadline(timeout), asyncio.Event()
        loop = asyncio.get_running_loop()

        def notify() -> None:
            with suppress(RuntimeError):  # the loop has been closed, with its waiters
                loop.call_soon_threadsafe(news.set)

        try:
            with self.listening(notify):
                while True:
                    news.clear()
                    while self.events:
                        yield self.events.popleft()
                    if self.done and not self.events:
                        break
                    deadline.check()
                    # Not `wait_for`: in Python 3.11 it loses a cancellation that coincides with
                    # an event.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(deadline.look):
                            await news.wait()
        finally:
            self.cancel()
            while not self.done:  # the current pass ends first; then nothing is held any more
                await asyncio.sleep(0.001)
        self.result()

    def stop(self) -> None:
        """Cancel it, if it has not ended, and wait until it has."""
        cancel_all([self])


def cancel_all(pending: Sequence[Pending[Any]]) -> None:
    """Cancel those that have not ended, and return when all have."""
    pending = [each for each in pending if not each.done]
    if not pending:
        return
    news = threading.Event()
    with ExitStack() as listening:
        for each in pending:
            listening.enter_context(each.listening(news.set))
            each.cancel()
        while not all(each.done for each in pending):
            news.wait(_LOOK)
            news.clear()


def wait_for_news(pending: Sequence[Pending[Any]]) -> None:
    """Block until one of several has an event or has ended."""
    news = threading.Event()
    with ExitStack() as listening:
        for each in pending:
            listening.enter_context(each.listening(news.set))
        while not any(each.events or each.done for each in pending):
            news.wait(_LOOK)
            news.clear()


class _Deadline:
    """When a waiter's time is up."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout

    @property
    def look(self) -> float:
        """Seconds until the next check of the clock."""
        if self._until is None:
            return _LOOK
        return min(max(self._until - time.monotonic(), 0.0), _LOOK)

    def check(self) -> None:
        if self._until is not None and time.monotonic() >= self._until:
            raise AnswerTimeoutError(
                f"the answer was not complete after timeout={self._timeout} seconds; raise the "
                "timeout, or use smaller budgets"
            )
