"""Models that think first: their thoughts are no text, plan or JSON, here and on a server."""

from __future__ import annotations

from copy import deepcopy
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest

from langchain_pos import InvalidRequestError, ParallelReasoningLLM
from tests.support.completions_server import serving
from tests.support.native_list import LIST, NATIVE, WRITTEN
from tests.support.scripted import CHAT, SMALL, STUDENTS, Script, chat_tokenizer, scripted_llm
from tests.support.scripted_chat import random_chat, said, scripted_chat
from tests.support.tool_calls import CALL

ASKED = "<|im_start|>assistant\n"
OPENED = CHAT.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}") + (
    "{# '</think>' #}"
)
"""As R1's distillations have it: the prompt opens the thought."""
SWITCH = CHAT + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
"""As Qwen3 has it: the model opens the thought, unless the prompt has closed it."""
THOUGHT = "Two students.\nSo two steps."
OUTLINE = STUDENTS["Who?\n\nAnswer:\n"]
REST = {cue: text for cue, text in STUDENTS.items() if "Who" not in cue}
RULES: dict[str, dict[str, str]] = {
    OPENED: {f"{ASKED}<think>\n": f"{THOUGHT}\n</think>\n\n{OUTLINE}", **REST},
    SWITCH: {ASKED: f"<think>\n{THOUGHT}\n</think>\n\n{OUTLINE}", **REST},
}
BOTH = pytest.mark.parametrize("template", [OPENED, SWITCH], ids=["opened", "switch"])


