"""What can be set on the chat model, which model it is, and how that one counts tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.language_models import BaseChatModel, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import BaseMessage
from pydantic import ConfigDict, Field, model_validator

from langchain_pos.chat_models.messages import as_turns, encode_chat
from langchain_pos.chat_models.output import PROVIDER
from langchain_pos.chat_models.tool_calling import as_tool, unique
from langchain_pos.errors import InvalidRequestError
from langchain_pos.model_source import ModelSource, shipped_model
from langchain_pos.reasoning.settings import ReasoningSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.engine.engine import Engine

ChatMode = Literal["auto", "parallel", "sequential"]


class ChatFields(ModelSource, BaseChatModel, ReasoningSettings):
    """The fields of `ChatParallelReasoning`; a call reads them without knowing the class."""

    mode: ChatMode = "auto"  # type: ignore[assignment]
    """"auto": parallel for plain questions, sequential with tools, schemas, log-probabilities and
    after a tool's result; "parallel": branches first in any case; "sequential": never."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which an answer is given up, looked at between forward passes."""
    max_retries: int | None = Field(default=None, ge=0)
    """Skeletons tried after the first one, in place of `max_plan_attempts`. Nothing else of a
    local model is worth trying again."""
    streaming: bool = False
    """Answer `invoke` by streaming, so that callbacks get every token."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _as_elsewhere(cls, fields: Any) -> Any:
        return sampling_off(fields) if isinstance(fields, dict) else fields

    # ------------------------------------------------------------------ the model

    @classmethod
    def from_engine(cls, engine: Engine, **fields: Any) -> Self:
        """Over an engine; several may share one, and its forward passes."""
        chat = super().from_engine(engine, **fields)
        if "profile" not in fields:
            chat.profile = _profile(engine.context_length)
        return chat

    def _resolve_model_profile(self) -> ModelProfile:
        """What the model can do; its context from the folder's config, if it is a local one."""
        if self.remote is not None:
            return _profile(self.remote.context_length, plain=True)
        config = Path(self.model or shipped_model()).expanduser() / "config.json"
        if not config.is_file():
            return _profile(None)
        settings = json.loads(config.read_text(encoding="utf-8"))
        return _profile(settings.get("max_position_embeddings"))

    @property
    def _llm_type(self) -> str:
        return "chat-parallel-reasoning"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, so that caches tell apart what is different."""
        names = set(ReasoningSettings.model_fields) | {"max_retries"}
        return {
            "model_name": self._model_name(self.model),
            **self._load_options(),
            **{name: getattr(self, name) for name in sorted(names - {"stop"})},
            "default_stop": self.stop,  # langchain-core puts the call's under "stop"
            "prompts": None if self.prompts is None else self.prompts.model_dump(),
            "output_version": self.output_version,
            "loaded_model": self.engines.identity,
            "engine": None if self.remote is None else self.remote.identity,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        params["ls_model_name"] = self._model_name(kwargs.get("model") or self.model)
        if stop is None and self.stop:
            params["ls_stop"] = list(self.stop)
        return params

    def _model_name(self, model: str | None) -> str:
        if self.remote is not None:
            return model or self.remote.model or self.remote.base_url
        return model or ("langchain_pos/embedded" if self.engines.identity is None else "unnamed")

    # --------------------------------------------------------------------- tokens

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return self.engine.tokenizer if self.remote is None else self.remote.tokenizer_or_error

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, without special ones."""
        from langchain_pos.engine.tokenization.text import encode_text

        return encode_text(self._tokenizer, text)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens that the messages take in the model's own chat template.

        Where the template refuses them, as it may a part of a history, those of their texts.
        """
        formatted = unique([as_tool(tool) for tool in tools or ()])
        turns = as_turns(messages)
        if not turns:
            return 0
        try:
            thinking = self.enable_thinking
            return len(encode_chat(self._tokenizer, turns, formatted, thinking=thinking))
        except InvalidRequestError:  # a part of a history, such as trim_messages counts
            texts = [json.dumps(turn, ensure_ascii=False) for turn in formatted]
            for turn in turns:
                calls = turn.get("tool_calls", ())
                texts += [turn["content"], *(json.dumps(call["function"]) for call in calls)]
            return sum(len(self.get_token_ids(text)) for text in texts if text)


def sampling_off(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with what turns `top_k` and `top_p` off elsewhere written as it is here."""
    changed = dict(fields)
    if changed.get("top_k") in (0, -1):
        changed["top_k"] = None
    if changed.get("top_p") == 0:
        changed["top_p"] = 1.0
    return changed


def _profile(positions: int | None, *, plain: bool = False) -> ModelProfile:
    profile = ModelProfile(
        text_inputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        pdf_inputs=False,
        text_outputs=True,
        reasoning_output=True,
        tool_calling=not plain,
        tool_choice=not plain,
        structured_output=not plain,
    )
    if positions:
        profile["max_input_tokens"] = int(positions)
    return profile
