"""LangChain's MCP client starts `langchain-pos mcp`, and makes a tool of it."""

import asyncio
import os
import sys

from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient

# Where it is installed, command="langchain-pos" and args=["mcp"].
COMMAND = "from langchain_pos.cli.main import main; main()"
SERVER = {
    "transport": "stdio",
    "command": sys.executable,
    "args": ["-c", COMMAND, "mcp", "--max-branch-tokens", "40"],
    "env": dict(os.environ),
}
SUBTASKS = [
    {"title": name, "prompt": f"Which GPA does {name} have?"} for name in ("Ann", "Ben", "Cleo")
]
CONTEXT = "Ann has a GPA of 3.41, Ben one of 2.15, and Cleo one of 4.62."


async def note(progress, total, message, context) -> None:
    """A subtask has ended."""
    print(f"{progress:g} of {total:g}: {message}")


async def main() -> None:
    """Call the tool once, as an agent would."""
    client = MultiServerMCPClient({"pos": SERVER}, callbacks=Callbacks(on_progress=note))
    (tool,) = await client.get_tools()
    (content,) = await tool.ainvoke({"subtasks": SUBTASKS, "context": CONTEXT})
    print(content["text"])


asyncio.run(main())
