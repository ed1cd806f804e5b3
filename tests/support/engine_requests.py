"""Requests as threads and schedulers meet them, for tests of the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from langchain_pos.engine import Engine
from langchain_pos.engine.completion import Completion
from langchain_pos.engine.decoding.sequence import Steps, decode
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler.request import Request


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """The result of each call, or the exception that it raised; each in a thread of its own."""
    results: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        try:
            results[index] = calls[index]()
        except BaseException as error:  # noqa: BLE001
            results[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def hold_until_submitted(engine: Engine, monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    """The first pass waits until so many requests are there."""
    scheduler, run = engine.scheduler, engine.forward.run

    def patient(*args: Any) -> Any:
        while len(scheduler._live) + len(scheduler._incoming) < requests:
            time.sleep(0.001)
        monkeypatch.setattr(engine.forward, "run", run)
        return run(*args)

    monkeypatch.setattr(engine.forward, "run", patient)


def generating(
    engine: Engine, prompt: list[int], tokens: int, **kwargs: Any
) -> Callable[[Request[Any]], Steps[Completion]]:
    """What `Engine.generate` runs, for tests that step the scheduler themselves."""

    def steps(request: Request[Any]) -> Steps[Completion]:
        sequence = engine.sequence(
            engine.scheduler.root(request),
            prompt,
            max_new_tokens=tokens,
            sampling=SamplingParams(),
            seed=0,
            on_text=request.emit,
            **kwargs,
        )
        yield from decode([sequence])
        return sequence.completion()

    return steps
