"""LangChain messages in realistic chat templates: native where they can be, else folded."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_pos.chat_models.messages import as_turns, encode_chat
from langchain_pos.errors import InvalidRequestError
from tests.support.chat_templates import GEMMA, LLAMA, MISTRAL, QWEN, SILENT, tokenizer_with
from tests.support.scripted import chat_tokenizer

TEMPLATES = {
    "qwen": QWEN,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "silent": SILENT,
    "chatml": chat_tokenizer().chat_template,
}

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    }
]
CALL = {"name": "add", "args": {"a": 1, "b": 2}, "id": "call_1234567890", "type": "tool_call"}
HISTORY = [
    SystemMessage("Be brief."),
    SystemMessage("Be kind."),
    HumanMessage("Hi."),
    HumanMessage("What is 1 + 2?"),
    AIMessage("Let me see.", tool_calls=[CALL]),
    ToolMessage("It is 3.", tool_call_id="call_1234567890"),
]


def prompt(
    template: str | None, messages: list[Any], tools: list[dict[str, Any]] | None = None
) -> str:
    """What the model reads."""
    tokenizer = tokenizer_with(template)
    return str(tokenizer.decode(encode_chat(tokenizer, as_turns(messages), tools or [])))


class TestTemplates:
    @pytest.mark.parametrize("name", [*TEMPLATES, None])
    def test_nothing_is_lost(self, name: str | None) -> None:
        """System messages, runs of one role, tools, calls and results reach every template."""
        text = prompt(name and TEMPLATES[name], HISTORY, TOOLS)
        for said in ("Be brief.", "Be kind.", "Hi.", "1 + 2?", "add", "Adds.", "It is 3."):
            assert text.count(said) >= 1, said
        places = [text.index(said) for said in ("Be brief.", "Hi.", '"a": 1', "It is 3.")]
        assert places == sorted(places) or name == "mistral"  # it puts the system text last

    @pytest.mark.parametrize("name", [*TEMPLATES, None])
    def test_a_plain_chat(self, name: str | None) -> None:
        """Neighbours of one role are merged, so that strict templates take them."""
        messages = [
            SystemMessage("S"),
            HumanMessage("one"),
            HumanMessage("two"),
            AIMessage("three"),
            AIMessage("four"),
            HumanMessage("five"),
        ]
        text = prompt(name and TEMPLATES[name], messages)
        places = [text.index(said) for said in ("one\ntwo", "three\nfour", "five")]
        assert places == sorted(places)
        assert "S" in text

    def test_native_tools(self) -> None:
        """A template that knows tools is told them itself, with nothing of ours in it."""
        text = prompt(QWEN, HISTORY, TOOLS)
        assert "You may call one or more functions" not in text
        assert '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' in text
        assert "<|im_start|>user\n<tool_response>\nIt is 3.\n</tool_response>" in text
        silent = [*HISTORY[:4], AIMessage("", tool_calls=[CALL]), HISTORY[5]]
        text = prompt(LLAMA, silent, TOOLS)
        assert "You may call one or more functions" not in text
        assert '{"name": "add", "parameters": {"a": 1, "b": 2}}<|eot_id|>' in text

    def test_a_template_that_drops_text_beside_a_call(self) -> None:
        """Llama's writes the call alone: where there is text as well, both are written as text."""
        text = prompt(LLAMA, HISTORY, TOOLS)
        assert 'Let me see.\n{"name": "add", "parameters": {"a": 1, "b": 2}}' in text

    def test_a_template_that_refuses_several_calls(self) -> None:
        """Llama's takes one call a message: several are written as text."""
        second = CALL | {"id": "x", "args": {"a": 3, "b": 4}}
        messages = [
            HumanMessage("Add."),
            AIMessage("", tool_calls=[CALL, second]),
            ToolMessage("3", tool_call_id="call_1234567890"),
            ToolMessage("7", tool_call_id="x"),
        ]
        text = prompt(LLAMA, messages, TOOLS)
        assert '{"name": "add", "parameters": {"a": 3, "b": 4}}' in text
        assert "<tool_response>\n7\n</tool_response>" in text

    def test_system_folded_into_the_first_human_message(self) -> None:
        """Gemma knows no system role, and a template that drops it silently is found out."""
        messages = [SystemMessage("Be brief."), HumanMessage("Hi.")]
        assert prompt(GEMMA, messages).startswith("<start_of_turn>user\nBe brief.\n\nHi.")
        assert prompt(SILENT, messages).startswith("U: Be brief.\n\nHi.")

    def test_ids_that_the_strictest_template_takes(self) -> None:
        """Nine characters of letters and digits, the same for a call and its result."""
        turns = as_turns(HISTORY)
        (call,) = next(turn["tool_calls"] for turn in turns if "tool_calls" in turn)
        assert call["id"] == turns[-1]["tool_call_id"]
        assert len(call["id"]) == 9
        assert call["id"].isalnum()

    def test_refused_in_every_form(self) -> None:
        """A history that begins with the assistant is refused in the template's own words."""
        with pytest.raises(InvalidRequestError, match="must alternate"):
            prompt(GEMMA, [AIMessage("Hello."), HumanMessage("Hi.")])

    def test_left_out_in_every_form(self) -> None:
        """A template that shows only the last message is refused rather than believed."""
        with pytest.raises(InvalidRequestError, match="leaves some"):
            prompt(
                "{{ messages[-1].content }}", [HumanMessage("a"), AIMessage("b"), HumanMessage("c")]
            )

    def test_special_tokens_in_arguments_stay_text(self) -> None:
        """What a call's arguments spell ends no turn."""
        tokenizer = chat_tokenizer()
        tokenizer = tokenizer_with(QWEN)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")

        def ends(word: str) -> int:
            calls = [CALL | {"args": {"a": word}}]
            messages = [HumanMessage("x"), AIMessage("", tool_calls=calls), HumanMessage("y")]
            return encode_chat(tokenizer, as_turns(messages), TOOLS).count(end)

        assert ends('<|im_end|>"') == ends("word")


class TestMessages:
    def test_kinds(self) -> None:
        """Every message that a model can read has its role."""
        messages = [
            ChatMessage("s", role="developer"),
            ChatMessage("q", role="user"),
            ChatMessage("a", role="assistant"),
            FunctionMessage("f", name="add"),
        ]
        assert [turn["role"] for turn in as_turns(messages)] == [
            "system",
            "user",
            "assistant",
            "tool",
        ]

    @pytest.mark.parametrize(
        "message",
        [
            ChatMessage("x", role="moderator"),
            HumanMessage([{"type": "image", "base64": "", "mime_type": "image/png"}]),
            HumanMessage([{"type": "input_audio", "input_audio": {}}]),
            ToolMessage([{"type": "file", "base64": "", "mime_type": "x"}], tool_call_id="1"),
        ],
    )
    def test_refused(self, message: Any) -> None:
        """What is no text, and roles that nobody knows."""
        with pytest.raises(InvalidRequestError, match=r"cannot be read|only text"):
            as_turns([message])

    def test_thoughts_of_earlier_turns_are_left_out(self) -> None:
        """An answer of ours with content blocks goes back as its text alone."""
        message = AIMessage(
            [
                {"type": "reasoning", "reasoning": "Ann: 3.1"},
                "a",
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "1", "name": "add", "input": {}},
            ]
        )
        assert as_turns([message]) == [{"role": "assistant", "content": "ab"}]
