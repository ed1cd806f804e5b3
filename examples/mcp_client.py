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
STUDENTS = {"Ann Porter": "3.41", "Ben Castle": "2.15", "Cleo Marsh": "4.62"}
PROMPT = "Which student has a GPA between 3.00 and 3.50? Look at this student only."
SUBTASKS = [{"title": name, "prompt": PROMPT} for name in STUDENTS]
CONTEXT = "Here are 3 students' resumes:\n\n" + "\n".join(
    f"The student named {name} is 21 years old, graduated from the University of Leeds with a GPA "
    f"of {gpa}. He/She is interested in Chess and his/her self-introduction is: I like to think."
    for name, gpa in STUDENTS.items()
)


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
