"""Questions over a server: how many at once, and what is given up."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from langchain_pos import OpenAICompletionsEngine, ReasoningResult
from langchain_pos.engine.scheduler.pending import Pending
from langchain_pos.errors import (
    RequestCancelled,
)
from tests.support.completions_server import (
    ASKED,
    Reply,
    Server,
)
from tests.support.scripted import STUDENTS


class TestBounds:
    def test_no_more_requests_than_the_engine_allows(self, server: Server) -> None:
        """Over all questions together; and as many as it allows are used."""
        titles = [f"t{n}" for n in range(8)]
        server.rules["".join(["####", "%%%%", "\n"])] = "x"
        server.rules.update({f"####{title}:": " " + "word " * 20 for title in titles})
        llm = server.llm({"max_concurrency": 3})
        llm.batch([{"question": "Who?", "steps": titles}] * 2)
        assert server.most == 3

    def test_no_more_branches_than_the_settings_allow(self, server: Server) -> None:
        """`max_parallel_branches` bounds one question."""
        titles = [f"t{n}" for n in range(6)]
        server.rules.update({f"####{title}:": " " + "word " * 20 for title in titles})
        llm = server.llm(conclude=False, max_parallel_branches=2)
        llm.invoke({"question": "Who?", "steps": titles})
        assert server.most == 2

    def test_many_questions_do_not_need_many_threads(self, server: Server) -> None:
        """Tasks wait without one, however many there are."""
        server.rules[ASKED] = Reply("Ben I.", hold=True)

        async def ask() -> list[ReasoningResult]:
            llm = server.llm({"max_concurrency": 100})
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            asked = [llm.ainvoke("Who?", mode="sequential") for _ in range(20)]
            waiting = asyncio.gather(*asked)
            while server.under_way < 20:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(server.go_on.set)  # the one thread is free
            return await waiting

        assert [result.conclusion for result in asyncio.run(ask())] == ["Ben I."] * 20


class TestCancelling:
    @pytest.mark.parametrize("cue", [ASKED, "####Ben:", "####%%%%\n"])
    def test_closing_a_stream_closes_its_connections(self, server: Server, cue: str) -> None:
        """In every stage."""
        server.rules[cue] = Reply(str(STUDENTS[cue.removeprefix("Question: ")]), hold=True)
        chunks = server.llm().stream("Who?")
        stage = {ASKED: "plan", "####Ben:": "expand"}.get(cue, "conclude")
        while (chunk := next(chunks)).stage != stage or not chunk.delta:
            continue
        server.reached.wait()
        chunks.close()
        assert server.at_rest()
        assert server.left >= 1  # a sibling may not have been whole either

    async def test_cancelling_a_task_closes_its_connections(self, server: Server) -> None:
        """And no other's."""
        server.rules["####Ben:"] = [Reply(" GPA 2.4", hold=True), Reply(" GPA 2.4")]
        llm = server.llm()
        task = asyncio.create_task(llm.ainvoke("Who?"))
        while not server.reached.is_set():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await llm.ainvoke("Who?")).conclusion == "name: Ben"
        assert await asyncio.to_thread(server.at_rest)
        assert server.left >= 1  # a sibling may not have been whole either

    async def test_a_cancellation_that_comes_with_news_is_not_lost(self) -> None:
        """What a waiter is told, and that it is cancelled, in one turn of the loop."""
        engine = OpenAICompletionsEngine(base_url="http://localhost:1/v1")

        async def for_ever(pending: Pending[None]) -> None:
            await asyncio.Event().wait()

        async def listen() -> None:
            async for _ in pending.astream():
                pass

        pending = engine.scheduler.submit(for_ever)
        waiting = asyncio.create_task(listen())
        await asyncio.sleep(0.01)
        pending.emit("news")
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pending.done

    def test_closing_the_engine_cancels_what_is_under_way(self, server: Server) -> None:
        """Whoever waits is told; the next question starts anew."""
        server.rules["####Ben:"] = [Reply(" GPA 2.4", hold=True), Reply(" GPA 2.4")]
        llm = server.llm()
        caught: list[BaseException] = []

        def ask() -> None:
            try:
                llm.invoke("Who?")
            except RequestCancelled as error:
                caught.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        server.reached.wait()
        assert llm.remote is not None
        llm.remote.close()
        thread.join()
        assert len(caught) == 1
        assert server.at_rest()
        assert llm.invoke("Who?").conclusion == "name: Ben"

    def test_no_thread_stays_behind(self, server: Server) -> None:
        """It ends with the last reference to the engine, or when that is closed."""
        gc.collect()  # what other tests have left behind
        assert http_threads() == 0
        llm = server.llm()
        llm.invoke("Who?")
        assert http_threads() == 1
        assert llm.remote is not None
        llm.remote.close()
        assert http_threads() == 0
        llm.invoke("Who?")
        assert http_threads() == 1
        del llm
        gc.collect()
        assert http_threads() == 0


def http_threads() -> int:
    """Threads that run a loop for HTTP."""
    return sum(thread.name == "langchain-pos-http" for thread in threading.enumerate())
