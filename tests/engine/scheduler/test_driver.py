"""One thread drives the engine for every caller: how it starts, rests, fails and ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from langchain_pos.engine import Engine
from langchain_pos.engine.completion import Completion
from langchain_pos.engine.decoding.sequence import Feed, decode, feed
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler import driver
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import AnswerTimeoutError, RequestCancelled
from tests.support.scheduling import generating, in_threads, stepping
from tests.support.tiny import ids, submit, tiny_engine

NAME = "langchain-pos-engine"
PROMPTS = [ids(length, seed=length) for length in (5, 9, 14, 20, 30)]


@pytest.fixture
def engine() -> Engine:
    """An engine whose sequences use their whole budget."""
    return tiny_engine()


def drivers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The thread that runs each pass; grows."""
    threads: list[threading.Thread] = []
    run = engine.forward.run

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return run(*args)

    monkeypatch.setattr(engine.forward, "run", noted)
    return threads


def asked(engine: Engine, prompt: list[int], tokens: int = 30) -> Request[Completion]:
    """A request that has an event for every token."""
    return submit(engine, generating(engine, prompt, tokens), reserve=600)


async def read(request: Request[Completion]) -> list[int]:
    """Takes every event as it comes."""
    async for _ in request.astream():
        pass
    return list(request.result().token_ids)


def written(engine: Engine, prompt: list[int], tokens: int = 30) -> list[int]:
    """What the engine writes when it has nothing else to do."""
    return list(engine.generate(prompt, max_new_tokens=tokens).token_ids)


def test_every_pass_runs_in_one_thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks: a caller alone, several threads, tasks of several event loops."""
    expected = [written(engine, prompt) for prompt in PROMPTS]
    threads = drivers(engine, monkeypatch)

    def answer(prompt: list[int]) -> Callable[[], list[int]]:
        def call() -> list[int]:
            request = asked(engine, prompt)
            return [*request.stream()] and list(request.result().token_ids)

        return call

    async def all_of_them() -> list[list[int]]:
        return await asyncio.gather(*(read(asked(engine, prompt)) for prompt in PROMPTS))

    assert written(engine, PROMPTS[0]) == expected[0]
    assert in_threads(*map(answer, PROMPTS)) == expected
    assert in_threads(*[lambda: asyncio.run(all_of_them())] * 2) == [expected, expected]
    assert [thread.name for thread in set(threads)] == [NAME]
    assert engine.slots_in_use == 0


def test_a_request_runs_whether_or_not_somebody_waits(engine: Engine) -> None:
    """Its events are there when somebody looks."""
    request = asked(engine, PROMPTS[0])
    while not request.done:
        time.sleep(0.001)
    assert "".join(request.stream()) == request.result().text


def test_tasks_need_none_of_the_loops_threads(engine: Engine) -> None:
    """An executor whose only thread is taken does not keep an answer back."""
    expected = written(engine, PROMPTS[0])

    async def main() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            loop, free = asyncio.get_running_loop(), threading.Event()
            loop.set_default_executor(pool)
            blocked = loop.run_in_executor(None, free.wait)
            try:
                return await read(asked(engine, PROMPTS[0]))
            finally:
                free.set()
                await blocked

    assert asyncio.run(main()) == expected


def test_a_task_that_is_cancelled_stops_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' answers do not change, and its slots are free when the task has ended."""
    expected = written(engine, PROMPTS[1])
    run, cancelled, lost = engine.forward.run, threading.Event(), None

    def wait_once_it_runs(*args: Any, **kwargs: Any) -> Any:
        if lost is not None and lost.passes:  # or a quick machine might have written all by then
            cancelled.wait(60)
        return run(*args, **kwargs)

    monkeypatch.setattr(engine.forward, "run", wait_once_it_runs)

    async def main() -> tuple[BaseException | None, list[int]]:
        nonlocal lost
        lost = asked(engine, PROMPTS[0], tokens=500)
        leaving = asyncio.create_task(read(lost))
        staying = asyncio.create_task(read(asked(engine, PROMPTS[1])))
        await asyncio.sleep(0)  # a task that is cancelled before it begins has nothing to stop
        while not lost.passes:
            await asyncio.sleep(0.001)
        leaving.cancel()
        while not lost.cancelled:
            await asyncio.sleep(0.001)
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return lost.error, await staying

    error, text = asyncio.run(main())
    assert isinstance(error, RequestCancelled)
    assert text == expected
    assert engine.slots_in_use == 0


def test_a_loop_that_is_gone_does_not_stop_the_others(engine: Engine) -> None:
    """Closed with a task asleep; nobody can be woken there."""
    expected = written(engine, PROMPTS[2])
    loop = asyncio.new_event_loop()
    lost = asked(engine, PROMPTS[0], tokens=400)
    task = loop.create_task(read(lost))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    loop.close()
    assert asyncio.run(read(asked(engine, PROMPTS[2]))) == expected
    lost.cancel()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_local_request_awaited_under_asyncio_fails_with_the_reason(engine: Engine) -> None:
    """Nothing is decoded, and the error names what would run it."""
    prompt = ids(500)
    segment = engine.forward.forest.root(Ledger())
    steps = engine.sequence(segment, prompt, max_new_tokens=4, sampling=SamplingParams(), seed=0)

    async def decoding() -> None:
        await decode([steps])

    async def feeding() -> None:
        await feed([Feed(segment, prompt)])

    for wrong in (decoding, feeding):
        with pytest.raises(RuntimeError, match=r"feeds for a local.*Scheduler\.submit") as loud:
            asyncio.run(wrong())
        assert len(str(loud.value)) < 200, "the tokens are not in it"


