"""The body of `/v1/responses`, read strictly, and the chat completion that it asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field

from langchain_pos.server.errors import ApiError
from langchain_pos.server.requests import Body, ChatRequest, Neutral
from langchain_pos.server.responses_api.input import Json, as_messages

_NEUTRAL: dict[str, Neutral] = {
    "background": ((False,), "wait for the answer, or stream it"),
    "context_management": (([],), "send a shorter history"),
    "conversation": ((), "use previous_response_id"),
    "max_tool_calls": ((), "the client runs the tools, and can count the calls"),
    "moderation": ((), "it is not available here"),
    "prompt": ((), "templates are not kept here; send the text"),
    "truncation": (("disabled",), "send a shorter history"),
}
"""Fields of OpenAI's API that are not to be had."""
_PASSED_ON = (
    *("model", "stream", "temperature", "top_p", "top_logprobs", "parallel_tool_calls"),
    *("metadata", "user", "safety_identifier", "service_tier"),
    *("prompt_cache_key", "prompt_cache_retention"),
    *("reasoning_mode", "steps", "max_branches", "max_branch_tokens", "top_k", "min_p"),
    *("repetition_penalty", "seed", "stop"),
)
"""Fields that a chat completion has under the same name; `ChatRequest` checks them."""
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""Fields of a chat completion as they are called here."""
_LOGPROBS = "message.output_text.logprobs"


class TextSpec(Body):
    """How the text is to be; `verbosity` is refused as chat completions refuse it."""

    format: Json | None = None
    verbosity: Any = None


class ReasoningSpec(Body):
    """Branches come as reasoning items whatever the summary is; an effort is refused."""

    effort: Any = None
    summary: Any = None
    generate_summary: Any = None


class ResponseRequest(Body):
    """A request as OpenAI's API has it, with the fields of our own that chat completions have."""

    model: str
    input: str | list[Json] = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: Any = None
    text: TextSpec | None = None
    reasoning: ReasoningSpec | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    include: list[str] | None = None
    # See `_PASSED_ON`.
    temperature: Any = None
    top_p: Any = None
    top_logprobs: Any = None
    parallel_tool_calls: Any = None
    reasoning_mode: Any = None
    steps: Any = None
    max_branches: Any = None
    max_branch_tokens: Any = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    seed: Any = None
    stop: Any = None
    # They change no answer; two of them, whose turn it is.
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None
    service_tier: Any = None
    stream_options: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    # See `_NEUTRAL`.
    background: Any = None
    context_management: Any = None
    conversation: Any = None
    max_tool_calls: Any = None
    moderation: Any = None
    prompt: Any = None
    truncation: Any = None

    @classmethod
    def read(cls, body: bytes) -> Self:
        """A body as it came.

        Raises:
            ApiError: 400, with the first field that is wrong.
        """
        asked = cls.parse(body)
        asked.refuse_unavailable(_NEUTRAL)
        return asked

    @property
    def items(self) -> list[Json]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input

    def as_chat(self, history: Sequence[Json] = ()) -> tuple[ChatRequest, bytes]:
        """The chat completion that this asks for, read and as a body.

        Args:
            history: items that come before the input.

        Raises:
            ApiError: 400, with the first field that is wrong.
        """
        messages = as_messages([*history, *self.items])
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        body = {name: getattr(self, name) for name in _PASSED_ON}
        body |= {"messages": messages, "max_tokens": self.max_output_tokens}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if _LOGPROBS in (self.include or ()) or self.top_logprobs:
            body["logprobs"] = True
        if self.tools is not None:
            body["tools"] = [_tool(tool, place) for place, tool in enumerate(self.tools)]
        body["tool_choice"] = _choice(self.tool_choice)
        if self.text is not None:
            body["response_format"] = _format(self.text.format)
            body["verbosity"] = self.text.verbosity
        if self.reasoning is not None:
            body["reasoning_effort"] = self.reasoning.effort
        written = json.dumps({name: value for name, value in body.items() if value is not None})
        try:
            return ChatRequest.read(written.encode()), written.encode()
        except ApiError as error:
            raise as_asked(error) from error


def as_asked(error: ApiError) -> ApiError:
    """An error of the chat completion, with the name that its field has here."""
    if error.param is not None:
        named = own_name(error.param)
        message = str(error).replace(error.param, named, 1)
        error.args, error.param = (message,), named
    return error


def own_name(param: str) -> str:
    """What a field of a chat completion is called here."""
    first, _, rest = param.partition(".")
    if first in _NAMES:
        return _NAMES[first]
    return f"{first}.{rest.replace('function.', '')}" if rest else first


def _tool(tool: Json, place: int) -> Json:
    if tool.get("type") != "function":
        raise ApiError(
            400,
            f"tools.{place} is of type {str(tool.get('type'))[:80]!r}; allowed is 'function': what "
            "a tool does is done by the client",
            "unsupported_value",
            param=f"tools.{place}.type",
        )
    function = {name: value for name, value in tool.items() if name != "type"}
    return {"type": "function", "function": function}


def _choice(choice: str | Json | None) -> str | Json | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "function":
        raise ApiError(
            400,
            f"tool_choice is of type {str(choice.get('type'))[:80]!r}; allowed are 'none', 'auto', "
            "'required' and the name of a function",
            "unsupported_value",
            param="tool_choice",
        )
    return {"type": "function", "function": {"name": choice.get("name")}}


def _format(form: Json | None) -> Json | None:
    if form is None or form.get("type") != "json_schema":
        return form
    schema = {name: value for name, value in form.items() if name != "type"}
    return {"type": "json_schema", "json_schema": schema}
