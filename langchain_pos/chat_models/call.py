"""One call of the chat model: what was asked, checked and put to the reasoner."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_pos.chat_models.batch import belongs_to_batch, current_batch
from langchain_pos.chat_models.messages import as_turns, encode_chat, template_of
from langchain_pos.chat_models.output import MessageWriter, whole_message
from langchain_pos.chat_models.structured_output import read_response_format, told_schema
from langchain_pos.chat_models.tool_calling import (
    ToolCallReader,
    constraint_for,
    form_of,
    read_choice,
    unique,
)
from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.decoder import NO_OPTIONS, AnswerOptions
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.data import Mode, ReasoningRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.chat_models.fields import ChatFields
    from langchain_pos.engine.sampling import Logprobs
    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.reasoning.chat_template import Turn
    from langchain_pos.results.result import ReasoningChunk, ReasoningResult

MODES = ("auto", "parallel", "sequential")
MOST_TOP_LOGPROBS = 20


class ChatCall:
    """Everything that can be refused is refused when it is made; `chunks` queues and runs it.

    Args:
        chat: the model with its fields.
        messages: the history, ending with a question or a tool's result.
        stop: texts that end the answer; None takes the model's own.
        kwargs: what was given for this call.
        deltas: tell the answer piece by piece.

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
        given = dict(kwargs)
        for ignored in ("stream", "strict"):  # langchain-core's; answers are strict either way
            given.pop(ignored, None)
        self._model = given.pop("model", None) or chat.model
        self._timeout = given.pop("timeout", chat.timeout)
        self._logprobs = _logprobs(given.pop("logprobs", None), given.pop("top_logprobs", None))
        steps = given.pop("steps", None)

        # 1. Tools and schemas.
        tools = unique([convert_to_openai_tool(tool) for tool in given.pop("tools", None) or ()])
        choice = read_choice(
            given.pop("tool_choice", None), [tool["function"]["name"] for tool in tools]
        )
        if choice == "any" and not tools:
            raise InvalidRequestError(
                "tool_choice='any' wants a tool call, and no tools are bound; use bind_tools"
            )
        tools = [] if choice == "none" else tools
        several = given.pop("parallel_tool_calls", None) is not False
        schema, tell_schema = read_response_format(given.pop("response_format", None))

        # 2. The messages, and whether branches come first.
        turns = as_turns(messages)
        asks = bool(turns) and turns[-1]["role"] == "user"
        if not asks and not (turns and turns[-1]["role"] == "tool"):
            last = turns[-1]["role"] if turns else "nothing"
            raise InvalidRequestError(
                f"the messages end with {last}; they must end with a human message or with the "
                "result of a tool"
            )
        mode = self._mode(given.pop("mode", chat.mode), asks=asks, form=bool(tools or schema))
        settings = ReasoningSettings.of(
            chat, **{"mode": mode, "stop": _stops(chat, stop), **_budgets(chat, given), **given}
        )

        if not settings.conclude:
            raise InvalidRequestError(
                "a chat model's text is the conclusion, so conclude=False leaves nothing to say; "
                "ParallelReasoningLLM gives the branches alone"
            )

        # 3. What the model is told, and what it may write.
        reasoner = chat._reasoner(self._model)
        self._name = chat._model_name(self._model)
        self._tokenizer: PreTrainedTokenizerBase  # of a local model
        users = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
        options, calls = NO_OPTIONS, None
        if chat.remote is not None:
            wants = {"tools": tools, "response_format": schema, "logprobs": self._logprobs}
            _refuse_over_http([name for name, value in wants.items() if value], turns)
        else:
            tokenizer = chat.engine_of(self._model).tokenizer
            self._tokenizer = tokenizer
            tool_form, _ = form_of(template_of(tokenizer, tools))

            def encode(asked: str) -> list[int]:
                told = list(turns)
                if asks:
                    told[-1] = {**told[-1], "content": asked}
                if tell_schema and schema is not None:
                    told = _with_schema(told, users, told_schema(schema))
                return encode_chat(tokenizer, told, tools)

            constraint = constraint_for(tools, choice, tool_form, several=several, schema=schema)
            options = AnswerOptions(encode, constraint, self._logprobs)
            calls = ToolCallReader(tool_form) if tools else None
        self._reasoning = reasoner.prepare(
            ReasoningRequest(
                question=turns[users[-1]]["content"] if users else turns[-1]["content"],
                messages=tuple((turn["role"], turn["content"]) for turn in turns),
                steps=None if steps is None else tuple(steps),
            ),
            settings,
            deltas=deltas,
            options=options,
        )
        self._writer = MessageWriter(blocks=chat.output_version == "v1", calls=calls)

    def _mode(self, asked: str, *, asks: bool, form: bool) -> Mode:
        if asked not in MODES:
            raise InvalidRequestError(f"mode={asked!r} is not possible; allowed are {MODES}")
        if asked == "parallel" and self._logprobs is not None:
            raise InvalidRequestError(
                "log-probabilities are told of sequential answers only; leave mode='parallel' or "
                "logprobs out"
            )
        if asked == "auto":
            asked = "sequential" if form or self._logprobs is not None else "parallel"
        return "parallel" if asked == "parallel" and asks else "sequential"

    # -------------------------------------------------------------------- running

    def chunks(self) -> Generator[ChatGenerationChunk, None, None]:
        """Queue the call and yield its answer; closing the iterator cancels it."""
        request = self._submit()
        with closing(request.stream(self._timeout)) as news:
            for chunk in news:
                yield from self._write(chunk)
        yield self._last(request.result())

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
        request = self._submit()
        async with aclosing(request.astream(self._timeout)) as news:
            async for chunk in news:
                yield chunk, list(self._write(chunk))
        yield None, [self._last(request.result())]

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
            metadata["logprobs"] = self._told_logprobs(self._logprobs)
        return ChatGenerationChunk(message=self._writer.close(self._reasoning, result, **metadata))

    def _told_logprobs(self, logprobs: Logprobs) -> dict[str, Any]:
        """In OpenAI's form; `bytes` only where a token is whole characters."""
        tokenizer = self._tokenizer

        def told(token_id: int, logprob: float) -> dict[str, Any]:
            text = str(tokenizer.decode([token_id]))
            known = None if "\ufffd" in text else list(text.encode())
            return {"token": text, "bytes": known, "logprob": logprob}

        return {
            "content": [
                told(seen.token_id, seen.logprob) | {"top_logprobs": [told(*t) for t in seen.top]}
                for seen in logprobs.of(self._reasoning.token_ids)
            ]
        }


