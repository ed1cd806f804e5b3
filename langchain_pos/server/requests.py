"""The body of `/v1/chat/completions`, read strictly: nothing that changes an answer is ignored.

Fields of OpenAI's API that change no answer here (`user`, `metadata`, …) are accepted. Those that
would, and cannot be had, are refused unless they hold the value that changes nothing; so are
unknown fields, because a misspelt one would change the answer in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.messages.tool import invalid_tool_call
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from langchain_pos.field_names import did_you_mean
from langchain_pos.results.data import GivenStep
from langchain_pos.server.errors import ApiError

if TYPE_CHECKING:
    from langchain_pos.chat_models.base import ChatParallelReasoning
    from langchain_pos.server.admission import ServerLimits

Neutral = tuple[tuple[Any, ...], str]
"""What a field that is not to be had may hold besides null, and what to do instead."""

_NEUTRAL: dict[str, Neutral] = {
    "n": ((1,), "one answer per request; send several requests, they share forward passes"),
    "frequency_penalty": ((0,), "use repetition_penalty instead"),
    "presence_penalty": ((0,), "use repetition_penalty instead"),
    "logit_bias": (({},), "tokens cannot be weighted"),
    "functions": (([],), "use tools"),
    "function_call": ((), "use tool_choice"),
    "modalities": ((["text"],), "the model writes text only"),
    "audio": ((), "the model writes text only"),
    "reasoning_effort": ((), "use reasoning_mode, which says whether branches come first"),
    "verbosity": ((), "say it in the prompt"),
    "web_search_options": ((), "give the model a tool"),
}
"""Fields of OpenAI's API that are not to be had."""


class Body(BaseModel):
    """A body, or a part of one, in which an unknown field is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """A body as it came.

        Raises:
            ApiError: 400, with the first field that is wrong.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise _wrong(error, cls.model_fields) from error

    def refuse_unavailable(self, fields: Mapping[str, Neutral]) -> None:
        """Refuse what cannot be had.

        Args:
            fields: see `Neutral`.

        Raises:
            ApiError: 400, a field holds another value than those.
        """
        for name, (allowed, instead) in fields.items():
            value = getattr(self, name)
            fits = (value == x and isinstance(value, bool) == isinstance(x, bool) for x in allowed)
            if value is not None and not any(fits):
                listed = ", ".join(map(repr, (*allowed, None)))
                raise ApiError(
                    400,
                    f"{name}={_short(value)} is not possible; allowed is {listed}: {instead}",
                    "unsupported_value",
                    param=name,
                )


class _Part(Body):
    model_config = ConfigDict(strict=True, extra="ignore")


class FunctionSpec(Body):
    """What a tool is called, does and takes."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSpec


class CalledFunction(_Part):
    """A call that the model wrote in an earlier turn."""

    name: str
    arguments: str

    @field_validator("arguments", mode="before")
    @classmethod
    def _are_an_object(cls, arguments: Any) -> Any:
        """Nothing, in any of its spellings, is no arguments; what was cut stays as it is."""
        if arguments is None or (isinstance(arguments, str) and arguments.strip() in ("", "null")):
            return "{}"
        if isinstance(arguments, str):
            try:
                found = from_json(arguments)
            except ValueError:  # cut at a budget, by us or by another server
                return arguments
            if not isinstance(found, dict):
                raise ValueError("the arguments of a call must be a JSON object")
        return arguments

    @property
    def is_whole(self) -> bool:
        """Whether the arguments can be read."""
        try:
            from_json(self.arguments)
        except ValueError:
            return False
        return True


class CallSpec(_Part):
    """See `CalledFunction`."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class NamedFunction(_Part):
    """A tool's name."""

    name: str


