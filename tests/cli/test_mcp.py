"""`langchain-pos mcp`: the command, over stdio by the official client, and what it refuses."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.support.fake_runnable import run
from tests.support.mcp_client import NAME, text_of
from tests.support.serving import COMMAND

SUBTASKS = [
    {"title": "Ann", "prompt": "Say what Ann's GPA is."},
    {"title": "Ben", "prompt": "Say what Ben's GPA is."},
]


async def test_stdio() -> None:
    """A client starts the command with the shipped model, and gets progress and results."""
    reported: list[Any] = []

    async def note(*news: Any) -> None:
        reported.append(news)

    command = StdioServerParameters(
        command=sys.executable,
        args=["-c", COMMAND, "mcp", "--max-branch-tokens", "8"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    async with stdio_client(command) as streams, ClientSession(*streams) as client:
        started = await client.initialize()
        assert started.serverInfo.name == "langchain-pos"
        args = {"subtasks": SUBTASKS, "context": "Ann has a GPA of 3.41. Ben has 2.15."}
        result = await client.call_tool(NAME, args, progress_callback=note)
    assert not result.isError
    assert text_of(result).startswith("## Ann\n")
    assert result.structuredContent is not None
    assert [each["title"] for each in result.structuredContent["results"]] == ["Ann", "Ben"]
    assert [news[:2] for news in reported] == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "0"], "add --http"),
        (["--http", "--host", "0.0.0.0"], "no API key is given"),
    ],
)
def test_unusable_options(options: list[str], said: str) -> None:
    """Exit code 2 before a model is loaded."""
    done = run("mcp", *options)
    assert (done.exit_code, said in done.stderr) == (2, True)
