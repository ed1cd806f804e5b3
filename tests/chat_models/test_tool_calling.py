"""Tool calls and structured output: guaranteed by the grammar, whatever the model would write."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from langchain_pos.chat_models.tool_calling import (
    HERMES,
    LLAMA,
    CallText,
    ToolCallReader,
    form_of,
    read_choice,
)
from langchain_pos.errors import InvalidRequestError
from tests.support.chat_templates import GEMMA, MISTRAL, QWEN, tokenizer_with
from tests.support.chat_templates import LLAMA as LLAMA_TEMPLATE
from tests.support.scripted_chat import random_chat, said, scripted_chat
from tests.support.tool_calls import CALL, OTHER, qwen_chat

ASKED = "<|im_start|>assistant\n"


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@tool
def look_up(name: Annotated[str, Field(max_length=12)], kind: Literal["big", "small"]) -> str:
    """Look up."""
    return name


@tool
def now() -> str:
    """The time."""
    return "12:00"


class Item(BaseModel):
    """One of the items."""

    name: str = Field(min_length=1, max_length=8)
    price: float = Field(ge=0, le=100)


class Order(BaseModel):
    """An order."""

    customer: str = Field(max_length=10)
    code: str = Field(pattern="^[A-Z]{2}[0-9]{3}$")
    items: list[Item] = Field(max_length=2)
    kind: Literal["new", "old"]
    count: int = Field(ge=1, le=20)
    note: str | None = Field(default=None, max_length=5)
    paid: bool


class Point(TypedDict):
    """A point."""

    x: int
    y: int


def total(chunks: list[Any]) -> Any:
    """The sum of a stream."""
    return sum(chunks[1:], start=chunks[0])


class TestCalls:
    @pytest.mark.parametrize("version", [None, "v1"])
    async def test_a_call(self, version: Any) -> None:
        """With text before it; the stream and the async ways say the same."""
        chat, _ = qwen_chat({ASKED: f"I add.\n{CALL}"}, output_version=version)
        bound = chat.bind_tools([add, now])
        message = bound.invoke("3 + 4?")
        (call,) = message.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 3, "b": 4})
        assert call["id"]
        assert message.text == "I add."
        assert message.response_metadata["finish_reason"] == "tool_calls"
        assert [b["type"] for b in message.content_blocks] == ["text", "tool_call"]
        streamed = total(list(bound.stream("3 + 4?")))
        assert [(c["name"], c["args"]) for c in streamed.tool_calls] == [
            (call["name"], call["args"])
        ]
        assert streamed.text == "I add."
        assert said(await bound.ainvoke("3 + 4?"))[2:] == said(message)[2:]

    def test_several_calls(self) -> None:
        """In one message, in the order in which they were written."""
        chat, _ = qwen_chat({ASKED: f"{CALL}\n{OTHER}"})
        message = chat.bind_tools([add, now]).invoke("?")
        assert [call["name"] for call in message.tool_calls] == ["add", "now"]
        assert message.content == ""
        assert len({call["id"] for call in message.tool_calls}) == 2
        one = chat.bind_tools([add, now], parallel_tool_calls=False).invoke("?")
        assert [call["name"] for call in one.tool_calls] == ["add"]

    def test_auto_leaves_it_to_the_model(self) -> None:
        """Text without a call is text."""
        chat, _ = qwen_chat({ASKED: "Seven, of course. {"})
        message = chat.bind_tools([add]).invoke("3 + 4?")
        assert message.content == "Seven, of course. {"
        assert message.tool_calls == []

    @pytest.mark.parametrize("choice", ["any", "required", True])
    def test_any_forces_a_call(self, choice: Any) -> None:
        """A model that would rather talk calls a tool all the same."""
        chat, _ = qwen_chat({ASKED: "Seven."})
        message = chat.bind_tools([now], tool_choice=choice).invoke("3 + 4?", max_tokens=60)
        assert message.tool_calls[0]["name"] == "now"

    @pytest.mark.parametrize(
        "choice", ["now", {"type": "function", "function": {"name": "now"}}, {"name": "now"}]
    )
    def test_a_name_forces_that_tool_once(self, choice: Any) -> None:
        """Whatever the model prefers."""
        chat, _ = qwen_chat({ASKED: CALL})
        message = chat.bind_tools([add, now], tool_choice=choice).invoke("3 + 4?")
        assert [call["name"] for call in message.tool_calls] == ["now"]

    def test_none_forbids_calls(self) -> None:
        """The model is not told of the tools."""
        chat, script = qwen_chat({ASKED: "Seven."}, mode="sequential")
        chat.bind_tools([add], tool_choice="none").invoke("3 + 4?")
        assert "add" not in script.passes[0][0].text

    def test_unknown_choice(self) -> None:
        """It is refused when it is bound, with the names that there are."""
        chat, _ = qwen_chat({})
        with pytest.raises(InvalidRequestError, match="add, now"):
            chat.bind_tools([add, now], tool_choice="subtract")

    def test_two_tools_of_one_name(self) -> None:
        """The same one twice is one; different ones are refused."""
        chat, _ = qwen_chat({ASKED: CALL})
        assert chat.bind_tools([add, add]).invoke("?").tool_calls
        other = {"name": "add", "description": "Other.", "parameters": {"type": "object"}}
        with pytest.raises(InvalidRequestError, match="'add'"):
            chat.bind_tools([add, other]).invoke("?")

    @pytest.mark.parametrize("version", [None, "v1"])
    def test_a_call_that_is_cut_is_invalid(self, version: Any) -> None:
        """The budget ends it: it is told as what it is, also in a stream."""
        chat, _ = qwen_chat({ASKED: CALL}, output_version=version)
        bound = chat.bind_tools([add]).bind(max_tokens=40)
        whole = len(chat.get_token_ids(CALL))
        message = bound.invoke("?", max_tokens=whole - 12)
        assert message.tool_calls == []
        (invalid,) = message.invalid_tool_calls
        assert invalid["name"] == "add"
        assert message.response_metadata["finish_reason"] == "length"
        streamed = total(list(bound.stream("?", max_tokens=whole - 12)))
        assert streamed.tool_calls == []
        assert len(streamed.invalid_tool_calls) == 1

    def test_history(self) -> None:
        """A tool's result is answered in the ordinary way."""
        chat, script = qwen_chat({"<tool_response>\n7\n</tool_response><|im_end|>\n" + ASKED: "7!"})
        call = {"name": "add", "args": {"a": 3, "b": 4}, "id": "1", "type": "tool_call"}
        messages = [
            HumanMessage("3 + 4?"),
            AIMessage("", tool_calls=[call]),
            ToolMessage("7", tool_call_id="1"),
        ]
        message = chat.bind_tools([add]).invoke(messages)
        assert message.content == "7!"
        assert "<tools>" in script.passes[0][0].text
        assert chat.invoke(messages).content == "7!"

    def test_parallel_first_then_a_call(self) -> None:
        """`mode="parallel"`: branches are written first, and the conclusion is the call."""
        rules = {
            ASKED: "Let us see.\n####Ann:......\n####Ben:......\n####%%%%",
            "####Ann:": " one",
            "####Ben:": " two",
            "####%%%%\n": CALL,
        }
        chat, _ = qwen_chat(rules, mode="parallel", max_conclusion_tokens=200)
        message = chat.bind_tools([add], tool_choice="any").invoke("?")
        assert [call["name"] for call in message.tool_calls] == ["add"]
        assert "Ann: one\nBen: two" in message.additional_kwargs["reasoning_content"]

    @pytest.mark.parametrize("template", [GEMMA, MISTRAL, LLAMA_TEMPLATE])
    def test_other_templates(self, template: str) -> None:
        """Forced calls parse in the form of each template."""
        tokenizer = tokenizer_with(template)
        scripted, _ = scripted_chat({}, tokenizer=tokenizer)
        message = scripted.bind_tools([now], tool_choice="any").invoke("?", max_tokens=60)
        assert message.tool_calls[0]["name"] == "now"


