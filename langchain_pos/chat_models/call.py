"""One call of the chat model: what is asked, checked and handed to the reasoner."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ValidationError

from langchain_pos.chat_models.batch import belongs_to_batch, current_batch
from langchain_pos.chat_models.fields import sampling_off
from langchain_pos.chat_models.messages import (
    as_turns,
    encode_chat,
    take_prefill,
    template_of,
    with_instruction,
)
from langchain_pos.chat_models.output import MessageWriter, whole_message
from langchain_pos.chat_models.structured_output import read_response_format, schema_instruction
from langchain_pos.chat_models.tool_calling import (
    ToolCallReader,
    arguments_schema,
    as_tool,
    constraint_for,
    form_of,
    read_choice,
    unique,
)
from langchain_pos.errors import AnswerTimeoutError, InvalidRequestError
from langchain_pos.field_names import known_names, wrong_fields
from langchain_pos.reasoning.branch_schema import BranchSchema
from langchain_pos.reasoning.question import NO_OPTIONS, AnswerOptions
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.data import Mode, ReasoningRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.chat_models.fields import ChatFields
    from langchain_pos.engine.sampling import Logprobs
    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.reasoning.chat_template import Turn
    from langchain_pos.results.result import ReasoningChunk, ReasoningResult

logger = logging.getLogger("langchain_pos")
MODES = ("auto", "parallel", "sequential")
MOST_TOP_LOGPROBS = 20
_OF_A_CALL = (
    "continue_final_message logprobs max_retries model parallel_tool_calls response_format steps "
    "stream strict timeout tool_choice tools top_logprobs"
).split()
"""What a call takes besides `ReasoningSettings`."""
_RETRY_TEMPERATURE = 0.7
"""Of further attempts, where the first one was greedy: it would only come again."""


class ChatCall:
    """Everything that can be refused is refused when it is made; `chunks` queues and runs it.

    Args:
        chat: the model with its fields.
        messages: the history, ending with a question or a tool's result.
        stop: texts that end the answer; None takes the model's own.
        kwargs: what was given for this call.
        deltas: write the answer piece by piece.

    Attributes:
        queued: whether the engine has taken it; it fits.

    Raises:
        InvalidRequestError: something of it is not possible.
        ContextLengthError, OutOfSlotsError: it does not fit.
    """

    def __init__(
        self,
        chat: ChatFields,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        kwargs: dict[str, Any],
        *,
        deltas: bool,
    ) -> None:
        self.queued = False
        self._began = time.monotonic()  # compiling a schema counts towards the timeout
        self._deltas = deltas
        self._attempts = 1
        self._fault: str | None = None
        self._usage: UsageMetadata | None = None  # of all attempts
        given = known_names(kwargs, [*ReasoningSettings.model_fields, *_OF_A_CALL])
        for ignored in ("stream", "strict"):  # langchain-core's; answers are strict either way
            given.pop(ignored, None)
        self._model = given.pop("model", None) or chat.model
        self._timeout: float | None = given.pop("timeout", chat.timeout)
        self._logprobs = _logprobs(given.pop("logprobs", None), given.pop("top_logprobs", None))
        steps = given.pop("steps", None)

        # 1. Tools and schemas.
        tools = unique([as_tool(tool) for tool in given.pop("tools", None) or ()])
        choice = read_choice(
            given.pop("tool_choice", None), [tool["function"]["name"] for tool in tools]
        )
        if choice == "any" and not tools:
            raise InvalidRequestError(
                "tool_choice='any' asks for a tool call, and no tools are bound; use bind_tools"
            )
        tools = [] if choice == "none" else tools
        several = given.pop("parallel_tool_calls", None) is not False
        schema, tell_schema = read_response_format(given.pop("response_format", None))
        self._schema = None if schema is None else BranchSchema(schema, what="response_format")
        self._tool_schemas = {
            tool["function"]["name"]: BranchSchema(
                arguments_schema(tool), what=f"parameters of {tool['function']['name']}"
            )
            for tool in tools
        }

        # 2. The messages, and whether branches come first.
        turns = as_turns(messages)
        prefill = take_prefill(turns) if given.pop("continue_final_message", False) else None
        asks = bool(turns) and turns[-1]["role"] == "user"
        if not asks and prefill is None and not (turns and turns[-1]["role"] == "tool"):
            last = turns[-1]["role"] if turns else "nothing"
            raise InvalidRequestError(
                f"the messages end with {last}; they must end with a human message or with the "
                "result of a tool, or with an AI message to be continued "
                "(continue_final_message=True)"
            )
        form = bool(tools or schema)
        asks = asks and prefill is None
        mode = self._mode(given.pop("mode", chat.mode), asks=asks, form=form)
        if stop is not None:
            given["stop"] = stop
        settings = ReasoningSettings.of(chat, **{"mode": mode, **_budgets(chat, given), **given})
        if not settings.conclude:
            raise InvalidRequestError(
                "a chat model's text is the conclusion, so conclude=False leaves nothing to say; "
                "ParallelReasoningLLM gives the branches alone"
            )

        # 3. What the model reads, and what it may write.
        reasoner = chat._reasoner(self._model)
        self._name = chat._model_name(self._model)
        self._tokenizer: PreTrainedTokenizerBase  # of a local model
        users = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
        options, local = NO_OPTIONS, chat.remote is None
        if not local:
            wants = {
                "tools": tools,
                "response_format": schema,
                "logprobs": self._logprobs,
                "continue_final_message": prefill,
            }
            _refuse_over_http([name for name, value in wants.items() if value], turns)
        else:
            tokenizer = chat.engine_of(self._model).tokenizer
            self._tokenizer = tokenizer
            tool_form, _ = form_of(template_of(tokenizer, tools))

            from langchain_pos.engine.tokenization.text import encode_continuation

            def encode(asked: str) -> list[int]:
                said = list(turns)
                if asks:
                    said[-1] = {**said[-1], "content": asked}
                if tell_schema and schema is not None:
                    said = with_instruction(said, users, schema_instruction(schema))
                thinking = False if prefill else settings.enable_thinking
                token_ids = encode_chat(tokenizer, said, tools, thinking=thinking)
                return token_ids + (encode_continuation(tokenizer, prefill) if prefill else [])

            constraint = constraint_for(tools, choice, tool_form, several=several, schema=schema)
            options = AnswerOptions(encode, constraint, self._logprobs, prefill is not None)
        try:
            request = ReasoningRequest(
                question=turns[users[-1]]["content"] if users else turns[-1]["content"],
                messages=tuple((turn["role"], turn["content"]) for turn in turns),
                steps=steps,
            )
        except ValidationError as error:
            raise InvalidRequestError(wrong_fields(error)) from error

        def prepare(settings: ReasoningSettings) -> None:
            self._reasoning = reasoner.prepare(request, settings, deltas=deltas, options=options)
            forced = choice not in ("auto", "none")
            calls = ToolCallReader(tool_form, forced=forced) if local and tools else None
            self._writer = MessageWriter(
                blocks=chat.output_version == "v1",
                calls=calls,
                schemas=self._tool_schemas,
                deltas=deltas,
            )

        self._settings, self._prepare = settings, prepare
        prepare(settings)

    def _mode(self, asked: str, *, asks: bool, form: bool) -> Mode:
        if asked not in MODES:
            raise InvalidRequestError(f"mode={asked!r} is not possible; allowed are {MODES}")
        if asked == "parallel" and self._logprobs is not None:
            raise InvalidRequestError(
                "log-probabilities come with sequential answers only; leave out mode='parallel' or "
                "logprobs"
            )
        if asked == "auto":
            asked = "sequential" if form or self._logprobs is not None else "parallel"
        return "parallel" if asked == "parallel" and asks else "sequential"

    # -------------------------------------------------------------------- running

    def chunks(self) -> Generator[ChatGenerationChunk, None, None]:
        """Queue the call and yield its answer; closing the iterator cancels it."""
        while True:
            request, held = self._submit(), []
            with self._in_time(), closing(request.stream(self._seconds_left())) as news:
                for chunk in news:
                    written = list(self._write(chunk))
                    if self._deltas:
                        yield from written
                    held += written
            last = self._last(request.result())
            if not self._tries_again():
                break
        if not self._deltas:
            yield from held
        yield last

    async def achunks(self) -> AsyncGenerator[ChatGenerationChunk, None]:
        """See `chunks`; the passes run beside the event loop."""
        async with aclosing(self.anews()) as news:
            async for _, written in news:
                for chunk in written:
                    yield chunk

    async def anews(
        self,
    ) -> AsyncGenerator[tuple[ReasoningChunk | None, list[ChatGenerationChunk]], None]:
        """Each piece of reasoning with the message chunks it gives; None with the last of them."""
        while True:
            request, held = self._submit(), []
            with self._in_time():
                async with aclosing(request.astream(self._seconds_left())) as news:
                    async for chunk in news:
                        written = list(self._write(chunk))
                        if self._deltas:
                            yield chunk, written
                        held += written
            last = self._last(request.result())
            if not self._tries_again():
                break
        yield None, [last] if self._deltas else [*held, last]

    def _submit(self) -> Pending[ReasoningResult]:
        request = self._reasoning.submit(current_batch())
        self.queued = True
        belongs_to_batch(request)
        return request

    def _write(self, chunk: ReasoningChunk) -> Generator[ChatGenerationChunk, None, None]:
        for message in self._writer.write(chunk):
            yield ChatGenerationChunk(message=message)

    def _last(self, result: ReasoningResult) -> ChatGenerationChunk:
        metadata: dict[str, Any] = {"model_name": self._name}
        if self._logprobs is not None:
            metadata["logprobs"] = self._logprobs_of(self._logprobs)
        message = self._writer.close(self._reasoning, result, **metadata)
        message.usage_metadata = self._usage = add_usage(self._usage, message.usage_metadata)
        found = message.response_metadata
        self._fault = self._wrong_with(result) if found["finish_reason"] == "stop" else None
        if self._fault is not None:
            found |= {"finish_reason": "error", "error": self._fault}
        if self._attempts > 1:
            found["attempts"] = self._attempts
        return ChatGenerationChunk(message=message)

    def _wrong_with(self, result: ReasoningResult) -> str | None:
        """What of a whole answer does not fit its schema; the grammar cannot say all of it."""
        if self._writer.call_errors:
            return "; ".join(self._writer.call_errors.values())
        if self._schema is None:
            return None
        try:
            self._schema.parse(result.conclusion)
        except ValueError as error:
            return f"the answer does not fit {self._schema.name}: {error}"
        return None

    def _tries_again(self) -> bool:
        """Whether an answer that does not fit is asked for once more, with another seed."""
        known = self._settings
        if self._fault is None or self._deltas or self._attempts >= known.max_plan_attempts:
            return False
        changed: dict[str, Any] = {
            "temperature": known.temperature or _RETRY_TEMPERATURE,
            "seed": (known.seed or 0) + self._attempts,
        }
        if known.max_tokens is not None and self._usage is not None:
            changed["max_tokens"] = known.max_tokens - self._usage["output_tokens"]
            if changed["max_tokens"] < 1:
                return False
        self._attempts += 1
        logger.info("%s; trying again, with another seed", self._fault)
        self._prepare(known.model_copy(update=changed))
        return True

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Name the timeout that was given, not what compiling and earlier attempts left of it."""
        try:
            yield
        except AnswerTimeoutError:
            raise AnswerTimeoutError(
                f"the answer was not complete after timeout={self._timeout} seconds; give it more "
                "time, or smaller budgets"
            ) from None

    def _seconds_left(self) -> float | None:
        if self._timeout is None:
            return None
        return max(self._timeout - (time.monotonic() - self._began), 0.001)

    def _logprobs_of(self, logprobs: Logprobs) -> dict[str, Any]:
        """In OpenAI's form; `bytes` only where a token is whole characters."""
        tokenizer = self._tokenizer

        def entry(token_id: int, logprob: float) -> dict[str, Any]:
            text = str(tokenizer.decode([token_id]))
            known = None if "\ufffd" in text else list(text.encode())
            return {"token": text, "bytes": known, "logprob": logprob}

        return {
            "content": [
                entry(seen.token_id, seen.logprob) | {"top_logprobs": [entry(*t) for t in seen.top]}
                for seen in logprobs.of(self._reasoning.token_ids)
            ]
        }


