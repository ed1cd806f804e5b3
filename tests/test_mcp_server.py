"""The MCP server: asked by the official client in memory and over HTTP, and by LangChain's."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from mcp.shared.memory import create_connected_server_and_client_session
from sse_starlette.sse import AppStatus

from langchain_pos import ParallelSubtasksTool
from langchain_pos.mcp_server import http_app, make_mcp_server
from langchain_pos.server import bind
from tests.support.mcp_client import NAME, cancel_last, text_of
from tests.support.scripted import Halt
from tests.support.scripted_tool import ARGS, CONTENT, RULES, SUBTASKS, the_tool

RESULTS = {
    "results": [
        {"title": "Ann", "text": "GPA 3.1", "finish_reason": "stop", "error": None},
        {"title": "Ben", "text": "GPA 2.4", "finish_reason": "stop", "error": None},
    ]
}
Reported = tuple[float, float | None, str | None]


@contextmanager
def over_http(tool: ParallelSubtasksTool, *api_keys: str) -> Iterator[str]:
    """The server on loopback while inside; its address."""
    AppStatus.should_exit = False  # for the whole process: another test's server has got a signal
    app = http_app(make_mcp_server(tool), api_keys)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    socket = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        thread.join()


class TestOfficialClient:
    async def test_the_tool_is_listed_with_what_it_takes_and_gives(self) -> None:
        """One tool; its arguments and results as schemas."""
        server = make_mcp_server(the_tool()[0])
        async with create_connected_server_and_client_session(server) as client:
            (tool,) = (await client.list_tools()).tools
        assert tool.name == NAME
        assert set(tool.inputSchema["properties"]) == {"subtasks", "context"}
        assert tool.outputSchema is not None
        assert set(tool.outputSchema["properties"]) == {"results"}

    async def test_subtasks_in_results_out(self) -> None:
        """As text and one by one; the client checks them against the schema."""
        server = make_mcp_server(the_tool()[0])
        async with create_connected_server_and_client_session(server) as client:
            result = await client.call_tool(NAME, ARGS)
        assert not result.isError
        assert text_of(result) == CONTENT
        assert result.structuredContent == RESULTS

    async def test_progress_counts_the_subtasks_that_have_ended(self) -> None:
        """For a client that asks for it: their number at first, then each one as it ends."""
        reported: list[Reported] = []

        async def note(*news: Any) -> None:
            reported.append(news)

        server = make_mcp_server(the_tool({**RULES, "####Ben:": " GPA"})[0])
        async with create_connected_server_and_client_session(server) as client:
            await client.call_tool(NAME, ARGS, progress_callback=note)
        assert reported == [(0, 2, "2 subtasks"), (1, 2, "Ben: stop"), (2, 2, "Ann: stop")]

    @pytest.mark.parametrize(
        ("name", "args", "said"),
        [
            (NAME, {}, "subtasks: Field required"),
            (NAME, {"subtasks": [SUBTASKS[0], SUBTASKS[0]]}, "the same title: 'Ann'"),
            (NAME, {"subtasks": SUBTASKS, "context": "word " * 5000}, "2048 positions"),
            ("other", ARGS, "the tool 'other' does not exist"),
        ],
    )
    async def test_what_fails_is_a_tool_error(self, name: str, args: Any, said: str) -> None:
        """What was given and what is allowed, so that a model can call again."""
        tool, script = the_tool()
        async with create_connected_server_and_client_session(make_mcp_server(tool)) as client:
            result = await client.call_tool(name, args)
            assert result.isError
            assert said in text_of(result)
            assert not script.passes
            assert text_of(await client.call_tool(NAME, ARGS)) == CONTENT

    async def test_a_call_that_is_given_up_frees_its_slots(self) -> None:
        """Cancelled by the client's notification, in the middle of a pass."""
        tool, script = the_tool({"####Ann:": " …", "####Ben:": " …"}, max_branch_tokens=500)
        halt = Halt(script, 5)
        async with create_connected_server_and_client_session(make_mcp_server(tool)) as client:
            asked = asyncio.create_task(client.call_tool(NAME, ARGS))
            await asyncio.to_thread(halt.inside.wait)
            await cancel_last(client)
            halt.go_on.set()
            with pytest.raises(Exception, match="cancelled"):
                await asked
            while tool.llm.engine.slots_in_use:
                await asyncio.sleep(0.005)
            script.rules = RULES
            assert text_of(await client.call_tool(NAME, ARGS)) == CONTENT

    async def test_streamable_http_with_a_key(self) -> None:
        """With the key an answer; without one, 401."""
        with over_http(the_tool()[0], "secret") as url:
            headers = {"Authorization": "Bearer secret"}
            async with (
                streamablehttp_client(url, headers=headers) as (read, write, _),
                ClientSession(read, write) as client,
            ):
                await client.initialize()
                result = await client.call_tool(NAME, ARGS)
                assert result.structuredContent == RESULTS
            refused = httpx.post(url, json={})
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                401,
                "invalid_api_key",
            )

    def test_without_a_key_http_is_for_this_machine(self) -> None:
        """A request to another name, as from a web page, is refused."""
        with over_http(the_tool()[0]) as url:
            assert httpx.post(url, json={}, headers={"Host": "evil.example"}).status_code == 403


class TestLangChain:
    async def test_the_adapters_make_a_tool_of_it(self) -> None:
        """Content, structured content, progress; errors are messages that a model can read."""
        reported: list[Reported] = []

        async def note(progress: float, total: float | None, message: str | None, _: Any) -> None:
            reported.append((progress, total, message))

        with over_http(the_tool()[0]) as url:
            client = MultiServerMCPClient(
                {"pos": {"transport": "streamable_http", "url": url}},
                callbacks=Callbacks(on_progress=note),
            )
            (tool,) = await client.get_tools()
            call = {"name": tool.name, "id": "1", "type": "tool_call"}
            message = await tool.ainvoke({**call, "args": ARGS})
            wrong = await tool.ainvoke({**call, "args": {"subtasks": [SUBTASKS[0], SUBTASKS[0]]}})
        assert (message.status, message.text) == ("success", CONTENT)
        assert message.artifact["structured_content"] == RESULTS
        assert reported[-1][:2] == (2, 2)
        assert wrong.status == "error"
        assert "the same title: 'Ann'" in json.dumps(wrong.content)
