"""Cancelling in every stage frees the slots, and the next question is answered."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import reduce
from operator import add

import pytest
from langchain_core.prompts import PromptTemplate

from langchain_pos import ParallelReasoningLLM
from tests.support.scripted import (
    LATE_PASS,
    STUDENTS,
    STUDENTS_TEXT,
    Halt,
    random_llm,
    scripted_llm,
    wait_to_be_cancelled,
)

STAGES = ["plan", "expand", "conclude"]
FIRST_PASS = {"plan": 3, "expand": 20, "conclude": 36}
"""A pass that lies in the stage, for the question of `STUDENTS`."""


def assert_serves(llm: ParallelReasoningLLM) -> None:
    """Nothing is held, and a question is answered as ever."""
    assert llm.engine.slots_in_use == 0
    assert llm.invoke("Who?").text == STUDENTS_TEXT
    assert llm.engine.slots_in_use == 0


def test_the_passes_named_here_lie_in_their_stages() -> None:
    """Otherwise the tests below would not cancel where they say."""
    llm, _ = scripted_llm(STUDENTS)
    passes = llm.invoke("Who?").forward_passes
    ends = [passes.plan, passes.plan + passes.expand, passes.total]
    for stage, begin, end in zip(STAGES, [0, *ends], ends, strict=False):
        assert begin < FIRST_PASS[stage] < LATE_PASS[stage] < end


@pytest.mark.parametrize("stage", STAGES)
def test_closing_a_stream_frees_its_slots_at_once(stage: str) -> None:
    """In each stage, right after `close`."""
    llm, script = scripted_llm(STUDENTS)
    wait_to_be_cancelled(llm, script, stage)
    chunks = llm.stream("Who?")
    for chunk in chunks:
        if chunk.stage == stage and chunk.delta:
            break
    assert llm.engine.slots_in_use > 0
    chunks.close()  # type: ignore[attr-defined]
    assert_serves(llm)


@pytest.mark.parametrize("stage", STAGES)
def test_dropping_a_stream_of_a_chain_frees_its_slots(stage: str) -> None:
    """A chain's stream that nobody reads any more."""
    llm, script = scripted_llm(STUDENTS)
    wait_to_be_cancelled(llm, script, stage)
    chunks = (PromptTemplate.from_template("{q}?") | llm).stream({"q": "Who"})
    next(chunk for chunk in chunks if chunk.stage == stage and chunk.delta)
    assert llm.engine.slots_in_use > 0
    del chunks
    gc.collect()
    assert_serves(llm)


@pytest.mark.parametrize("stage", STAGES)
def test_a_random_model_is_cancelled_in_each_stage(stage: str) -> None:
    """The same with a true forward pass and bytes for text."""
    llm = random_llm(allow_decline=False)
    expected = llm.invoke("Which?").text
    chunks = llm.stream("Which?")
    next(chunk for chunk in chunks if chunk.stage == stage)
    chunks.close()  # type: ignore[attr-defined]
    assert llm.engine.slots_in_use == 0
    assert llm.invoke("Which?").text == expected


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_in_a_pass_frees_the_slots(stage: str) -> None:
    """Ctrl-C while the model computes ends the question and nothing else."""
    llm, script = scripted_llm(STUDENTS)

    def interrupt() -> None:
        if len(script.passes) == FIRST_PASS[stage]:
            script.before = lambda: None
            raise KeyboardInterrupt

    script.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        llm.invoke("Who?")
    assert_serves(llm)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("call", ["ainvoke", "astream", "abatch"])
async def test_a_cancelled_task_holds_nothing_when_it_is_over(stage: str, call: str) -> None:
    """Cancelled inside a pass: once the task is awaited, its slots are free."""
    llm, script = scripted_llm(STUDENTS)
    halt = Halt(script, FIRST_PASS[stage])

    async def ask() -> None:
        if call == "astream":
            async for _ in llm.astream("Who?"):
                pass
        elif call == "abatch":
            await llm.abatch(["Who?", "Who?"])
        else:
            await llm.ainvoke("Who?")

    task = asyncio.create_task(ask())
    await asyncio.to_thread(halt.inside.wait)
    assert llm.engine.slots_in_use > 0
    task.cancel()
    await asyncio.sleep(0.01)  # the pass is still under way
    halt.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_serves(llm)


@pytest.mark.parametrize("stage", STAGES)
async def test_closing_an_asynchronous_stream_frees_its_slots(stage: str) -> None:
    """After `aclose`."""
    llm, script = scripted_llm(STUDENTS)
    wait_to_be_cancelled(llm, script, stage)
    chunks = llm.astream("Who?")
    async for chunk in chunks:
        if chunk.stage == stage and chunk.delta:
            break
    assert llm.engine.slots_in_use > 0
    await chunks.aclose()  # type: ignore[attr-defined]
    assert_serves(llm)


async def test_a_task_cancelled_while_its_model_is_loaded_leaves_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is prepared in a thread is queued by the task alone."""
    llm, script = scripted_llm(STUDENTS)
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()
    prepare = ParallelReasoningLLM._prepare

    def slowly(*args: object, **kwargs: object) -> object:
        inside.set()
        go_on.wait()
        try:
            return prepare(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            done.set()

    monkeypatch.setattr(ParallelReasoningLLM, "_prepare", slowly)
    task = asyncio.create_task(llm.ainvoke("Who?"))
    await asyncio.to_thread(inside.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.to_thread(done.wait)
    monkeypatch.undo()
    assert llm.invoke("Who?").text == STUDENTS_TEXT
    assert all(len({feed.segment.owner for feed in feeds}) == 1 for feeds in script.passes)


async def test_a_cancelled_question_does_not_disturb_its_neighbour() -> None:
    """Two tasks in the same passes: one is cancelled, the other's answer is whole."""
    llm, script = scripted_llm(STUDENTS)
    halt = Halt(script, FIRST_PASS["expand"])
    first, second = (asyncio.create_task(llm.ainvoke("Who?")) for _ in range(2))
    await asyncio.to_thread(halt.inside.wait)
    first.cancel()
    halt.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).text == STUDENTS_TEXT
    assert_serves(llm)


def test_a_stream_that_was_left_alone_can_go_on() -> None:
    """Nobody drives it while other questions are answered; then it ends as it would have."""
    llm, _ = scripted_llm(STUDENTS)
    chunks = llm.stream("Who?")
    begin = [next(chunks) for _ in range(5)]
    assert llm.invoke("Who?").text == STUDENTS_TEXT
    assert reduce(add, [*begin, *chunks]).text == STUDENTS_TEXT
    assert_serves(llm)
