"""`langchain-pos mcp`: an MCP server whose tool works out independent subtasks."""

from __future__ import annotations

from typing import Annotated

import typer

from langchain_pos.cli.options import (
    BudgetOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    exit_codes,
    say,
)
from langchain_pos.cli.running import load
from langchain_pos.errors import InvalidRequestError


def mcp(
    model: ModelOption = None,
    http: Annotated[
        bool, typer.Option("--http", help="Streamable HTTP at /mcp instead of stdin and stdout.")
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(help="With --http; any but a local one requires an API key. [127.0.0.1]"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="With --http; 0 picks a free one. [8000]")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="LANGCHAIN_POS_API_KEY",
            show_default=False,
            help="With --http, key that clients must send; several, separated by commas.",
        ),
    ] = None,
    max_branch_tokens: BudgetOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    debug: DebugOption = False,
) -> None:
    """Serve an MCP tool that works out subtasks at the same time."""
    with exit_codes(debug):
        if not http and (host is not None or port is not None):
            raise InvalidRequestError("--host and --port apply to HTTP; add --http")
        from langchain_pos.mcp_server import make_mcp_server, serve_stdio
        from langchain_pos.tools import ParallelSubtasksTool

        host = "127.0.0.1" if host is None else host
        keys: list[str] = []
        if http:
            from langchain_pos.server.auth import keys_of

            given = None if api_key is None else [key.strip() for key in api_key.split(",")]
            keys = keys_of(given, host)
        llm = load(
            model=model,
            max_branch_tokens=max_branch_tokens,
            temperature=temperature,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        server = make_mcp_server(ParallelSubtasksTool(llm=llm))
        if not http:
            import anyio

            anyio.run(serve_stdio, server)
            return
        import uvicorn

        from langchain_pos.mcp_server import HTTP_PATH, http_app
        from langchain_pos.server.process import bind

        socket = bind(host, 8000 if port is None else port)
        name = f"[{host}]" if ":" in host else host
        say(f"http://{name}:{socket.getsockname()[1]}{HTTP_PATH} serves {server.name}")
        config = uvicorn.Config(
            http_app(server, keys),
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[socket])