def tokenizer_with(template: str) -> Any:
    """The byte-level tokenizer with another template."""
    tokenizer = deepcopy(chat_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def thinker(
    template: str, rules: dict[str, Any] | None = None, **fields: Any
) -> tuple[ParallelReasoningLLM, Script]:
    """A scripted model that thinks."""
    rules = RULES[template] if rules is None else rules
    return scripted_llm(rules, tokenizer=tokenizer_with(template), **fields)


class TestStages:
    @BOTH
    def test_the_plan_stands_after_the_thoughts(self, template: str) -> None:
        """They are a field of the result, and part of no text."""
        llm, script = thinker(template)
        result = llm.invoke("Who?")
        assert result.thoughts == THOUGHT
        assert result.preamble == "Let us see."
        assert [branch.text for branch in result.branches] == ["GPA 3.1, outside", "GPA 2.4"]
        assert result.conclusion == "name: Ben"
        assert "student" not in result.text
        last = script.passes[-1][0]
        assert last.seen.startswith(f"<|im_start|>user\nWho?<|im_end|>\n{ASKED}<think>\n{THOUGHT}")
        assert f"{THOUGHT}\n</think>\n\nLet us see.\n####Ann: GPA" in last.seen
        assert llm.engine.slots_in_use == 0

    @BOTH
    def test_a_stream_has_them_first(self, template: str) -> None:
        """Piece by piece, and adds up to what `invoke` gives."""
        llm, _ = thinker(template)
        chunks = list(llm.stream("Who?"))
        assert chunks[0].thoughts == THOUGHT[0]
        assert reduce(add, chunks).result().thoughts == THOUGHT
        assert sum(bool(chunk.thoughts) for chunk in chunks) > 10
        assert llm.invoke("Who?").text == reduce(add, chunks).result().text

    @BOTH
    def test_they_have_a_budget(self, template: str) -> None:
        """At its end the thought is closed for the model."""
        mark = "" if template == OPENED else "<think>\n"
        prompt = f"{ASKED}<think>\n" if template == OPENED else ASKED
        llm, _ = thinker(template, {prompt: f"{mark}x…", "</think>\n\n": OUTLINE, **REST})
        result = llm.invoke("Who?", max_thinking_tokens=30)
        assert len(mark + result.thoughts) == 30
        assert result.mode == "parallel"
        assert result.conclusion == "name: Ben"
        assert llm.invoke("Who?", max_tokens=120).usage.output_tokens <= 120

    def test_a_model_that_need_not_think_may_answer(self) -> None:
        """Where it opens no thought, all is as if it could not: text and fed tokens."""
        rules = {ASKED: OUTLINE, **REST}
        llm, _ = thinker(SWITCH, rules)
        plain, _ = scripted_llm(rules, tokenizer=chat_tokenizer())
        result = llm.invoke("Who?")
        assert result.thoughts == ""
        assert result.text == plain.invoke("Who?").text

    @BOTH
    def test_thinking_can_be_switched_off(self, template: str) -> None:
        """By the template's switch; where it has none, an empty thought is closed at once."""
        llm, script = thinker(template, {"</think>\n\n": OUTLINE, **REST}, enable_thinking=False)
        result = llm.invoke("Who?")
        assert (result.thoughts, result.conclusion) == ("", "name: Ben")
        assert script.passes[0][0].text.endswith(f"{ASKED}<think>\n\n</think>\n\n")

    def test_a_question_is_thought_about_once(self) -> None:
        """What is planned again, or answered after all, begins with the same thoughts."""
        twice = "####Ann:......\n####Ann:......\n####%%%%"
        llm, script = thinker(OPENED, {"<think>\n": THOUGHT, "</think>\n\n": twice})
        result = llm.invoke("Who?", max_sequential_tokens=99)
        assert (result.plan_attempts, result.thoughts, result.text) == (3, THOUGHT, twice)
        fed = [feed.text for feeds in script.passes for feed in feeds]
        assert sum(text.endswith("<think>\n") for text in fed) == 1
        assert sum(text.endswith(f"{THOUGHT}\n</think>\n\n") for text in fed) == 3

    @pytest.mark.parametrize("outline", ["paper", "native"])
    def test_branches_may_think(self, outline: str) -> None:
        """Where it is asked for; their thoughts are in no text and in no prompt that follows."""
        heads = ["####Ann:", "####Ben:"] if outline == "paper" else ["1. **Ann**:", "2. **Ben**:"]
        rules = {
            f"{ASKED}<think>\n": "Both.\n</think>\n\n",
            f"{heads[0]} <think>\n": "Tall?\n</think>\nGPA 3.1",
            f"{heads[1]} <think>\n": "x…",
            "</think>\nGPA": " 3.1",
            "GPA 3.1": "",
        }
        fields: dict[str, Any] = {"max_branch_tokens": 3, "conclude": True, "outline": outline}
        llm, script = thinker(OPENED, rules, **fields)
        asked = {"question": "Who?", "steps": ["Ann", "Ben"]}
        result = llm.invoke(asked, max_branch_thinking_tokens=30)
        assert result.thoughts.startswith("Both.")
        assert "\nAnn: Tall?" in result.thoughts
        assert result.branches[0].text == "GPA"
        assert "Tall" not in result.text
        assert "think" not in script.passes[-1][0].seen.partition("</think>\n\n")[2]
        chunks = list(llm.stream(asked, max_branch_thinking_tokens=30))
        assert "\nAnn: Tall?" in reduce(add, chunks).result().thoughts
        assert llm.engine.slots_in_use == 0
        with pytest.raises(InvalidRequestError, match="reprefill"):
            llm.invoke(asked, max_branch_thinking_tokens=30, join="reuse")

    @BOTH
    def test_a_list_of_the_model_s_own_comes_after_them(self, template: str) -> None:
        """In native form."""
        mark = "" if template == OPENED else "<think>\n"
        prompt = f"{ASKED}<think>\n" if template == OPENED else ASKED
        begun, *_ = LIST.values()
        rules = {**LIST, prompt: f"{mark}{THOUGHT}\n</think>\n\n{begun}"}
        llm, _ = thinker(template, rules, **NATIVE)
        result = llm.invoke("Who?")
        assert (result.text, result.thoughts, result.mode) == (WRITTEN, THOUGHT, "parallel")
        alone = llm.invoke("Who?", mode="sequential")
        assert (alone.text, alone.thoughts) == (WRITTEN, THOUGHT)


class TestMessages:
    @pytest.mark.parametrize("version", [None, "v1"])
    @BOTH
    def test_thoughts_are_reasoning_content(self, template: str, version: Any) -> None:
        """Before the plan; a stream adds up to the message."""
        chat, _ = scripted_chat(
            RULES[template], tokenizer=tokenizer_with(template), output_version=version
        )
        message = chat.invoke("Who?")
        assert message.text == "name: Ben"
        first, second, *_ = [
            b["reasoning"] for b in message.content_blocks if b["type"] == "reasoning"
        ] + [""]
        assert first.startswith(THOUGHT)
        assert (second if version else first.removeprefix(THOUGHT).lstrip()).startswith(OUTLINE)
        chunks = list(chat.stream("Who?"))
        assert said(sum(chunks[1:], start=chunks[0])) == said(message)
        assert message.usage_metadata is not None
        assert message.usage_metadata["output_token_details"]["reasoning"] > len(THOUGHT)

    @BOTH
    def test_a_schema_holds_after_them(self, template: str) -> None:
        """The thought is free text, and the answer an object."""
        mark = "" if template == OPENED else "<think>\n"
        prompt = f"{ASKED}<think>\n" if template == OPENED else ASKED
        rules = {prompt: f'{mark}{{"a": is it 3?\n</think>\n\n{{"a": 3}}'}
        chat, _ = scripted_chat(rules, tokenizer=tokenizer_with(template))
        schema = {"title": "A", "type": "object", "properties": {"a": {"type": "integer"}}}
        found = chat.with_structured_output({**schema, "required": ["a"]}, include_raw=True)
        answer = found.invoke("Which?")
        assert answer["parsed"] == {"a": 3}
        assert answer["raw"].additional_kwargs["reasoning_content"] == '{"a": is it 3?'

    def test_random_weights_think_and_are_held_to_a_schema(self) -> None:
        """Whatever is thought, what follows can be parsed."""
        chat = random_chat(mode="sequential", temperature=1.0, max_thinking_tokens=20)
        chat.engine.tokenizer = tokenizer_with(OPENED)
        schema = {"title": "A", "type": "object", "properties": {"a": {"type": "boolean"}}}
        for seed in range(3):
            answer = chat.with_structured_output({**schema, "required": ["a"]}).invoke(
                "Which?", seed=seed, max_sequential_tokens=200
            )
            assert isinstance(answer["a"], bool)

    def test_tools_are_called_after_them(self) -> None:
        """The thought is no part of the call."""
        rules = {f"{ASKED}<think>\n": f"Add them.\n</think>\n\n{CALL}"}
        chat, _ = scripted_chat(rules, tokenizer=tokenizer_with(OPENED))
        tool = {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            },
        }
        message = chat.bind_tools([tool]).invoke("3 + 4?")
        assert message.tool_calls[0]["args"] == {"a": 3, "b": 4}
        assert message.text == ""
        assert message.additional_kwargs["reasoning_content"] == "Add them."


@BOTH
def test_a_server_s_model_thinks_in_the_same_way(template: str, tmp_path: Path) -> None:
    """Thoughts are a request of their own, and stand before the plan in those that follow."""
    tokenizer_with(template).save_pretrained(tmp_path)
    mark = "" if template == OPENED else "<think>\n"
    prompt = f"{ASKED}<think>\n" if template == OPENED else ASKED
    rules: Any = {
        prompt: f"{mark}{THOUGHT}\n</think>\n\n",
        "</think>\n\n": OUTLINE,
        **REST,
    }
    with serving(rules) as server:
        llm = server.llm({"tokenizer": str(tmp_path), "context_length": 4096}, **SMALL)
        result = llm.invoke("Who?")
        assert (result.thoughts, result.conclusion) == (THOUGHT, "name: Ben")
        assert server.prompts[1].endswith(f"<think>\n{THOUGHT}\n</think>\n\n")
        assert server.asked[0]["stop"] == ["</think>"]
        chunks = list(llm.stream("Who?"))
        assert reduce(add, chunks).result().thoughts == THOUGHT
