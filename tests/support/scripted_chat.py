"""Chat models for tests: one that follows a script, one with random weights."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import BaseCallbackHandler

from langchain_pos import ChatParallelReasoning
from langchain_pos.engine.engine import Engine
from tests.support.scripted import BARE, SMALL, Script, chat_tokenizer, tiny_model
from tests.support.tokenizers import byte_level


def scripted_chat(
    rules: dict[str, str | list[str]],
    *,
    tokenizer: Any = None,
    positions: int = 4096,
    **fields: Any,
) -> tuple[ChatParallelReasoning, Script]:
    """A chat model that follows a script; see `Script`."""
    engine = Engine(
        tiny_model(positions), tokenizer or byte_level(), max_slots=16384, prefix_cache_tokens=0
    )
    script = Script(engine, rules)
    fields = {"prompts": BARE, "drafts": False, **SMALL, "max_sequential_tokens": 256, **fields}
    return ChatParallelReasoning.from_engine(engine, **fields), script


def random_chat(**fields: Any) -> ChatParallelReasoning:
    """A chat model with random weights, with a chat template."""
    engine = Engine(tiny_model(), chat_tokenizer(), max_slots=16384, prefix_cache_tokens=0)
    return ChatParallelReasoning.from_engine(engine, **{"prompts": BARE, **SMALL, **fields})


def said(message: Any) -> tuple[Any, ...]:
    """What a message says, without ids and clocks."""
    calls = [(call["name"], call["args"]) for call in message.tool_calls]
    invalid = [(call["name"], call["args"]) for call in message.invalid_tool_calls]
    metadata = message.response_metadata
    return (
        [_plain(block) for block in message.content]
        if isinstance(message.content, list)
        else message.content,
        message.additional_kwargs,
        calls,
        invalid,
        message.usage_metadata,
        metadata["finish_reason"],
        metadata["mode"],
    )


def _plain(block: Any) -> Any:
    return {key: value for key, value in block.items() if key not in ("index", "id")}


class Recorder(BaseCallbackHandler):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.tokens: list[str] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("start")

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.told.append("end")

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.told.append(type(error).__name__)
