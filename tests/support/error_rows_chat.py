"""What `test_errors_table.py` tries for the chat model; see `error_rows.py`."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import ValidationError

from langchain_pos import ChatParallelReasoning
from langchain_pos.errors import AnswerTimeoutError, InvalidRequestError
from tests.support.error_rows import Outcome, row
from tests.support.scripted_chat import scripted_chat


@row("chat-no-question")
def _() -> Outcome:
    chat, script = scripted_chat({})
    with pytest.raises(InvalidRequestError, match="end with assistant") as caught:
        chat.invoke([HumanMessage("Who?"), AIMessage("Ben.")])
    assert not script.passes
    return caught.value


@row("chat-not-text")
def _() -> Outcome:
    chat, _ = scripted_chat({})
    image = {"type": "image", "base64": "", "mime_type": "image/png"}
    with pytest.raises(InvalidRequestError, match="'image'") as caught:
        chat.invoke([HumanMessage([{"type": "text", "text": "Who?"}, image])])
    return caught.value


@row("chat-tool-choice")
def _() -> Outcome:
    chat, _ = scripted_chat({})
    tool = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    with pytest.raises(InvalidRequestError, match="add") as caught:
        chat.bind_tools([tool], tool_choice="subtract")
    return caught.value


@row("chat-schema")
def _() -> Outcome:
    chat, _ = scripted_chat({})
    broken = {"title": "Broken", "properties": {"a": {"$ref": "#/$defs/Nothing"}}}
    with pytest.raises(InvalidRequestError, match="compiled") as caught:
        chat.with_structured_output(broken).invoke("Who?")
    return caught.value


@row("chat-timeout")
def _() -> Outcome:
    chat, _ = scripted_chat(
        {"Who?\n\nAnswer:\n": "…"}, mode="sequential", max_sequential_tokens=3000
    )
    with pytest.raises(AnswerTimeoutError, match=r"timeout=0\.01") as caught:
        chat.invoke("Who?", timeout=0.01)
    assert chat.engine.slots_in_use == 0
    return caught.value


@row("chat-unknown-field")
def _() -> Outcome:
    with pytest.raises(ValidationError, match="api_key") as caught:
        ChatParallelReasoning(api_key="x")
    return caught.value
