"""What a schema says is what comes back: answers, calls, histories and counts."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_pos import ChatParallelReasoning
from langchain_pos.chat_models.call import ChatCall
from langchain_pos.chat_models.tool_calling import (
    HERMES,
    LLAMA,
    CallText,
    ToolCallReader,
    arguments_schema,
    as_tool,
)
from langchain_pos.errors import AnswerTimeoutError, InvalidRequestError
from tests.support.chat_templates import GEMMA, tokenizer_with
from tests.support.scripted_chat import random_chat, scripted_chat
from tests.support.tool_calls import CALL, qwen_chat

ASKED = "<|im_start|>assistant\n"
UNIQUE = {
    "title": "Numbers",
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 9},
    "minItems": 2,
    "maxItems": 2,
    "uniqueItems": True,
}


class Tree(BaseModel):
    """A number with more of its kind."""

    v: int
    kids: list[Tree] = Field(default=[], max_length=2)


class Price(BaseModel):
    """An exact number."""

    amount: Decimal


@tool
def plant(tree: Tree) -> str:
    """Plant a tree."""
    return "planted"


@tool
def lift(tree: Tree, path: str = Field(pattern=r"^[A-Z]:\\[a-z]{1,8}$")) -> str:
    """Lift a tree."""
    return "lifted"


def free_chat() -> ChatParallelReasoning:
    """Random weights with room to write."""
    return random_chat(mode="sequential", drafts=False, temperature=1.0, max_sequential_tokens=300)


def format_of(schema: Any) -> dict[str, Any]:
    """As OpenAI's clients ask for it."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


class TestAnswers:
    def test_what_the_grammar_cannot_say_is_checked(self) -> None:
        """The answer is no valid one, and the metadata says what is wrong with it."""
        chat, _ = qwen_chat({ASKED: "[3, 3]"}, max_retries=0)
        message = chat.invoke("?", response_format=format_of(UNIQUE))
        assert message.response_metadata["finish_reason"] == "error"
        assert "non-unique" in message.response_metadata["error"]
        with pytest.raises(OutputParserException, match="non-unique"):
            chat.with_structured_output(UNIQUE).invoke("?")

    def test_a_dict_is_checked_as_a_model_is(self) -> None:
        """Also in a stream, where it cannot be taken back: the parser raises."""
        chat, _ = qwen_chat({ASKED: "[3, 3]"})
        with pytest.raises(OutputParserException, match="non-unique"):
            list(chat.with_structured_output(UNIQUE).stream("?"))

    async def test_it_is_asked_for_again(self) -> None:
        """With another seed; the attempts are counted."""
        chat = random_chat(mode="sequential", drafts=False, max_sequential_tokens=200)
        tried = []
        for seed in range(12):
            message = chat.invoke(f"{seed}?", response_format=format_of(UNIQUE), max_retries=9)
            one, other = json.loads(message.text)
            assert one != other
            tried.append(message.response_metadata.get("attempts", 1))
            alone = chat.invoke(f"{seed}?", response_format=format_of(UNIQUE), max_retries=0)
            assert message.usage_metadata["input_tokens"] == (
                tried[-1] * alone.usage_metadata["input_tokens"]
            )
        assert max(tried) > 1
        again = await chat.ainvoke("0?", response_format=format_of(UNIQUE), max_retries=9)
        assert len(set(json.loads(again.text))) == 2

    def test_a_decimal_is_a_number(self) -> None:
        """No sentence about one, though its pattern is beyond the grammar."""
        chat = free_chat()
        structured = chat.with_structured_output(Price, include_raw=True)
        found = [structured.invoke("?", seed=seed) for seed in range(5)]
        assert any(isinstance(each["parsed"] and each["parsed"].amount, Decimal) for each in found)
        for each in found:  # where its digits went on and on, they were digits
            assert re.match(r'\{"amount": [-0-9]', each["raw"].text)
        parameters = as_tool(Price)["function"]["parameters"]
        assert parameters["properties"]["amount"]["type"] == "number"

    def test_a_schema_that_cannot_be_used_is_refused_before_any_work(self) -> None:
        """By name."""
        chat, script = qwen_chat({ASKED: "1"})
        for schema, reason in (
            ({"type": "string", "pattern": "("}, "pattern"),
            ({"$ref": "https://example.org/a"}, "example.org"),
            ({"allOf": [{"type": "string"}, {"type": "null"}]}, "nothing fits"),
        ):
            with pytest.raises(InvalidRequestError, match=reason):
                chat.invoke("?", response_format=format_of(schema))
        assert script.passes == []

    def test_compiling_counts_towards_the_timeout(self) -> None:
        """What is over before the first pass is over."""
        chat, _ = qwen_chat({ASKED: "[1, 2]"}, timeout=50)
        call = ChatCall(chat, [HumanMessage("?")], None, {}, deltas=False)
        call._began -= 60  # as if a schema had taken a minute
        with pytest.raises(AnswerTimeoutError, match="timeout=50"):
            list(call.chunks())


