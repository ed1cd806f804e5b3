"""Many chat answers at once: a thread or a task waits for each, the engine steps them together.

langchain-core's `invoke` does callbacks, tracing, cache and rate limit around each answer. So a
batch is as many `invoke`s, each in a thread that sleeps, or as many `ainvoke`s; one thread drives
the engine, and every forward pass feeds all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.runnables.config import ContextThreadPoolExecutor

if TYPE_CHECKING:
    from langchain_pos.engine.scheduler.request import Request

T = TypeVar("T")

BATCH_THREADS = 256
"""Answers under way at once, at most, where the caller names no bound. A sleeping thread costs
little; how many are decoded together is up to the engine's slots."""


class _UnderWay:
    """The requests of one batch, so that all of them can be cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request[Any]] = []
        self._over = False

    def add(self, request: Request[Any]) -> None:
        with self._lock:
            if not self._over:
                self._requests.append(request)
                return
        request.cancel()

    def cancel(self) -> None:
        with self._lock:
            self._over = True
        for request in self._requests:
            request.cancel()


_batch: ContextVar[_UnderWay | None] = ContextVar("langchain_pos_batch", default=None)


def current_batch() -> Hashable | None:
    """The batch that this thread or task works for; its answers take turns with those of others."""
    return _batch.get()


def belongs_to_batch(request: Request[Any]) -> None:
    """Let the batch that this thread or task works for, if it does, cancel the request."""
    batch = _batch.get()
    if batch is not None:
        batch.add(request)


@contextmanager
def one_batch() -> Iterator[None]:
    """What is asked meanwhile, in threads and tasks that start here too, belongs to one batch.

    An error cancels what is under way of it.
    """
    under_way = _UnderWay()
    outer = _batch.set(under_way)
    try:
        yield
    except BaseException:
        under_way.cancel()
        raise
    finally:
        _batch.reset(outer)


def side_by_side(
    call: Callable[[int], T], count: int, *, limit: int, return_exceptions: bool = False
) -> list[T | Exception]:
    """`[call(0), call(1), …]`, at most `limit` of them at once.

    Where one fails and exceptions are not returned, the others are cancelled and it is raised.
    """
    if count == 0:
        return []

    def one(place: int) -> T | Exception:
        try:
            return call(place)
        except Exception as error:
            if return_exceptions:
                return error
            raise

    if count == 1:
        return [one(0)]
    threads = min(count, limit, BATCH_THREADS)
    with ContextThreadPoolExecutor(max_workers=threads) as pool, one_batch():
        futures = [pool.submit(one, place) for place in range(count)]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = _first_error(futures, done)
            if failed is not None:
                raise failed
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


def _first_error(futures: list[Future[Any]], done: set[Future[Any]]) -> BaseException | None:
    errors = (future.exception() for future in futures if future in done)
    return next((error for error in errors if error is not None), None)
