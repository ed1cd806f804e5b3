"""Who drives: a caller alone drives himself, one thread does for all who wait together."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from langchain_pos.engine import Engine
from langchain_pos.engine.completion import Completion
from langchain_pos.engine.decoding.sequence import Steps, decode
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler import driver
from langchain_pos.engine.scheduler.request import Request
from tests.support.engine_requests import hold_until_submitted, in_threads
from tests.support.tiny import ids, submit, tiny_engine

NAME = "langchain-pos-engine"
PROMPTS = [ids(length, seed=length) for length in (5, 9, 14, 20, 30)]


@pytest.fixture
def engine() -> Engine:
    """An engine whose sequences use their whole budget."""
    return tiny_engine()


def drivers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the thread that runs each pass; grows."""
    names: list[str] = []
    run = engine.forward.run

    def noted(*args: Any) -> Any:
        names.append(threading.current_thread().name)
        return run(*args)

    monkeypatch.setattr(engine.forward, "run", noted)
    return names


def told(engine: Engine, prompt: list[int], tokens: int = 30) -> Request[Completion]:
    """A request that tells its caller something with every token."""

    def steps(request: Request[Completion]) -> Steps[Completion]:
        sequence = engine.sequence(
            engine.scheduler.root(request, prompt),
            prompt,
            max_new_tokens=tokens,
            sampling=SamplingParams(),
            seed=0,
            on_text=request.emit,
        )
        yield from decode([sequence])
        return sequence.completion()

    return submit(engine, steps)


async def read(engine: Engine, request: Request[Completion]) -> list[int]:
    """Waits for every piece of news."""
    try:
        while not request.done:
            await engine.scheduler.await_news(lambda: bool(request.events) or request.done)
            request.events.clear()
    finally:
        engine.scheduler.cancel(request)
    return list(request.result().token_ids)


def started() -> int:
    """Threads of engines that live."""
    return sum(thread.name == NAME for thread in threading.enumerate())


