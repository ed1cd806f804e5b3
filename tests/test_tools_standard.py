"""langchain-tests' own suites for tools, and an agent whose model and tool share one engine."""

from __future__ import annotations

import json
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from langchain_pos import ParallelReasoningLLM, ParallelSubtasksTool
from tests.support.chat_templates import QWEN, tokenizer_with
from tests.support.scripted import BARE, SMALL
from tests.support.scripted_chat import scripted_chat
from tests.support.scripted_tool import ARGS, CONTENT, RULES, SUBTASKS, the_tool

ASKED = "<|im_start|>assistant\n"


class TestUnit(ToolsUnitTests):
    """Name, schema, construction."""

    @property
    def tool_constructor(self) -> type[BaseTool] | BaseTool:
        return the_tool()[0]

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return ARGS


class TestScripted(ToolsIntegrationTests):
    """Calls, sync and async, over a model that follows a script."""

    @property
    def tool_constructor(self) -> type[BaseTool] | BaseTool:
        return the_tool()[0]

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return ARGS


class TestShipped(ToolsIntegrationTests):
    """The same over the model that ships."""

    @property
    def tool_constructor(self) -> type[BaseTool] | BaseTool:
        return ParallelSubtasksTool(llm=ParallelReasoningLLM(max_branch_tokens=24))

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return ARGS


async def test_an_agent_thinks_and_works_on_one_engine() -> None:
    """The chat model calls the tool, whose branches run on the same model, and reads the result."""
    call = {"name": "run_parallel_subtasks", "arguments": {"subtasks": SUBTASKS}}
    rules: dict[str, Any] = {
        ASKED: [f"<tool_call>\n{json.dumps(call)}\n</tool_call>", "Ben it is."],
        **RULES,
    }
    chat, script = scripted_chat(rules, tokenizer=tokenizer_with(QWEN))
    llm = ParallelReasoningLLM.from_engine(chat.engine, prompts=BARE, drafts=False, **SMALL)
    agent = create_agent(chat, [ParallelSubtasksTool(llm=llm)])
    for final in (
        agent.invoke({"messages": [("user", "Who?")]}),
        await agent.ainvoke({"messages": [("user", "Who?")]}),
    ):
        _, asked, answered, last = final["messages"]
        assert isinstance(asked, AIMessage)
        assert [c["args"] for c in asked.tool_calls] == [{"subtasks": SUBTASKS}]
        assert isinstance(answered, ToolMessage)
        assert (answered.content, answered.status) == (CONTENT, "success")
        assert last.content == "Ben it is."
    assert any(len(feeds) == 2 for feeds in script.passes), "the branches shared passes"
    assert chat.engine.slots_in_use == 0
