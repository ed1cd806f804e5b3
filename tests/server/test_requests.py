"""Bodies of requests: what is read, what is refused, and that nothing else can happen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_pos import ChatParallelReasoning
from langchain_pos.server.admission import ServerLimits
from langchain_pos.server.errors import ApiError
from langchain_pos.server.requests import ChatRequest
from tests.support.serving import body

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES},
    optional={
        name: VALUES | st.text() for name in ("content", "name", "tool_call_id", "tool_calls")
    },
)


def read(**fields: Any) -> ChatRequest:
    """A request with one question and these fields."""
    return ChatRequest.read(json.dumps(body(**fields)).encode())


def refusal(**fields: Any) -> ApiError | None:
    """The error of a request with these fields; None where it is read."""
    try:
        asked = read(**fields)
        asked.to_messages()
        asked.call_options(ChatParallelReasoning(), ServerLimits())
    except ApiError as error:
        return error
    return None


@given(name=st.sampled_from(sorted(ChatRequest.model_fields)), value=VALUES)
def test_any_value_is_read_or_refused(name: str, value: Any) -> None:
    """Whatever stands in a field: options for the chat model, or an error that names the field."""
    error = refusal(**{name: value})
    if error is not None:
        assert error.status == 400
        assert error.code == "invalid_json" or (error.param or "").split(".")[0] == name


@given(messages=st.lists(MESSAGE, min_size=1, max_size=3))
def test_any_messages_are_read_or_refused(messages: list[Any]) -> None:
    """Of any role, with any content."""
    error = refusal(messages=messages)
    assert error is None or error.status == 400


def test_messages_of_every_kind() -> None:
    """Roles, parts, calls and results, also as OpenAI's own answers write them."""
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 3}'}}
    asked = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Who?"}], "name": "me"},
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
        ]
    )
    system, user, called, result = asked.to_messages()
    assert isinstance(system, SystemMessage)
    assert isinstance(user, HumanMessage)
    assert user.text == "Who?"
    assert isinstance(called, AIMessage)
    assert (called.tool_calls[0]["name"], called.tool_calls[0]["args"]) == ("add", {"a": 3})
    assert isinstance(result, ToolMessage)
    assert result.tool_call_id == "1"


def test_the_servers_bound_holds_where_no_budget_is_given() -> None:
    """An answer is never longer than `max_tokens` of the server."""
    chat = ChatParallelReasoning(max_conclusion_tokens=50)
    options = read().call_options(chat, ServerLimits(max_tokens=100))
    assert options["max_sequential_tokens"] == 100
    assert options["max_conclusion_tokens"] == 50
    bounded = ChatParallelReasoning(max_tokens=200)
    assert read().call_options(bounded, ServerLimits(max_tokens=100)) == {"max_tokens": 100}


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed", "stop", "tools", "n", "logprobs"])
def test_null_is_as_if_left_out(name: str) -> None:
    """Clients send null for what was not set."""
    chat, limits = ChatParallelReasoning(), ServerLimits()
    assert read(**{name: None}).call_options(chat, limits) == read().call_options(chat, limits)


@pytest.mark.parametrize("arguments", ["", " ", "null", None, "{}"])
def test_no_arguments_in_any_spelling(arguments: Any) -> None:
    """A call without arguments is one, as clients and other servers write it."""
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": arguments}}
    _, called = read(
        messages=[{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
    ).to_messages()
    assert isinstance(called, AIMessage)
    assert called.tool_calls[0]["args"] == {}


@pytest.mark.parametrize("arguments", ['unfinished: {"a": 3', '{"a": 3', "<tool_call>"])
def test_a_call_that_was_cut_is_history(arguments: str) -> None:
    """Whoever cut it: the model sees the text of it."""
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    (called,) = read(messages=[{"role": "assistant", "tool_calls": [call]}]).to_messages()
    assert isinstance(called, AIMessage)
    assert called.tool_calls == []
    assert called.invalid_tool_calls[0]["args"] == arguments


@pytest.mark.parametrize("off", [{"top_p": 0}, {"top_k": 0}, {"top_k": -1}])
def test_sampling_that_is_off(off: Any) -> None:
    """As other servers spell it."""
    assert refusal(**off) is None


def test_an_answer_that_is_begun() -> None:
    """VLLM's pair of fields: continued, so not begun anew."""
    both = {"continue_final_message": True, "add_generation_prompt": False}
    asked = read(**both)
    options = asked.call_options(ChatParallelReasoning(), ServerLimits())
    assert options["continue_final_message"] is True
    assert refusal(continue_final_message=True, add_generation_prompt=True) is not None


def test_thinking_is_the_template_s() -> None:
    """VLLM's field, with the one name that it may have here."""
    asked = read(chat_template_kwargs={"enable_thinking": False})
    options = asked.call_options(ChatParallelReasoning(), ServerLimits())
    assert options["enable_thinking"] is False
    assert refusal(chat_template_kwargs={"enable_thinkin": False}) is not None
