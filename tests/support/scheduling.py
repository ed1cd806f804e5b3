"""Requests for tests of the scheduler, several at once, one pass after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from langchain_pos.engine import Engine
from langchain_pos.engine.completion import Completion
from langchain_pos.engine.decoding.sequence import decode
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler.request import Request

Until = Callable[[Callable[[], bool]], None]


@contextmanager
def stepping(engine: Engine) -> Iterator[Until]:
    """The engine's thread rests; the test steps until something is true."""
    scheduler = engine.scheduler

    def until(condition: Callable[[], bool]) -> None:
        while not condition():
            assert scheduler.has_work(), "nothing is left that could make it true"
            scheduler.step()

    with scheduler.paused():
        yield until


def end(request: Request[Any]) -> None:
    """Cancel a request and wait until it has ended."""
    request.cancel()
    with suppress(Exception):
        request.wait()


def in_threads(*calls: Callable[[], Any], hold: Engine | None = None) -> list[Any]:
    """The result of each call, or the exception that it raised; each in a thread of its own.

    Args:
        calls: what to call.
        hold: rests until each of them has submitted a request, so that they begin together.
    """
    results: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:  # noqa: BLE001
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    with ExitStack() as held:
        if hold is not None:
            held.enter_context(hold.scheduler.paused())
        for thread in threads:
            thread.start()
        while hold is not None and len(hold.scheduler._incoming) < len(calls):
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    return results


def generating(
    engine: Engine, prompt: list[int], tokens: int, **kwargs: Any
) -> Callable[[Request[Any]], Coroutine[Any, Any, Completion]]:
    """What `Engine.generate` runs, for tests that submit it themselves."""

    async def steps(request: Request[Any]) -> Completion:
        sequence = engine.sequence(
            engine.scheduler.root(request),
            prompt,
            max_new_tokens=tokens,
            sampling=SamplingParams(),
            seed=0,
            on_text=request.emit,
            **kwargs,
        )
        await decode([sequence])
        return sequence.completion()

    return steps