class TestCalls:
    def test_recursive_arguments_keep_their_definitions(self) -> None:
        """Every part of the tree is one, however deep it lies."""
        chat = random_chat(
            mode="sequential", drafts=False, temperature=1.0, max_sequential_tokens=600
        )
        bound = chat.bind_tools([plant], tool_choice="plant")
        deep = 0
        for seed in range(8):
            message = bound.invoke("?", seed=seed)
            for call in message.tool_calls:
                deep += bool(Tree.model_validate(call["args"]["tree"]).kids)
            assert message.tool_calls or message.response_metadata["finish_reason"] == "length"
        assert deep
        assert "$defs" in as_tool(plant)["function"]["parameters"]

    @pytest.mark.parametrize("parameters", [{}, {"parameters": {}}, {"parameters": None}])
    def test_a_tool_without_parameters_takes_none(self, parameters: Any) -> None:
        """An empty object, and nothing made up."""
        function = {"name": "now", "description": "The time.", **parameters}
        chat = free_chat()
        bound = chat.bind_tools([{"type": "function", "function": function}], tool_choice="now")
        assert [bound.invoke("?", seed=s).tool_calls[0]["args"] for s in range(3)] == [{}] * 3
        assert arguments_schema({"function": {"name": "now"}})["additionalProperties"] is False

    def test_patterns_of_arguments_speak_of_the_decoded_string(self) -> None:
        """A path with a backslash is written as JSON writes it, and read as it was meant."""
        chat = free_chat()
        path = {"type": "string", "pattern": r"^[A-Z]:\\[a-z]{1,8}$"}
        quoted = {"type": "string", "pattern": '^"[a-z]{1,8}"$'}
        function = {
            "name": "open",
            "parameters": {
                "type": "object",
                "properties": {"path": path, "quoted": quoted},
                "required": ["path", "quoted"],
            },
        }
        bound = chat.bind_tools([{"type": "function", "function": function}], tool_choice="open")
        for seed in range(8):
            (call,) = bound.invoke("?", seed=seed).tool_calls
            assert re.search(path["pattern"], call["args"]["path"])
            assert re.search(quoted["pattern"], call["args"]["quoted"])

    def test_arguments_that_do_not_fit_are_no_call(self) -> None:
        """They are an invalid one, with the reason."""
        call = '<tool_call>\n{"name": "sum", "arguments": {"of": [3, 3]}}\n</tool_call>'
        chat, _ = qwen_chat({ASKED: call}, max_retries=0)
        schema = {"type": "object", "properties": {"of": UNIQUE}, "required": ["of"]}
        function = {"name": "sum", "parameters": schema}
        bound = chat.bind_tools([{"type": "function", "function": function}])
        message = bound.invoke("?")
        assert message.tool_calls == []
        assert "non-unique" in (message.invalid_tool_calls[0]["error"] or "")
        assert message.response_metadata["finish_reason"] == "error"

    @pytest.mark.parametrize("form", [HERMES, LLAMA])
    @pytest.mark.parametrize("cut", [3, 12, 25])
    def test_a_forced_call_that_is_cut_anywhere_is_a_call(self, form: Any, cut: int) -> None:
        """Also inside its marker, where a free answer might yet be text."""
        reader = ToolCallReader(form, forced=True)
        found = [*reader.push(form.write("f", {"a": 1})[:cut]), *reader.close()]
        assert [isinstance(each, CallText) and not each.whole for each in found] == [True]
        free = ToolCallReader(HERMES)
        assert [*free.push("<to"), *free.close()] == ["<to"]


