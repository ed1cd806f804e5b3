"""`ParallelSubtasksTool`: by itself, and in the hands of an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import ToolException
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_pos import ReasoningResult
from tests.support.scripted import Halt, Script
from tests.support.scripted_tool import ARGS, CONTENT, RULES, SUBTASKS, the_tool


def tool_call(**args: Any) -> dict[str, Any]:
    """A call as a model makes it."""
    return {"name": "run_parallel_subtasks", "args": args, "id": "1", "type": "tool_call"}


class Caller(GenericFakeChatModel):
    """A chat model that says what it is given, tool calls included."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def agent(*calls: dict[str, Any], rules: dict[str, Any] = RULES) -> tuple[Any, Script]:
    """An agent whose model makes these calls, one after another, and then says "done"."""
    tool, script = the_tool(rules)
    said: Iterator[Any] = iter(
        [*(AIMessage("", tool_calls=[tool_call(**args)]) for args in calls), AIMessage("done")]
    )
    return create_agent(Caller(messages=said, disable_streaming=True), [tool]), script


ASK = {"messages": [("user", "Who?")]}


class TestAlone:
    async def test_content_is_the_text_and_artifact_the_result(self) -> None:
        """Sync and async, with a call and with bare arguments."""
        tool, script = the_tool()
        for message in (tool.invoke(tool_call(**ARGS)), await tool.ainvoke(tool_call(**ARGS))):
            assert isinstance(message, ToolMessage)
            assert (message.content, message.status) == (CONTENT, "success")
            assert isinstance(message.artifact, ReasoningResult)
            assert [b.title for b in message.artifact.branches] == ["Ann", "Ben"]
            assert not message.artifact.concluded
        assert tool.invoke({"subtasks": SUBTASKS}) == CONTENT
        assert script.passes

    def test_a_subtask_reads_the_context_and_its_own_prompt_only(self) -> None:
        """The siblings' prompts are not there."""
        tool, script = the_tool()
        tool.invoke(tool_call(**ARGS))
        seen = [feed.seen + feed.text for feed in script.passes[-1] if "####Ann" in feed.seen]
        assert len(seen) == 1
        assert "Two resumes." in seen[0]
        assert "Read Ann's GPA.\n####Ann:" in seen[0]
        assert "Ben" not in seen[0]

    def test_a_model_is_told_of_the_arguments(self) -> None:
        """The schema has what a model needs, and nothing of ours."""
        function = convert_to_openai_tool(the_tool()[0])["function"]
        assert function["name"] == "run_parallel_subtasks"
        properties = function["parameters"]["properties"]
        assert set(properties) == {"subtasks", "context"}
        assert set(properties["subtasks"]["items"]["properties"]) == {"title", "prompt"}

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            ({}, "subtasks: Field required"),
            ({"subtasks": []}, "subtasks: List should have at least 1 item"),
            ({"subtasks": "Ann"}, "given: 'Ann'"),
            ({"subtasks": [{"title": "Ann"}]}, "subtasks.0.prompt: Field required"),
            ({"subtasks": [SUBTASKS[0], SUBTASKS[0]]}, "the same title: 'Ann'"),
            ({"subtasks": [{"title": "a####b", "prompt": "x"}]}, "'a####b'"),
            (
                {"subtasks": [{"title": f"t{i}", "prompt": "x"} for i in range(9)]},
                "allowed are 1 to 8",
            ),
            ({"subtasks": SUBTASKS, "context": "word " * 5000}, "2048 positions"),
        ],
    )
    async def test_wrong_arguments_are_told_to_the_model(self, args: Any, said: str) -> None:
        """What was given, what is allowed; no pass is spent."""
        tool, script = the_tool()
        for message in (tool.invoke(tool_call(**args)), await tool.ainvoke(tool_call(**args))):
            assert message.status == "error"
            assert said in message.content
            assert "allowed are 'subtasks', a list" in message.content
        assert script.passes == []

    def test_a_subtask_that_fails_leaves_the_others(self) -> None:
        """Its part says why; when all fail, the call has failed."""
        tool, _ = the_tool({**RULES, "####Ben:": " 2.\0"})
        message = tool.invoke(tool_call(**ARGS))
        assert message.status == "success"
        assert "## Ann\nGPA 3.1\n\n## Ben\n2.\n[failed: " in message.content
        tool, _ = the_tool({"####Ann:": "\0", "####Ben:": "\0"})
        message = tool.invoke(tool_call(**ARGS))
        assert message.status == "error"
        assert "No subtask could be worked out: Ann: " in message.content

    def test_a_cut_text_says_so(self) -> None:
        """An agent must not take it for the whole."""
        tool, _ = the_tool({"####Ann:": " …", "####Ben:": " GPA 2.4"})
        assert "[cut at its token budget]\n\n## Ben" in tool.invoke(ARGS)

    def test_a_model_that_breaks_is_a_tool_error(self) -> None:
        """Code of the model that raises, too; the engine serves on."""
        tool, script = the_tool()

        def fail() -> None:
            raise RuntimeError("CUDA error")

        script.before = fail
        message = tool.invoke(tool_call(**ARGS))
        assert (message.status, "RuntimeError: CUDA error" in message.content) == ("error", True)
        script.before = lambda: None
        assert tool.invoke(ARGS) == CONTENT

    def test_an_interrupt_passes(self) -> None:
        """Ctrl-C ends the program, not only the call."""
        tool, script = the_tool()

        def interrupt() -> None:
            raise KeyboardInterrupt

        script.before = interrupt
        with pytest.raises(KeyboardInterrupt):
            tool.invoke(tool_call(**ARGS))
        assert tool.llm.engine.slots_in_use == 0

    async def test_cancelling_passes_and_frees_the_slots(self) -> None:
        """A task that is cancelled stays cancelled."""
        tool, script = the_tool()
        halt = Halt(script, at=3)
        task = asyncio.create_task(tool.ainvoke(tool_call(**ARGS)))
        await asyncio.to_thread(halt.inside.wait)
        task.cancel()
        halt.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tool.llm.engine.slots_in_use == 0

    def test_handling_can_be_switched_off(self) -> None:
        """As for any tool: then the error is raised."""
        tool, _ = the_tool()
        strict = tool.model_copy(update={"handle_tool_error": False})
        with pytest.raises(ToolException, match="the same title"):
            strict.invoke({"subtasks": [SUBTASKS[0], SUBTASKS[0]]})

    def test_branches_are_runs_below_the_tools_run(self) -> None:
        """A tracer sees tool → ParallelReasoningLLM → expand → branch."""
        names: list[tuple[str, str]] = []

        class Names(BaseCallbackHandler):
            def on_tool_start(self, serialized: Any, *args: Any, **kwargs: Any) -> None:
                names.append(("tool", serialized["name"]))

            def on_chain_start(self, serialized: Any, *args: Any, **kwargs: Any) -> None:
                names.append(("chain", kwargs["name"]))

            def on_chat_model_start(self, serialized: Any, *args: Any, **kwargs: Any) -> None:
                names.append(("model", kwargs["name"]))

        the_tool()[0].invoke(tool_call(**ARGS), {"callbacks": [Names()]})
        assert names == [
            ("tool", "run_parallel_subtasks"),
            ("chain", "ParallelReasoningLLM"),
            ("chain", "expand"),
            ("model", "branch 0"),
            ("model", "branch 1"),
        ]