def test_who_is_alone_drives_himself(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is started for him."""
    before, names = started(), drivers(engine, monkeypatch)
    engine.generate(PROMPTS[0], max_new_tokens=5)
    assert set(names) == {threading.current_thread().name}
    assert started() == before


def test_one_thread_drives_for_threads_that_wait_together(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not take turns: the first may drive until the second comes, and the last alone."""
    expected = [engine.generate(prompt, max_new_tokens=30).token_ids for prompt in PROMPTS]
    names = drivers(engine, monkeypatch)
    hold_until_submitted(engine, monkeypatch, len(PROMPTS))

    def answer(prompt: list[int]) -> Callable[[], list[int]]:
        def call() -> list[int]:
            request = told(engine, prompt)
            return [*engine.scheduler.stream(request)] and list(request.result().token_ids)

        return call

    assert in_threads(*map(answer, PROMPTS)) == list(map(list, expected))
    spells = [(name, len(list(spell))) for name, spell in groupby(names)]
    assert max(spells, key=lambda spell: spell[1])[0] == NAME
    together = [name for name, _ in spells[1:-1]]
    assert set(together) <= {NAME}, spells


def test_one_thread_drives_for_all_tasks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of several event loops, and none of their executors' threads is needed."""
    expected = [list(engine.generate(p, max_new_tokens=30).token_ids) for p in PROMPTS]
    names = drivers(engine, monkeypatch)

    async def all_of_them() -> list[list[int]]:
        requests = [told(engine, prompt) for prompt in PROMPTS]
        with ThreadPoolExecutor(1) as pool:
            loop, free = asyncio.get_running_loop(), threading.Event()
            loop.set_default_executor(pool)
            blocked = loop.run_in_executor(None, free.wait)
            try:
                return await asyncio.gather(*(read(engine, request) for request in requests))
            finally:
                free.set()
                await blocked

    answers = in_threads(*[lambda: asyncio.run(all_of_them())] * 2)
    assert answers == [expected, expected]
    assert set(names) == {NAME}
    assert engine.slots_in_use == 0


def test_a_task_that_is_cancelled_stops_its_request_alone(engine: Engine) -> None:
    """The others' answers do not change, and its slots are free."""
    expected = list(engine.generate(PROMPTS[1], max_new_tokens=30).token_ids)

    async def main() -> list[int]:
        leaving = asyncio.create_task(read(engine, told(engine, PROMPTS[0], tokens=500)))
        staying = asyncio.create_task(read(engine, told(engine, PROMPTS[1])))
        await asyncio.sleep(0.02)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying

    assert asyncio.run(main()) == expected
    assert engine.slots_in_use == 0


def test_a_loop_that_is_gone_does_not_stop_the_others(engine: Engine) -> None:
    """Closed with a task asleep; nobody can be told there."""
    loop = asyncio.new_event_loop()
    lost = told(engine, PROMPTS[0], tokens=400)
    task = loop.create_task(read(engine, lost))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    loop.close()
    expected = list(engine.generate(PROMPTS[2], max_new_tokens=30).token_ids)
    assert asyncio.run(read(engine, told(engine, PROMPTS[2]))) == expected
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_an_error_of_driving_reaches_one_and_the_others_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the first who waits had driven himself."""
    expected = list(engine.generate(PROMPTS[1], max_new_tokens=30).token_ids)
    step, raised = engine.scheduler._step, []

    def broken() -> None:
        if not raised and len(engine.scheduler._driver._asleep) == 2:
            raised.append(True)
            raise LookupError("no such thing")
        step()

    monkeypatch.setattr(engine.scheduler, "_step", broken)

    async def main() -> list[Any]:
        requests = [told(engine, prompt, tokens=30) for prompt in PROMPTS[:2]]
        tasks = [read(engine, request) for request in requests]
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second = asyncio.run(main())
    assert sorted(map(type, [first, second]), key=str) == [LookupError, list]
    assert second == expected or first == list(
        engine.generate(PROMPTS[0], max_new_tokens=30).token_ids
    )
    assert engine.slots_in_use == 0


@pytest.mark.parametrize("failing_first", [False, True])
def test_a_condition_that_fails_is_its_own_callers_error(
    engine: Engine, *, failing_first: bool
) -> None:
    """The thread that drives for all goes on for the others."""
    expected = list(engine.generate(PROMPTS[1], max_new_tokens=30).token_ids)
    request = told(engine, PROMPTS[1])

    def failing() -> bool:
        if request.passes > 3:
            raise LookupError("no such thing")
        return False

    async def main() -> list[Any]:
        tasks = [read(engine, request), engine.scheduler.await_news(failing)]
        order = tasks[::-1] if failing_first else tasks
        return await asyncio.gather(*order, return_exceptions=True)

    found = asyncio.run(main())
    answer, error = found[::-1] if failing_first else found
    assert answer == expected
    assert isinstance(error, LookupError)
    assert engine.slots_in_use == 0


def test_an_idle_thread_holds_no_model() -> None:
    """The engine goes when nobody uses it; the thread waits a while longer."""
    engine = tiny_engine()
    asyncio.run(read(engine, told(engine, PROMPTS[0])))
    thread = engine.scheduler._driver._thread
    assert thread is not None
    gone = weakref.ref(engine.forward)
    del engine
    while gone() is not None and thread.is_alive():  # it may not have come to rest yet
        gc.collect()
        time.sleep(0.01)
    assert thread.is_alive()


def test_an_idle_thread_ends_and_starts_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who comes later is served as the first."""
    monkeypatch.setattr(driver, "_IDLE", 0.01)
    monkeypatch.setattr(driver, "_PAUSE", 0.01)
    first = asyncio.run(read(engine, told(engine, PROMPTS[0])))
    thread = engine.scheduler._driver._thread
    if thread is not None:
        thread.join()
    assert engine.scheduler._driver._thread is None
    assert asyncio.run(read(engine, told(engine, PROMPTS[0]))) == first


def test_who_is_interrupted_in_his_sleep_ends_his_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while another thread drives; the other one's answer does not change."""
    expected = engine.generate(PROMPTS[3], max_new_tokens=60).token_ids
    other = told(engine, PROMPTS[3], tokens=60)
    mine = told(engine, PROMPTS[4], tokens=400)
    sleep, interrupted = driver.Driver.sleep, threading.Event()
    run = engine.forward.run

    def held(*args: Any) -> Any:
        interrupted.wait()
        return run(*args)

    class Broken(threading.Event):
        """As if a signal had come."""

        def wait(self, timeout: float | None = None) -> bool:
            interrupted.set()
            raise KeyboardInterrupt

    def interrupt(self: driver.Driver, until: driver.Until, drive: driver.Drive) -> None:
        if threading.current_thread() is threading.main_thread():
            monkeypatch.setattr(driver.threading, "Event", Broken)
        sleep(self, until, drive)

    monkeypatch.setattr(engine.forward, "run", held)
    monkeypatch.setattr(driver.Driver, "sleep", interrupt)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engine.scheduler.run, other)
        while not engine.scheduler._turn.taken:
            time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            engine.scheduler.run(mine)
        monkeypatch.undo()
        assert answer.result().token_ids == expected
    assert engine.slots_in_use == 0


COUNTED = """
import os, threading, torch
from langchain_pos.engine.cpu.openmp import give_back_workers

torch.set_num_threads(4)
def threads():
    return len(os.listdir("/proc/self/task"))
def work():
    before = threads()
    torch.ones(4_000_000).exp()
    during = threads()
    give_back_workers()
    print(during - before, threads() - before)
    give_back_workers()
    torch.ones(4_000_000).exp()
    print(threads() - before)
worker = threading.Thread(target=work)
worker.start()
worker.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_thread_gives_its_workers_back() -> None:
    """They are gone, and come back with the next work; where PyTorch runs on GNU's OpenMP."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True
    )
    came, left, again = map(int, done.stdout.split())
    if "libgomp" not in _loaded_libraries():
        pytest.skip("PyTorch runs on another library than GNU's OpenMP")
    assert came == 3
    assert left == 0
    assert again == 3


def _loaded_libraries() -> str:
    return Path("/proc/self/maps").read_text("utf-8")