class TestCounting:
    def test_nothing_is_nothing(self) -> None:
        """No messages take no tokens."""
        assert qwen_chat({})[0].get_num_tokens_from_messages([]) == 0

    def test_a_strict_template_is_counted_in_pieces(self) -> None:
        """A part of a history that a template refuses has tokens all the same."""
        chat, _ = scripted_chat({}, tokenizer=tokenizer_with(GEMMA))
        part = [AIMessage("One."), AIMessage("Two."), HumanMessage("Three?")]
        alone = sum(len(chat.get_token_ids(text)) for text in ("One.\nTwo.", "Three?"))
        assert chat.get_num_tokens_from_messages(part) >= alone

    def test_trim_messages(self) -> None:
        """The chat model is its token counter."""
        chat, _ = scripted_chat({}, tokenizer=tokenizer_with(GEMMA))
        history = [
            SystemMessage("Be brief."),
            HumanMessage("One? " * 40),
            AIMessage("Yes."),
            HumanMessage("Two?"),
        ]
        for most in (1, 60, 10_000):
            trimmed = trim_messages(
                history, max_tokens=most, token_counter=chat, include_system=True, start_on="human"
            )
            assert len(trimmed) <= len(history)
        assert trimmed == history


class TestAsElsewhere:
    @pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": -1}, {"top_p": 0}])
    def test_sampling_that_is_off(self, off: Any) -> None:
        """In a call and in the constructor, as other servers spell it."""
        chat, _ = qwen_chat({ASKED: "Yes."}, mode="sequential", **off)
        assert (chat.top_k, chat.top_p) == (None, 1.0)
        assert chat.invoke("?", **off).content == "Yes."

    def test_an_answer_can_be_begun_for_the_model(self) -> None:
        """The last message is continued, not answered; only what is new comes back, as it is."""
        chat, script = qwen_chat({ASKED + "The answer is": " seven."}, mode="sequential")
        history = [HumanMessage("3 + 4?"), AIMessage("The answer is")]
        message = chat.invoke(history, continue_final_message=True)
        assert message.content == " seven."
        streamed = [c.text for c in chat.stream(history, continue_final_message=True)]
        assert "".join(streamed) == " seven."
        assert script.passes[0][0].text.endswith(ASKED + "The answer is")
        whole, _ = qwen_chat({ASKED + "Seven.": ""})
        over = whole.invoke([HumanMessage("?"), AIMessage("Seven.")], continue_final_message=True)
        assert (over.content, over.response_metadata["finish_reason"]) == ("", "stop")
        with pytest.raises(InvalidRequestError, match="continue_final_message"):
            chat.invoke(history)
        with pytest.raises(InvalidRequestError, match="AI message"):
            chat.invoke("?", continue_final_message=True)


def test_a_cut_call_goes_back_into_a_history() -> None:
    """As text: the model sees what it wrote."""
    chat, _ = qwen_chat({ASKED: CALL})
    add = {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}
    cut = chat.bind_tools([add]).invoke("?", max_tokens=len(chat.get_token_ids(CALL)) - 12)
    assert cut.invalid_tool_calls
    assert isinstance(chat, ChatParallelReasoning)
    assert chat.invoke([HumanMessage("?"), cut, HumanMessage("Go on.")], max_tokens=3)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("abc", r"write steps=\['abc'\]"),
        (["Ann", " "], "title is empty"),
        ({"title": "Ann"}, "valid tuple"),
    ],
)
def test_wrong_steps(steps: Any, said: str) -> None:
    """A text is not taken for a list of its letters."""
    chat, _ = scripted_chat({})
    with pytest.raises(InvalidRequestError, match=said):
        chat.invoke("Who?", steps=steps)