def as_result(chunks: Sequence[ChatGenerationChunk]) -> ChatResult:
    """All chunks of a call as langchain-core takes an answer."""
    messages = [chunk.message for chunk in chunks if isinstance(chunk.message, AIMessageChunk)]
    return ChatResult(generations=[ChatGeneration(message=whole_message(messages))])


def _refuse_over_http(wanted: Sequence[str], turns: Sequence[Turn]) -> None:
    """Only plain answers can be had from a server.

    Raises:
        InvalidRequestError: something else is wanted, or has been in the history.
    """
    history = ["a history with tool calls"] * any(
        turn["role"] == "tool" or turn.get("tool_calls") for turn in turns
    )
    if refused := [*wanted, *history]:
        raise InvalidRequestError(
            f"{', '.join(refused)}: over a server, only plain answers can be asked for. Take a "
            "local model, or ask the server's own chat endpoint, by ChatOpenAI(base_url=…)"
        )


def _stops(chat: ChatFields, stop: Sequence[str] | None) -> tuple[str, ...]:
    if stop is None:
        return chat.stop
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _budgets(chat: ChatFields, given: dict[str, Any]) -> dict[str, Any]:
    """The standard names of chat models as ours; taken out of `given`."""
    budgets: dict[str, Any] = {}
    most = given.pop("max_tokens", chat.max_tokens)
    if most is not None:
        _at_least("max_tokens", most, 1)
        budgets |= {"max_sequential_tokens": most, "max_conclusion_tokens": most}
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


def _with_schema(turns: list[Turn], users: list[int], told: str) -> list[Turn]:
    """The schema behind what the user said last, or as a turn of its own."""
    if not users:
        return [*turns, {"role": "user", "content": told}]
    last = turns[users[-1]]
    turns[users[-1]] = {**last, "content": f"{last['content']}\n\n{told}"}
    return turns