def test_a_request_that_never_starts_warns_of_nothing(
    engine: Engine, recwarn: pytest.WarningsRecorder
) -> None:
    """Its coroutine is made when it is admitted."""
    with engine.scheduler.paused():
        request = asked(engine, PROMPTS[0])
        request.cancel()
    with pytest.raises(RequestCancelled):
        request.wait()
    del request
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_an_idle_thread_holds_no_engine() -> None:
    """The engine goes when nobody uses it; the thread waits a while longer."""
    engine = tiny_engine()
    asked(engine, PROMPTS[0]).wait()
    thread = engine.scheduler._driver._thread
    assert thread is not None
    gone = weakref.ref(engine.forward)
    del engine
    while gone() is not None and thread.is_alive():  # it may not have come to rest yet
        gc.collect()
        time.sleep(0.01)
    assert thread.is_alive()


def test_a_request_under_way_keeps_its_engine() -> None:
    """Whoever holds the request alone gets the result, and then the engine goes."""
    expected = written(tiny_engine(), PROMPTS[0])
    engine = tiny_engine()
    gone = weakref.ref(engine.forward)
    with engine.scheduler.paused():
        request = asked(engine, PROMPTS[0])
        thread = engine.scheduler._driver._thread
        assert thread is not None
        del engine
        gc.collect()
    assert list(request.wait(timeout=60).token_ids) == expected
    while gone() is not None and thread.is_alive():
        gc.collect()
        time.sleep(0.01)
    assert thread.is_alive()


def test_an_idle_thread_ends_and_starts_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who comes later is served as the first."""
    monkeypatch.setattr(driver, "_IDLE", 0.01)
    monkeypatch.setattr(driver, "_PAUSE", 0.01)
    with engine.scheduler.paused():
        request = asked(engine, PROMPTS[0])
        thread = engine.scheduler._driver._thread
        assert thread is not None
        thread.join(timeout=60)
        assert engine.scheduler._driver._thread is None
    first = list(request.wait(timeout=60).token_ids)
    thread = engine.scheduler._driver._thread
    if thread is not None:
        thread.join(timeout=60)
    assert engine.scheduler._driver._thread is None
    assert written(engine, PROMPTS[0]) == first


def test_whoever_waits_for_a_thread_that_dies_gets_its_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kills it, also outside of a step; the next caller has a new one."""
    expected = written(engine, PROMPTS[0])
    dying = engine.scheduler._driver._thread
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(engine.scheduler, "has_work", lambda: 1 / 0)
    request = asked(engine, PROMPTS[0])
    with pytest.raises(ZeroDivisionError):
        request.wait(timeout=60)
    monkeypatch.undo()
    assert dying is not None
    dying.join(timeout=60)
    assert not dying.is_alive()
    assert engine.slots_in_use == 0
    assert written(engine, PROMPTS[0]) == expected


def test_without_a_thread_nothing_is_queued(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system gives no more threads, the caller is told at once."""

    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with pytest.raises(RuntimeError, match="new thread"):
        asked(engine, PROMPTS[0])
    monkeypatch.undo()
    assert not engine.scheduler.has_work()
    assert len(written(engine, PROMPTS[0])) == 30


def test_a_waiter_who_is_interrupted_ends_its_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the thread drives: the request has ended when the error comes out."""
    expected = written(engine, PROMPTS[3], 60)
    waited = threading.Event.wait

    def interrupted(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            monkeypatch.setattr(threading.Event, "wait", waited)
            raise KeyboardInterrupt
        return waited(self, timeout)

    for waiting in (Request.wait, lambda request: list(request.stream())):
        other, mine = asked(engine, PROMPTS[3], 60), asked(engine, PROMPTS[4], 500)
        monkeypatch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            waiting(mine)
        assert mine.done
        assert list(other.wait().token_ids) == expected
        assert engine.slots_in_use == 0


async def taken(request: Request[Any]) -> list[Any]:
    """All events of a request that has no time at all."""
    return [event async for event in request.astream(timeout=0.0)]


@pytest.mark.parametrize(
    "wait",
    [
        lambda request: request.wait(timeout=0.0),
        lambda request: list(request.stream(timeout=0.0)),
        lambda request: asyncio.run(taken(request)),
    ],
    ids=["wait", "stream", "astream"],
)
def test_a_timeout_ends_the_request(engine: Engine, wait: Callable[[Any], Any]) -> None:
    """The error says how much time there was; nothing is held afterwards."""
    request = asked(engine, PROMPTS[0], 500)
    with pytest.raises(AnswerTimeoutError, match=r"timeout=0\.0 seconds"):
        wait(request)
    assert request.done
    assert isinstance(request.error, RequestCancelled)
    assert engine.slots_in_use == 0


def test_requests_submitted_in_a_pause_begin_together(engine: Engine) -> None:
    """No pass runs in the block; afterwards the first pass feeds them all."""
    with engine.scheduler.paused():
        requests = [asked(engine, prompt, 5) for prompt in PROMPTS]
        count = engine.forward.count
        time.sleep(0.02)
        assert engine.forward.count == count
    for request in requests:
        request.wait()
    assert engine.forward.count == count + 5


def test_a_step_by_hand_is_a_pass(engine: Engine) -> None:
    """What tests of single passes stand on."""
    with stepping(engine) as until:
        request = asked(engine, PROMPTS[0])
        until(lambda: request.passes == 3)
        assert engine.forward.count == 3
