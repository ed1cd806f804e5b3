"""Messages to the token ids of a prompt, in the model's own chat template.

What a user writes stays text: if it contains a special token's spelling, the template and the
user's text are encoded apart, and only the template's special tokens are special.

`thinking` is `enable_thinking`: True or False for the template, None for what it does by itself. A
prompt that opens a thought all the same is closed again for False.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_pos.engine.tokenization.text import encode_continuation, encode_text
from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = tuple[str, str]
"""Role ("system", "user" or "assistant") and text."""
Turn = dict[str, Any]
"""A message as chat templates take it: `role`, `content`, and `tool_calls` or `tool_call_id`."""

_MARK = re.compile("\ue000(\\d+)\ue001")
"""Stands where a message's text goes: private-use characters around its number."""

THOUGHT, THOUGHT_END = "<think>", "</think>"
"""What is between them is a model's thought."""

_PLAIN_ROLES = {"system": "", "user": "Question: ", "assistant": "Answer: "}


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], thinking: bool | None = None
) -> list[int]:
    """Token ids of a chat, ready for the model's answer.

    Args:
        tokenizer: with a chat template, or without one: then a plain text is made.
        messages: ends with the user's.
        thinking: see above.

    Raises:
        InvalidRequestError: the template refuses the messages; its own words are given.
    """
    turns = [{"role": role, "content": text} for role, text in messages]
    return encode_turns(tokenizer, turns, thinking=thinking)


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    tools: Sequence[dict[str, Any]] = (),
    *,
    thinking: bool | None = None,
) -> list[int]:
    """As `encode_prompt`, for turns that may hold tool calls, with tools for the template."""
    if not getattr(tokenizer, "chat_template", None):
        return _plain_prompt(tokenizer, [(turn["role"], turn["content"]) for turn in turns])
    marked, texts = _mark(turns)
    if not spells_special_token(tokenizer, texts):
        text = _render(tokenizer, turns, tools, thinking)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids: list[int] = []
    for place, piece in enumerate(_MARK.split(_render(tokenizer, marked, tools, thinking))):
        if place % 2:
            ids += encode_continuation(tokenizer, texts[int(piece)])
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def is_rendered(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    tools: Sequence[dict[str, Any]] = (),
) -> bool:
    """Whether the template takes these turns and tools, and leaves nothing of them out."""
    marked, texts = _mark(turns)
    try:
        text = _render(tokenizer, marked, tools)
        shows_tools = not tools or text != _render(tokenizer, marked, ())
    except InvalidRequestError:
        return False
    calls = [call["function"]["name"] for turn in turns for call in turn.get("tool_calls", ())]
    seen = {int(place) for place in _MARK.findall(text)}
    return shows_tools and seen == set(range(len(texts))) and all(name in text for name in calls)


def prompt_text(
    tokenizer: PreTrainedTokenizerBase | None,
    messages: Sequence[Message],
    thinking: bool | None = None,
) -> str:
    """A chat as the text that a server tokenizes, ready for the model's answer.

    Args:
        tokenizer: its chat template makes the text; None, or one without a template: a plain text.
        messages: ends with the user's.
        thinking: see above.

    Returns:
        the text without the special token that the tokenizer puts in front of every text by
        itself, since the server will.

    Raises:
        InvalidRequestError: the template refuses the messages.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return plain_text(messages)
    turns = [{"role": role, "content": text} for role, text in messages]
    text = _render(tokenizer, turns, (), thinking)
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(bos)
    return text


def plain_text(messages: Sequence[Message]) -> str:
    """A chat where there is no chat template: question and answer as plain text."""
    turns = [f"{_PLAIN_ROLES.get(role, '')}{text}" for role, text in messages]
    return "\n\n".join([*turns, "Answer:\n"])


def _mark(turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """The turns with a mark in place of each text, and the texts by their marks' numbers."""
    texts: list[str] = []

    def mark(text: str) -> str:
        if not text:  # templates ask whether there is any
            return ""
        texts.append(text)
        return f"\ue000{len(texts) - 1}\ue001"

    def mark_leaves(value: Any) -> Any:
        if isinstance(value, str):  # a template writes arguments as JSON
            return mark(json.dumps(value, ensure_ascii=False)[1:-1])
        if isinstance(value, dict):
            return {key: mark_leaves(item) for key, item in value.items()}
        return [mark_leaves(item) for item in value] if isinstance(value, list) else value

    marked = []
    for turn in turns:
        copy = {**turn, "content": mark(turn["content"])}
        if "tool_calls" in turn:
            copy["tool_calls"] = [
                {
                    **call,
                    "function": {
                        **call["function"],
                        "arguments": mark_leaves(call["function"]["arguments"]),
                    },
                }
                for call in turn["tool_calls"]
            ]
        marked.append(copy)
    return marked, texts


def may_think(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether the chat template knows of thoughts."""
    return THOUGHT_END in str(getattr(tokenizer, "chat_template", None) or "")


def thinks(prompt: str) -> bool | None:
    """Whether the end of a prompt leaves a thought open; None: the model may yet open one."""
    end = prompt.rstrip()
    if end.endswith(THOUGHT):
        return True
    return False if end.endswith(THOUGHT_END) else None


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    tools: Sequence[dict[str, Any]],
    thinking: bool | None = None,
) -> str:
    try:
        # Templates that know no thinking pay no heed to the setting.
        switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        rendered = tokenizer.apply_chat_template(
            list(turns),
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=True,
            **switch,
        )
    except Exception as error:  # jinja2 raises what the template's author wrote
        roles = ", ".join(turn["role"] for turn in turns)
        raise InvalidRequestError(
            f"the model's chat template refuses these messages ({roles}): {error}"
        ) from error
    text = str(rendered)
    if thinking is False and thinks(text):
        text = f"{text.rstrip()}\n\n{THOUGHT_END}\n\n"
    return text


def _plain_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """For models without a chat template."""
    text = plain_text(messages)
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]  # with BOS where there is one
    eos = tokenizer.eos_token_id
    if ids and ids[-1] == eos and eos != tokenizer.bos_token_id:
        ids = ids[:-1]  # T5-like tokenizers close every text with EOS
    return list(ids) or encode_text(tokenizer, text)


def spells_special_token(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> bool:
    """Whether a text that a user wrote would be read as one of the tokenizer's special tokens."""
    added = [str(token) for token in tokenizer.get_added_vocab()]
    special = {token for token in [*tokenizer.all_special_tokens, *added] if token.strip()}
    return any(token in text for text in texts for token in special)