class TestForms:
    def test_form_of(self) -> None:
        """Hermes' where a template shows it, Llama's where it does, else Hermes' as text."""
        assert form_of(QWEN) == (HERMES, True)
        assert form_of(LLAMA_TEMPLATE) == (LLAMA, True)
        for other in (GEMMA, MISTRAL, None, "{{ tools }}<tool_call><function=x>"):
            assert form_of(other) == (HERMES, False)

    @pytest.mark.parametrize("form", [HERMES, LLAMA])
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_reader_in_pieces(self, form: Any, size: int) -> None:
        """However the text comes, the same text and calls come out."""
        args = {"q": 'a "quoted" </tool_call> } \\ { <tool_call>', "n": {"m": [1, {"x": "}"}]}}
        text = "See < here: " + form.write("f", args) + "\n" + form.write("g", {}) + "\nend <to"
        reader = ToolCallReader(form)
        found: list[Any] = []
        for at in range(0, len(text), size):
            found += reader.push(text[at : at + size])
        found += reader.close()
        told = "".join(piece for piece in found if isinstance(piece, str))
        calls = [piece for piece in found if isinstance(piece, CallText)]
        assert told == "See < here:end <to"
        assert [(c.name, json.loads(c.args), c.whole) for c in calls] == [
            ("f", args, True),
            ("g", {}, True),
        ]

    def test_choices(self) -> None:
        """All spellings of the same choice."""
        assert {read_choice(c, ["a"]) for c in (None, "auto", {"type": "auto"})} == {"auto"}
        assert {read_choice(c, ["a"]) for c in (True, "required", {"type": "any"})} == {"any"}
        assert {read_choice(c, ["a"]) for c in (False, "none")} == {"none"}
        assert read_choice({"type": "tool", "name": "a"}, ["a"]) == "a"


