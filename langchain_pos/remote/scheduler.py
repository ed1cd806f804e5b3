"""Runs questions to a model over HTTP: tasks on an event loop in its own thread.

All callers share one loop, and thus one connection pool, whether they are threads or tasks of
short-lived loops.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from langchain_pos.engine.scheduler.pending import Pending
from langchain_pos.errors import RequestCancelled

T = TypeVar("T")


class RemoteRequest(Pending[T]):
    """A question in progress. When it is `done`, its connections are closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """See `Pending`."""
        if self.done:
            return
        self._cancelled = True
        with suppress(RuntimeError):  # the loop is closed, and everything on it was cancelled
            self._loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def start(self, make: Callable[[Pending[T]], Coroutine[Any, Any, T]]) -> None:
        """Begin, on the loop."""
        if self._cancelled:
            self.finish(error=_cancelled())
            return
        self._task = asyncio.get_running_loop().create_task(make(self))
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if task.cancelled():
            self.finish(error=_cancelled())
        elif (error := task.exception()) is not None:
            self.finish(error=error)
        else:
            self.finish(task.result())


def _cancelled() -> RequestCancelled:
    return RequestCancelled("the request was cancelled")


class RemoteScheduler:
    """Many questions on one event loop, in a thread that starts with the first of them.

    Args:
        on_close: awaited on the loop before the thread ends.
    """

    def __init__(self, on_close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._on_close = on_close
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def submit(self, make: Callable[[Pending[T]], Coroutine[Any, Any, T]]) -> RemoteRequest[T]:
        """Start a question. It runs whether or not a caller waits for it."""
        loop = self._running()
        request: RemoteRequest[T] = RemoteRequest(loop)
        loop.call_soon_threadsafe(request.start, make)
        return request

    def close(self) -> None:
        """End the thread. Questions in progress are cancelled; the next one restarts it."""
        with self._lock:
            end, self._loop, self._end = self._end, None, None
        if end is not None:
            end()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                # A daemon does not keep the process alive; `finalize` ends it properly when the
                # engine is no longer used, or the process ends.
                thread = threading.Thread(
                    target=_run, args=(loop, self._on_close), name="langchain-pos-http", daemon=True
                )
                thread.start()
                self._end = weakref.finalize(self, _stop, loop, thread)
                self._loop = loop
            return self._loop


def _run(
    loop: asyncio.AbstractEventLoop, on_close: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(asyncio.sleep(0))  # so that everything about to start has a task
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