def as_result(chunks: Sequence[ChatGenerationChunk]) -> ChatResult:
    """All chunks of a call as langchain-core takes an answer."""
    messages = [chunk.message for chunk in chunks if isinstance(chunk.message, AIMessageChunk)]
    return ChatResult(generations=[ChatGeneration(message=whole_message(messages))])


def _refuse_over_http(asked: Sequence[str], turns: Sequence[Turn]) -> None:
    """Only plain answers can be had from a server.

    Raises:
        InvalidRequestError: something else is asked for, or stands in the history.
    """
    history = ["a history with tool calls"] * any(
        turn["role"] == "tool" or turn.get("tool_calls") for turn in turns
    )
    if refused := [*asked, *history]:
        raise InvalidRequestError(
            f"{', '.join(refused)}: a server can only be asked for plain answers. Use a local "
            "model, or the server's own chat endpoint through ChatOpenAI(base_url=…)"
        )


def _budgets(chat: ChatFields, given: dict[str, Any]) -> dict[str, Any]:
    """The standard names of chat models as ours; taken out of `given`."""
    given |= sampling_off({name: given[name] for name in ("top_k", "top_p") if name in given})
    budgets: dict[str, Any] = {}
    if given.get("max_tokens") is not None:
        _at_least("max_tokens", given["max_tokens"], 1)
    retries = given.pop("max_retries", chat.max_retries)
    if retries is not None:
        _at_least("max_retries", retries, 0)
        budgets["max_plan_attempts"] = 1 + retries
    return budgets


def _at_least(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InvalidRequestError(f"{name}={value!r}: it must be a number, at least {least}")


def _logprobs(asked: Any, top: Any) -> Logprobs | None:
    if not asked and not top:
        return None
    top = top or 0
    if not isinstance(top, int) or not 0 <= top <= MOST_TOP_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs={top!r}: it must be a number from 0 to {MOST_TOP_LOGPROBS}"
        )
    from langchain_pos.engine.sampling import Logprobs

    return Logprobs(top)
