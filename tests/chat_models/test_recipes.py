"""The chat model in what people build with it: LangGraph, agents, the third version of events."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain.agents.middleware import before_model
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, trim_messages
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Send

from tests.support.scripted import STUDENTS
from tests.support.scripted_chat import scripted_chat
from tests.support.tool_calls import CALL, qwen_chat

ASKED = "<|im_start|>assistant\n"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Subjects(TypedDict):
    """What is asked about, and what has been said of it."""

    subjects: list[str]
    said: Annotated[list[str], operator.add]


def test_a_graph_sends_to_many_nodes() -> None:
    """LangGraph's `Send`: one call of the model for each subject, in the subjects' order."""
    chat, _ = scripted_chat(
        {f"{name}?\n\nAnswer:\n": f"About {name}." for name in ("Ann", "Ben", "Cem")},
        mode="sequential",
    )

    def write(state: dict[str, str]) -> dict[str, list[str]]:
        return {"said": [chat.invoke(f"{state['subject']}?").text]}

    graph = StateGraph(Subjects)
    graph.add_node("write", write)
    graph.add_conditional_edges(
        START, lambda state: [Send("write", {"subject": each}) for each in state["subjects"]]
    )
    graph.add_edge("write", END)
    done = graph.compile().invoke({"subjects": ["Ann", "Ben", "Cem"], "said": []})
    assert done["said"] == ["About Ann.", "About Ben.", "About Cem."]
    assert chat.engine.slots_in_use == 0


def test_an_agent_calls_its_tool_and_trims_its_history() -> None:
    """`create_agent` on the chat model, with `trim_messages` before every call of it."""
    chat, script = qwen_chat({ASKED: [CALL, "It is 7."]})

    @before_model
    def trim(state: Any, runtime: Any) -> dict[str, Any]:
        kept = trim_messages(
            state["messages"],
            max_tokens=400,
            token_counter=chat,
            start_on="human",
            include_system=True,
        )
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *kept]}

    agent = create_agent(chat, [add], middleware=[trim])
    history = [HumanMessage("Long ago. " * 60), AIMessage("Yes."), HumanMessage("What is 3 + 4?")]
    done = agent.invoke({"messages": history})
    assert [message.type for message in done["messages"]] == ["human", "ai", "tool", "ai"]
    assert done["messages"][-1].text == "It is 7."
    assert not any("Long ago" in fed.text for feeds in script.passes for fed in feeds)


class TestEventsV3:
    """`stream_events(version="v3")`: typed content blocks."""

    def test_text_and_reasoning(self) -> None:
        """Thoughts come as reasoning, the conclusion as text, the usage with the message."""
        chat, _ = scripted_chat(STUDENTS)
        stream = chat.stream_events("Who?", version="v3")
        assert "".join(stream.text) == "name: Ben"
        assert "GPA 2.4" in "".join(stream.reasoning)
        whole = chat.invoke("Who?")
        assert stream.output.usage_metadata == whole.usage_metadata

    async def test_it_is_the_same_under_asyncio(self) -> None:
        """`astream_events` has the same text."""
        chat, _ = scripted_chat(STUDENTS)
        stream = await chat.astream_events("Who?", version="v3")
        assert "".join([piece async for piece in stream.text]) == "name: Ben"

    def test_tool_calls(self) -> None:
        """A call comes whole, with its arguments read."""
        chat, _ = qwen_chat({ASKED: CALL})
        stream = chat.bind_tools([add]).stream_events("What is 3 + 4?", version="v3")
        (call,) = stream.output.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 3, "b": 4})
