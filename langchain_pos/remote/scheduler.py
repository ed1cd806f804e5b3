"""Runs questions whose model answers over HTTP: tasks on an event loop in a thread of its own.

The same surface as `engine/scheduler.py` (`submit`, `wait`, `stream`, `run`, `cancel`), so that
callbacks, batches and streams need not know where the model is. All callers share one loop, and
thereby one pool of connections, whether they are threads or tasks of loops that come and go.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from langchain_pos.engine.scheduler.pending import Pending
from langchain_pos.errors import RequestCancelled

T = TypeVar("T")

_LOOK = 0.25
"""Seconds between two looks at the clock while waiting; news wake a waiter at once."""


@dataclass(frozen=True)
class _NoSlots:
    """The KV cache is the server's, and it does not say what a question holds of it."""

    peak_slots: int = 0


class RemoteRequest(Pending[T]):
    """A question on its way; see `engine.request.Request`.

    Attributes:
        events: what it has told its caller and nobody has taken yet.
        done: whether it has ended, in whichever way, and its connections are closed.
        cached_tokens: tokens that the server says it did not have to read again.
        passes: forward passes; 0, the server does not tell them.
        shared_slots: 0 for the same reason.
        ledger: the same.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        super().__init__()
        self.cached_tokens = 0
        self.passes = 0
        self.shared_slots = 0
        self.ledger = _NoSlots()
        self._told = told
        self._cancel: Callable[[], None] = lambda: None
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def emit(self, event: Any) -> None:
        """Tell the caller something."""
        super().emit(event)
        self._told()

    def cancel(self) -> None:
        """See `RemoteScheduler.cancel`."""
        self._cancel()


class RemoteScheduler:
    """Many questions on one event loop, in a thread that starts with the first of them.

    Args:
        on_close: awaited on the loop before the thread ends.
    """

    def __init__(self, on_close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._on_close = on_close
        self._lock = threading.Lock()
        self._news = threading.Condition()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    # ----------------------------------------------------------- for the caller

    def submit(
        self, make: Callable[[RemoteRequest[T]], Coroutine[Any, Any, T]]
    ) -> RemoteRequest[T]:
        """Start a question. It runs whether or not somebody waits for it."""
        request: RemoteRequest[T] = RemoteRequest(self._tell)
        request._cancel = partial(self.cancel, request)

        def start() -> None:
            if request._cancelled:
                self._finish(request, None, RequestCancelled("the request was cancelled"))
                return
            request._task = asyncio.get_running_loop().create_task(make(request))
            request._task.add_done_callback(lambda task: self._ended(request, task))

        self._running().call_soon_threadsafe(start)
        return request

    def run(self, request: RemoteRequest[T]) -> T:
        """Wait for the request's result. Cancels it when interrupted."""
        try:
            self.wait(lambda: request.done)
            return request.result()
        finally:
            self.cancel(request)

    def stream(self, request: RemoteRequest[T]) -> Generator[Any, None, None]:
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
        """Sleep until `until()`; it is looked at with every piece of news, and by the clock."""
        with self._news:
            while not until():
                self._news.wait(_LOOK)

    async def await_news(self, until: Callable[[], bool]) -> None:
        """See `wait`; for a task of any loop, and without a thread."""
        waiter = asyncio.get_running_loop(), asyncio.Event()
        with self._news:
            self._waiting.add(waiter)
        try:
            while not until():
                try:
                    # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with news.
                    async with asyncio.timeout(_LOOK):
                        await waiter[1].wait()
                except TimeoutError:
                    continue
                waiter[1].clear()
        finally:
            with self._news:
                self._waiting.discard(waiter)

    def cancel(self, request: RemoteRequest[Any]) -> None:
        """End a request. Its connections are closed when it is done, very soon."""
        if request.done or self._loop is None:
            return
        request._cancelled = True

        def cancel() -> None:
            if request._task is not None:
                request._task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def close(self) -> None:
        """End the thread. Questions under way are cancelled; the next one starts it anew."""
        with self._lock:
            end, self._loop, self._end = self._end, None, None
        if end is not None:
            end()

    # ------------------------------------------------------------- the loop's side

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                # A daemon must not keep the process alive; `finalize` ends it in an orderly way
                # when the engine is no longer used, or the process ends.
                thread = threading.Thread(
                    target=_run, args=(loop, self._on_close), name="langchain-pos-http", daemon=True
                )
                thread.start()
                self._end = weakref.finalize(self, _stop, loop, thread)
                self._loop = loop
            return self._loop

    def _ended(self, request: RemoteRequest[Any], task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._finish(request, None, RequestCancelled("the request was cancelled"))
        elif (error := task.exception()) is not None:
            self._finish(request, None, error)
        else:
            self._finish(request, task.result(), None)

    def _finish(
        self, request: RemoteRequest[Any], result: Any, error: BaseException | None
    ) -> None:
        request._task = None
        request.finish(result, error)
        self._tell()

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()
            waiting = list(self._waiting)
        for loop, event in waiting:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # that loop has been closed; nobody waits there any more
                continue


def _run(
    loop: asyncio.AbstractEventLoop, on_close: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(asyncio.sleep(0))  # what was about to start has a task then
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(on_close())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join()