class TestStructured:
    JSON = '{"x": 1, "y": 2}'

    @pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
    def test_methods(self, method: Any) -> None:
        """Each gives the object."""
        call = '<tool_call>\n{"name": "Point", "arguments": ' + self.JSON + "}\n</tool_call>"
        chat, _ = qwen_chat({ASKED: call if method == "function_calling" else self.JSON})
        structured = chat.with_structured_output(Point, method=method)
        assert structured.invoke("?") == {"x": 1, "y": 2}
        assert list(structured.stream("?"))[-1] == {"x": 1, "y": 2}

    def test_the_model_is_told_the_schema(self) -> None:
        """With "json_schema" in the prompt, with "json_mode" not."""
        chat, script = qwen_chat({ASKED: self.JSON})
        chat.with_structured_output(Point).invoke("?")
        assert '"y"' in script.passes[0][0].text
        script.passes.clear()
        chat.with_structured_output(Point, method="json_mode").invoke("?")
        assert '"y"' not in script.passes[0][0].text

    def test_json_mode_without_schema(self) -> None:
        """Any JSON object."""
        chat, _ = qwen_chat({ASKED: '{"a": [1, "b"]}'})
        assert chat.with_structured_output(method="json_mode").invoke("?") == {"a": [1, "b"]}

    def test_include_raw(self) -> None:
        """The message, the object and, where there is none, the reason."""
        chat, _ = qwen_chat({ASKED: self.JSON})
        structured = chat.with_structured_output(Point, include_raw=True)
        found = structured.invoke("?")
        assert found["parsed"] == {"x": 1, "y": 2}
        assert found["parsing_error"] is None
        cut = chat.with_structured_output(Point, include_raw=True, max_tokens=6).invoke("?")
        assert cut["parsed"] is None
        assert "max_tokens" in str(cut["parsing_error"])
        assert cut["raw"].response_metadata["finish_reason"] == "length"

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_cut_answers_are_errors(self, method: Any) -> None:
        """Nothing is made up of what there is, in a stream neither."""
        chat, _ = qwen_chat({ASKED: self.JSON})
        structured = chat.with_structured_output(Point, method=method, max_tokens=9)
        with pytest.raises(OutputParserException, match="max_tokens"):
            structured.invoke("?")
        with pytest.raises(OutputParserException, match="max_tokens"):
            list(structured.stream("?"))

    def test_parallel_first_then_json(self) -> None:
        """`mode="parallel"`: the conclusion behind the branches is the object."""
        rules = {
            ASKED: "Let us see.\n####Ann:......\n####Ben:......\n####%%%%",
            "####Ann:": " one",
            "####Ben:": " two",
            "####%%%%\n": self.JSON,
        }
        chat, _ = qwen_chat(rules, mode="parallel", max_conclusion_tokens=60)
        found = chat.with_structured_output(Point, include_raw=True).invoke("?")
        assert found["parsed"] == {"x": 1, "y": 2}
        assert "Ann: one" in found["raw"].additional_kwargs["reasoning_content"]

    @pytest.mark.parametrize("wrong", [{"method": "xml"}, {"schema": 3}, {}])
    def test_refused(self, wrong: Any) -> None:
        """A method or schema that is none, when it is asked for."""
        chat, _ = qwen_chat({})
        with pytest.raises(InvalidRequestError):
            chat.with_structured_output(**{"schema": None, **wrong})

    def test_tools_and_schema(self) -> None:
        """Both bound: the answer is a call, or it is the object."""
        schema = TypeAdapter(Point).json_schema()
        wanted = {"type": "json_schema", "json_schema": {"name": "Point", "schema": schema}}
        for text, calls in ((self.JSON, 0), (CALL, 1)):
            chat, _ = qwen_chat({ASKED: text})
            message = chat.bind_tools([add], response_format=wanted).invoke("?")
            assert len(message.tool_calls) == calls
            assert calls or json.loads(message.content) == {"x": 1, "y": 2}


class TestRandomWeights:
    """What a model with random weights writes under the grammar always parses and validates."""

    def test_200_answers(self) -> None:
        """100 orders and 100 tool calls, with bounds on strings, numbers, lists, and a pattern."""
        chat = random_chat(
            mode="sequential", temperature=1.0, max_sequential_tokens=900, drafts=False
        )
        orders = chat.with_structured_output(Order, include_raw=True)
        found = [
            each
            for seed in range(4)
            for each in orders.batch([f"order {n}" for n in range(25)], seed=seed)
        ]
        assert [each["parsing_error"] for each in found if each["parsing_error"]] == []
        assert all(isinstance(each["parsed"], Order) for each in found)
        bound = chat.bind_tools([add, look_up, now], tool_choice="any", parallel_tool_calls=False)
        messages = [
            each
            for seed in range(4)
            for each in bound.batch([f"call {n}" for n in range(25)], seed=seed)
        ]
        by_name = {each.name: each for each in (add, look_up, now)}
        for message in messages:
            (call,) = message.tool_calls
            by_name[call["name"]].get_input_schema().model_validate(call["args"])
            json.dumps(call["args"], ensure_ascii=False).encode()  # no half of a surrogate pair
            assert message.response_metadata["finish_reason"] == "tool_calls"
        assert len(found) + len(messages) == 200
