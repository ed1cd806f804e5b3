"""Messages to the token ids of a prompt, in the model's own chat template.

What a user writes stays text: if it contains a special token's spelling, the template and the
user's text are encoded apart, and only the template's special tokens are special.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_pos.engine.text import encode_continuation, encode_text
from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = tuple[str, str]
"""Role ("system", "user" or "assistant") and text."""

_PLAIN_ROLES = {"system": "", "user": "Question: ", "assistant": "Answer: "}


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a chat, ready for the model's answer.

    Args:
        tokenizer: with a chat template, or without one: then a plain text is made.
        messages: ends with the user's.

    Raises:
        InvalidRequestError: the template refuses the messages; its own words are given.
    """
    if not getattr(tokenizer, "chat_template", None):
        return _plain_prompt(tokenizer, messages)
    contents = [text for _, text in messages]
    if not _spells_special_token(tokenizer, contents):
        text = _render(tokenizer, messages)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    # A private-use character marks where each message's text goes.
    marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
    marked = [(role, mark) for (role, _), mark in zip(messages, marks, strict=True)]
    ids: list[int] = []
    for piece in re.split("(\ue000\\d+\ue001)", _render(tokenizer, marked)):
        if piece in marks:
            ids += encode_continuation(tokenizer, contents[marks.index(piece)])
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    chat = [{"role": role, "content": text} for role, text in messages]
    try:
        # A model that may think aloud first (Qwen3) would do so inside the skeleton; templates
        # that know no thinking pay no heed to the setting.
        rendered = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as error:  # jinja2 raises what the template's author wrote
        roles = ", ".join(role for role, _ in messages)
        raise InvalidRequestError(
            f"the model's chat template refuses these messages ({roles}): {error}"
        ) from error
    return str(rendered)


def _plain_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """For models without a chat template: question and answer as plain text."""
    turns = [f"{_PLAIN_ROLES.get(role, '')}{text}" for role, text in messages]
    text = "\n\n".join([*turns, "Answer:\n"])
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]  # with BOS where there is one
    eos = tokenizer.eos_token_id
    if ids and ids[-1] == eos and eos != tokenizer.bos_token_id:
        ids = ids[:-1]  # T5-like tokenizers close every text with EOS
    return list(ids) or encode_text(tokenizer, text)


def _spells_special_token(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> bool:
    added = [str(token) for token in tokenizer.get_added_vocab()]
    special = {token for token in [*tokenizer.all_special_tokens, *added] if token.strip()}
    return any(token in text for text in texts for token in special)
