"""An MCP server with one tool, `ParallelSubtasksTool`: independent subtasks in, results out.

    make_mcp_server   the tool, its results and progress, over any transport
    serve_stdio       for a client that starts the server itself
    http_app          streamable HTTP at /mcp, behind the server's own key and host check

Calls that run at the same time share forward passes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackHandler

from langchain_pos.errors import MissingExtraError
from langchain_pos.runnables.tracing import EVENT_BRANCH_END, EVENT_PLAN
from langchain_pos.tools import ParallelSubtasksInput

if find_spec("mcp") is None:
    raise MissingExtraError(
        "an MCP server needs mcp, which is not installed here; install it with "
        "`pip install 'mcp<2' uvicorn`, which the extra `langchain-pos[mcp]` holds"
    )

from mcp import types
from mcp.server.lowlevel import Server

if TYPE_CHECKING:
    from uuid import UUID

    from langchain_core.messages import ToolMessage
    from langchain_core.runnables import RunnableConfig
    from mcp.server.session import ServerSession
    from starlette.applications import Starlette
    from starlette.types import Receive, Scope, Send

    from langchain_pos.tools import ParallelSubtasksTool

HTTP_PATH = "/mcp"
_RESULT = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "text": {"type": "string"},
        "finish_reason": {
            "enum": ["stop", "length", "cancelled", "error"],
            "description": "'length': the text is cut at its token budget.",
        },
        "error": {"type": ["string", "null"], "description": "Why this subtask failed."},
    },
    "required": ["title", "text", "finish_reason", "error"],
}
_RESULTS: dict[str, Any] = {
    "type": "object",
    "properties": {"results": {"type": "array", "items": _RESULT}},
    "required": ["results"],
}


def make_mcp_server(tool: ParallelSubtasksTool) -> Server[Any, Any]:
    """A server for the official SDK's transports.

    A call's content is the text of all subtasks, its structured content each one by itself. What
    fails is a tool error that says what was given and what is allowed: the client's model reads it.

    Args:
        tool: does the work; its model is loaded here if it is not.
    """
    tool.llm.engine  # noqa: B018  # loads the model, so that its errors precede any call
    server: Server[Any, Any] = Server("langchain-pos", version("langchain-pos"))
    listed = types.Tool(
        name=tool.name,
        description=tool.description,
        inputSchema=ParallelSubtasksInput.model_json_schema(),
        outputSchema=_RESULTS,
    )

    async def list_tools(_: types.ListToolsRequest) -> types.ServerResult:
        return types.ServerResult(types.ListToolsResult(tools=[listed]))

    async def call_tool(request: types.CallToolRequest) -> types.ServerResult:
        asked = request.params
        if asked.name != tool.name:
            wrong = f"the tool {asked.name!r} does not exist; the only one here is {tool.name!r}"
            return _result(wrong, is_error=True)
        context = server.request_context
        token = None if context.meta is None else context.meta.progressToken
        config: RunnableConfig = {}
        if token is not None:
            config["callbacks"] = [_Progress(context.session, token, str(context.request_id))]
        call = {"name": tool.name, "args": asked.arguments or {}, "id": "1", "type": "tool_call"}
        message: ToolMessage = await tool.ainvoke(call, config)
        if message.status == "error":
            return _result(message.text, is_error=True)
        fields = {"title", "text", "finish_reason", "error"}
        results = [branch.model_dump(include=fields) for branch in message.artifact.branches]
        return _result(message.text, {"results": results})

    server.request_handlers[types.ListToolsRequest] = list_tools
    server.request_handlers[types.CallToolRequest] = call_tool
    return server


async def serve_stdio(server: Server[Any, Any]) -> None:
    """Serve the client at stdin and stdout until it closes them."""
    import anyio
    from mcp.server.stdio import stdio_server

    # What anything else prints would be no message of the protocol: it goes to stderr.
    stdout = anyio.wrap_file(TextIOWrapper(sys.stdout.buffer, encoding="utf-8"))
    with redirect_stdout(sys.stderr):
        async with stdio_server(stdout=stdout) as (read, write):
            await server.run(read, write, server.create_initialization_options())


def http_app(server: Server[Any, Any], api_keys: Sequence[str] = ()) -> Starlette:
    """The server over streamable HTTP, as an ASGI application.

    Args:
        server: of `make_mcp_server`; for one application only.
        api_keys: one of them is asked for; without one, only requests to a loopback name are
            answered.
    """
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.applications import Starlette
    from starlette.routing import Route

    from langchain_pos.server.auth import Guard

    manager = StreamableHTTPSessionManager(server)

    class Endpoint:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await manager.handle_request(scope, receive, send)

    app = Starlette(routes=[Route(HTTP_PATH, Endpoint())], lifespan=lambda _: manager.run())
    app.add_middleware(Guard, api_keys=api_keys)
    return app


class _Progress(AsyncCallbackHandler):
    """Tells a client how many of its subtasks have ended, and which one it was."""

    def __init__(self, session: ServerSession, token: str | int, request_id: str) -> None:
        self._session = session
        self._token = token
        self._request_id = request_id
        self._total: int | None = None
        self._ended = 0

    async def on_custom_event(
        self,
        name: str,
        data: Any,
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """An event of the reasoning."""
        if name == EVENT_PLAN:
            self._total = len(data["titles"])
            await self._report(f"{self._total} subtasks")
        elif name == EVENT_BRANCH_END:
            self._ended += 1
            await self._report(f"{data['title']}: {data['finish_reason']}")

    async def _report(self, message: str) -> None:
        await self._session.send_progress_notification(
            self._token, self._ended, self._total, message, self._request_id
        )


def _result(
    text: str, structured: dict[str, Any] | None = None, *, is_error: bool = False
) -> types.ServerResult:
    content: list[types.ContentBlock] = [types.TextContent(type="text", text=text)]
    return types.ServerResult(
        types.CallToolResult(content=content, structuredContent=structured, isError=is_error)
    )
