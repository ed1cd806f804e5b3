"""`ChatOpenAI(use_responses_api=True)` over the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.support.responses_api import ADD
from tests.support.scripted import STUDENTS
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import MODEL, Running, running
from tests.support.tool_calls import CALL, qwen_chat

ASKED = "<|im_start|>assistant\n"


class Verdict(BaseModel):
    """What is found."""

    fits: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server whose model knows the students."""
    with running(scripted_chat(STUDENTS)[0]) as found:
        yield found


@pytest.fixture(scope="module")
def tool_server() -> Iterator[Running]:
    """A server whose model, asked, calls a tool; behind a result it answers."""
    rules = {
        f"?<|im_end|>\n{ASKED}": f"Let me add. {CALL}",
        f"</tool_response><|im_end|>\n{ASKED}": "It is 7.",
        f"Fits?<|im_end|>\n{ASKED}": '{"fits": true}',
        f"}}<|im_end|>\n{ASKED}": '{"fits": true}',
    }
    with running(qwen_chat(rules)[0]) as found:
        yield found


def model(server: Running, **fields: Any) -> ChatOpenAI:
    """LangChain's model for OpenAI, asking our server by the Responses API."""
    return ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=SecretStr("none"),
        model=MODEL,
        max_retries=0,
        use_responses_api=True,
        **fields,
    )


def thoughts(message: AIMessage) -> list[str]:
    """The reasoning of a message, by LangChain's own content blocks."""
    blocks = message.content_blocks
    return [str(block["reasoning"]) for block in blocks if block["type"] == "reasoning"]


async def test_invoke_and_stream(server: Running) -> None:
    """Sync and async; a stream sums to the answer, branches as reasoning blocks included."""
    chat = model(server)
    message = chat.invoke("Who?")
    assert message.text == "name: Ben"
    assert thoughts(message)[1:] == ["Ann: GPA 3.1, outside", "Ben: GPA 2.4"]
    chunks = list(chat.stream("Who?"))
    total = sum(chunks[1:], start=chunks[0])
    assert total.text == message.text
    assert thoughts(total) == thoughts(message)
    assert total.usage_metadata == message.usage_metadata
    assert (await chat.ainvoke([HumanMessage("Who?")])).text == message.text
    assert "".join([chunk.text async for chunk in chat.astream("Who?")]) == message.text


@pytest.mark.parametrize("by_id", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_an_agents_turn(tool_server: Running, by_id: bool, stream: bool) -> None:
    """A call, its result, the answer: with the history sent again, and by the response's id."""
    chat = model(tool_server, use_previous_response_id=by_id, streaming=stream).bind_tools([ADD])
    history: list[Any] = [HumanMessage("What is 3 + 4?")]
    first = chat.invoke(history)
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 3, "b": 4})
    history += [first, ToolMessage("7", tool_call_id=call["id"])]
    assert chat.invoke(history).text == "It is 7."


def test_structured_output(tool_server: Running) -> None:
    """As a schema for the text, and through a tool."""
    chat = model(tool_server)
    assert chat.with_structured_output(Verdict).invoke("Fits?") == Verdict(fits=True)
    (last,) = [*chat.with_structured_output(Verdict).stream("Fits?")][-1:]
    assert last == Verdict(fits=True)