class TestInAnAgent:
    async def test_the_answer_goes_back_to_the_agents_model(self) -> None:
        """Sync and async: call, tool message with artifact, last word."""
        for messages in (
            agent(ARGS)[0].invoke(ASK)["messages"],
            (await agent(ARGS)[0].ainvoke(ASK))["messages"],
        ):
            assert [m.type for m in messages] == ["human", "ai", "tool", "ai"]
            assert (messages[2].content, messages[2].status) == (CONTENT, "success")
            assert isinstance(messages[2].artifact, ReasoningResult)
            assert messages[3].content == "done"

    async def test_a_wrong_call_does_not_end_the_agent(self) -> None:
        """The model reads the error and calls again."""
        wrong = {"subtasks": [SUBTASKS[0], SUBTASKS[0]]}
        for messages in (
            agent(wrong, {}, ARGS)[0].invoke(ASK)["messages"],
            (await agent(wrong, {}, ARGS)[0].ainvoke(ASK))["messages"],
        ):
            told = [m for m in messages if m.type == "tool"]
            assert [m.status for m in told] == ["error", "error", "success"]
            assert messages[-1].content == "done"

    async def test_progress_is_streamed(self) -> None:
        """`stream_mode="custom"`: all titles, then every subtask's tokens and end."""
        sync = list(agent(ARGS)[0].stream(ASK, stream_mode="custom"))
        tokens = agent(ARGS)[0].astream(ASK, stream_mode="custom")
        for told in (sync, [event async for event in tokens]):
            assert {event["tool"] for event in told} == {"run_parallel_subtasks"}
            assert told[0]["event"] == "start"
            assert told[0]["titles"] == ["Ann", "Ben"]
            pieces = [e["delta"] for e in told if e["event"] == "token" and e["index"] == 0]
            assert "".join(pieces) == "GPA 3.1"
            assert len(pieces) > 2
            ends = [e for e in told if e["event"] == "end"]
            assert sorted(e["title"] for e in ends) == ["Ann", "Ben"]
            assert {e["finish_reason"] for e in ends} == {"stop"}

    def test_messages_of_the_branches_are_streamed_as_langgraph_does(self) -> None:
        """`stream_mode="messages"`: every branch is a message of its own, in pieces."""
        texts: dict[str | None, str] = {}
        for message, _ in agent(ARGS)[0].stream(ASK, stream_mode="messages"):
            texts[message.id] = texts.get(message.id, "") + str(message.content)
        assert {"GPA 3.1", "GPA 2.4", CONTENT, "done"} <= set(texts.values())
