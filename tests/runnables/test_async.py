"""The asynchronous side: the same answers, beside the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda

from langchain_pos.errors import InvalidRequestError, NonFiniteLogitsError
from tests.support.company import QUESTIONS, same
from tests.support.run_events import Recorder
from tests.support.scripted import STUDENTS, STUDENTS_TEXT, random_llm, scripted_llm, without_clocks


async def test_ainvoke_equals_invoke() -> None:
    """Field by field, the clock's aside."""
    llm = random_llm(allow_decline=False)
    for question in QUESTIONS[:2]:
        assert without_clocks(await llm.ainvoke(question)) == without_clocks(llm.invoke(question))


async def test_astream_gives_the_chunks_of_stream() -> None:
    """Piece by piece the same, and they add up to the result."""
    llm, _ = scripted_llm(STUDENTS)
    chunks = [chunk async for chunk in llm.astream("Who?")]
    expected = list(llm.stream("Who?"))
    assert [(c.stage, c.branch, c.delta) for c in chunks] == [
        (c.stage, c.branch, c.delta) for c in expected
    ]
    assert reduce(add, chunks).result().text == STUDENTS_TEXT


async def test_abatch_equals_one_by_one_and_shares_passes() -> None:
    """As `batch` does."""
    llm = random_llm(allow_decline=False)
    alone = [llm.invoke(question) for question in QUESTIONS]
    before = llm.engine.forward.count
    together = await llm.abatch(QUESTIONS)
    passes = llm.engine.forward.count - before
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert passes < sum(result.forward_passes.total for result in alone)
    assert llm.engine.slots_in_use == 0


async def test_abatch_keeps_errors_apart() -> None:
    """`return_exceptions` gives each question its own outcome; without it, the first is raised."""
    llm, _ = scripted_llm(STUDENTS)
    good, bad = await llm.abatch(["Who?", ""], return_exceptions=True)
    assert good.text == STUDENTS_TEXT
    assert isinstance(bad, InvalidRequestError)
    with pytest.raises(InvalidRequestError):
        await llm.abatch(["Who?", ""])


async def test_abatch_keeps_to_max_concurrency() -> None:
    """One at a time: no pass feeds two questions."""
    llm, script = scripted_llm(STUDENTS)
    await llm.abatch(["Who?"] * 3, {"max_concurrency": 1})
    assert all(len({feed.segment.owner for feed in feeds}) == 1 for feeds in script.passes)


async def test_abatch_as_completed_gives_every_index() -> None:
    """Each result with the place of its question."""
    llm, _ = scripted_llm(STUDENTS)
    found = {place: r.text async for place, r in llm.abatch_as_completed(["Who?", "Who?"])}
    assert found == {0: STUDENTS_TEXT, 1: STUDENTS_TEXT}


async def test_questions_of_many_tasks_share_passes() -> None:
    """`gather` costs about as many passes as the longest question."""
    llm, script = scripted_llm(STUDENTS)
    alone = (await llm.ainvoke("Who?")).forward_passes.total
    script.passes.clear()
    await asyncio.gather(*(llm.ainvoke("Who?") for _ in range(5)))
    assert len(script.passes) < 5 * alone


async def test_the_event_loop_runs_on_meanwhile() -> None:
    """Passes run in a worker thread: a task beside a question gets its turns."""
    llm, _ = scripted_llm(STUDENTS)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await llm.ainvoke("Who?")
    counting.cancel()
    assert turns > 10


async def test_a_chain_streams_asynchronously() -> None:
    """`prompt | llm | function`."""
    llm, _ = scripted_llm(STUDENTS)
    chain = PromptTemplate.from_template("{q}?") | llm
    chunks = [chunk async for chunk in chain.astream({"q": "Who"})]
    assert len(chunks) > 20
    whole = chain | RunnableLambda(lambda result: result.conclusion)
    assert await whole.ainvoke({"q": "Who"}) == "name: Ben"
    assert [c async for c in whole.astream({"q": "Who"})] == ["name: Ben"]


async def test_astream_events_tells_start_stream_end_and_custom_events() -> None:
    """What a user interface listens to."""
    llm, _ = scripted_llm(STUDENTS)
    events = [event async for event in llm.astream_events("Who?", version="v2")]
    counts = Counter(event["event"] for event in events)
    assert counts["on_chain_start"] == counts["on_chain_end"] == 2  # the question, and stage 2
    assert counts["on_chat_model_start"] == counts["on_chat_model_end"] == 4
    assert counts["on_chat_model_stream"] > 20
    assert counts["on_chain_stream"] > 20
    names = [event["name"] for event in events if event["event"] == "on_custom_event"]
    assert names.count("parallel_reasoning_branch_token") > 10
    assert [name for name in names if not name.endswith("_token")] == [
        "parallel_reasoning_plan",
        *["parallel_reasoning_branch_start"] * 2,
        *["parallel_reasoning_branch_end"] * 2,
    ]
    assert events[-1]["data"]["output"].text == STUDENTS_TEXT


@pytest.mark.parametrize("call", ["ainvoke", "abatch"])
async def test_callbacks_and_custom_events_are_told(call: str) -> None:
    """The same as on the synchronous side."""
    llm, _ = scripted_llm(STUDENTS)
    recorder = Recorder()
    given: Any = ["Who?"] if call == "abatch" else "Who?"
    await getattr(llm, call)(given, {"callbacks": [recorder]})
    assert recorder.seen == ["start", "end"]
    names = [name for name, _ in recorder.custom]
    assert names == ["plan", "branch_start", "branch_start", "branch_end", "branch_end"]


async def test_errors_reach_the_awaiting_task() -> None:
    """A broken model, with its callback."""
    llm, _ = scripted_llm({"Who?\n\nAnswer:\n": "\0"})
    recorder = Recorder()
    with pytest.raises(NonFiniteLogitsError):
        await llm.ainvoke("Who?", {"callbacks": [recorder]})
    assert recorder.seen == ["start", "error: NonFiniteLogitsError"]
    with pytest.raises(NonFiniteLogitsError):
        [chunk async for chunk in llm.astream("Who?")]
    assert llm.engine.slots_in_use == 0