class NamedChoice(_Part):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class MessageSpec(_Part):
    """A message; what OpenAI's own answers carry besides (`refusal`, `annotations`) is ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[CallSpec] | None = None


class StreamOptions(_Part):
    """`include_usage`: a last chunk with the usage."""

    include_usage: bool | None = None


class TemplateOptions(Body):
    """What vLLM takes as `chat_template_kwargs`."""

    enable_thinking: bool | None = None


class ChatRequest(Body):
    """A request as OpenAI's API has it, with a few fields of our own."""

    model: str
    messages: list[MessageSpec] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    stop: str | list[Annotated[str, Field(min_length=1)]] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[ToolSpec] | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    # Our own.
    reasoning_mode: Literal["auto", "parallel", "sequential"] | None = None
    steps: list[GivenStep] | None = None
    max_branches: int | None = Field(default=None, ge=2)
    max_branch_tokens: int | None = Field(default=None, ge=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    add_generation_prompt: bool | None = None
    # They change no answer; the first two, whose turn it is.
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None
    # See `_NEUTRAL`.
    n: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    @classmethod
    def read(cls, body: bytes) -> Self:
        """A body as it came.

        Raises:
            ApiError: 400, with the first field that is wrong.
        """
        asked = cls.parse(body)
        asked.refuse_unavailable(_NEUTRAL)
        if asked.top_logprobs is not None and not asked.logprobs:
            raise ApiError(
                400,
                "top_logprobs needs logprobs=true as well",
                "invalid_value",
                param="top_logprobs",
            )
        if asked.add_generation_prompt not in (None, not asked.continue_final_message):
            raise ApiError(
                400,
                "add_generation_prompt must be the opposite of continue_final_message: an answer "
                "is either begun or continued; leave it out",
                "invalid_value",
                param="add_generation_prompt",
            )
        if asked.stream_options is not None and not asked.stream:
            raise ApiError(
                400,
                "stream_options are for stream=true only; leave them out",
                "invalid_value",
                param="stream_options",
            )
        if None not in (both := {asked.max_tokens, asked.max_completion_tokens}) and len(both) > 1:
            raise ApiError(
                400,
                "max_tokens and max_completion_tokens differ; they mean the same, give one",
                "invalid_value",
                param="max_tokens",
            )
        if asked.steps is not None and not asked._reasons():
            raise ApiError(
                400,
                "steps are for parallel answers, and this one would be sequential; leave them out, "
                "or ask for reasoning_mode='parallel' (not with logprobs)",
                "invalid_value",
                param="steps",
            )
        return asked

    def _reasons(self) -> bool:
        """Whether branches may come first; see `ChatParallelReasoning.mode`."""
        if self.reasoning_mode in ("parallel", "sequential"):
            return self.reasoning_mode == "parallel"
        form = self.response_format is not None and self.response_format.get("type") != "text"
        tools = bool(self.tools) and self.tool_choice != "none"
        return not (form or tools or self.logprobs)

    @property
    def stops(self) -> list[str] | None:
        """Texts that end the answer; None takes the chat model's own."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def on_behalf_of(self) -> str:
        """Whom the caller says that it asks for; "" if it does not."""
        names = (self.safety_identifier, self.user)
        return next((name for name in names if isinstance(name, str)), "")

    def to_messages(self) -> list[BaseMessage]:
        """The messages as LangChain's.

        Raises:
            ApiError: one of them cannot be read.
        """
        try:
            return [_as_message(each) for each in self.messages]
        except (KeyError, NotImplementedError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ApiError(
                400,
                f"the messages cannot be read ({reason}); give them in OpenAI's form",
                "invalid_value",
                param="messages",
            ) from error

    def call_options(self, chat: ChatParallelReasoning, limits: ServerLimits) -> dict[str, Any]:
        """What `ChatCall` takes besides the messages.

        Raises:
            ApiError: more is asked for than the server allows.
        """
        most = self.max_completion_tokens or self.max_tokens
        self._at_most("max_tokens", most, limits.max_tokens)
        self._at_most("max_branches", self.max_branches, chat.max_branches)
        self._at_most("max_branch_tokens", self.max_branch_tokens, chat.max_branch_tokens)
        for step in self.steps or ():
            self._at_most("steps.max_tokens", step.max_tokens, chat.max_branch_tokens)
        options: dict[str, Any] = {
            name: value
            for name in (
                *("temperature", "top_p", "seed", "logprobs", "top_logprobs"),
                *("parallel_tool_calls", "response_format", "steps", "max_branches"),
                *("max_branch_tokens", "top_k", "min_p", "repetition_penalty"),
                "continue_final_message",
            )
            if (value := getattr(self, name)) is not None
        }
        if self.chat_template_kwargs is not None:
            options |= self.chat_template_kwargs.model_dump(exclude_none=True)
        if self.reasoning_mode is not None:
            options["mode"] = self.reasoning_mode
        if self.tools is not None:
            options["tools"] = [tool.model_dump(exclude_none=True) for tool in self.tools]
        if isinstance(self.tool_choice, NamedChoice):
            options["tool_choice"] = self.tool_choice.model_dump()
        elif self.tool_choice is not None:
            options["tool_choice"] = self.tool_choice
        if most is not None:
            options["max_tokens"] = most
        elif chat.max_tokens is None:
            for name in ("max_sequential_tokens", "max_conclusion_tokens"):
                options[name] = min(getattr(chat, name), limits.max_tokens)
        else:
            options["max_tokens"] = min(chat.max_tokens, limits.max_tokens)
        return options

    def _at_most(self, name: str, value: int | None, most: int) -> None:
        if value is not None and value > most:
            raise ApiError(
                400,
                f"{name}={value} is more than this server allows; ask for at most {most}",
                "limit_exceeded",
                param=name,
            )


def _as_message(spec: MessageSpec) -> BaseMessage:
    """A message as LangChain's; of its calls, those that were cut are invalid ones."""
    fields = {"content": "", **spec.model_dump(exclude_none=True)}
    cut = [call for call in spec.tool_calls or () if not call.function.is_whole]
    if cut:
        fields["tool_calls"] = [
            call
            for call, own in zip(fields["tool_calls"], spec.tool_calls or (), strict=True)
            if own.function.is_whole
        ]
    (message,) = convert_to_messages([fields])
    if isinstance(message, AIMessage):
        message.invalid_tool_calls = [
            invalid_tool_call(
                name=call.function.name,
                args=call.function.arguments,
                id=call.id,
                error="it was cut",
            )
            for call in cut
        ]
    return message


def _wrong(error: ValidationError, fields: Iterable[str]) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {first['msg']}", "invalid_json")
        case "extra_forbidden":
            last = str(first["loc"][-1])
            hint = did_you_mean(last, fields) or "leave it out"
            return ApiError(
                400, f"unknown field {param!r}; {hint}", "unknown_parameter", param=param
            )
        case "missing":
            return ApiError(
                400, f"{param!r} is missing; add it", "missing_required_parameter", param=param
            )
    given = _short(first["input"])
    return ApiError(400, f"{param}={given}: {first['msg']}", "invalid_value", param=param)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
