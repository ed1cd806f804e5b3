"""A decoder over an OpenAI-compatible server: prompts as text, one HTTP request per text.

All branches of a question begin with the same text, which a server with a prefix cache reads once.
If the server can enforce a grammar, skeletons and schemas are under one; otherwise a skeleton is
parsed as models write it, and a branch that does not match its schema is retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from langchain_pos.engine.completion import TokenUsage
from langchain_pos.engine.tokenization.text import encode_continuation
from langchain_pos.errors import ContextLengthError, InvalidRequestError, ParallelReasoningError
from langchain_pos.reasoning.chat_template import (
    encode_prompt,
    may_think,
    prompt_text,
    spells_special_token,
    thinks,
)
from langchain_pos.reasoning.decoder import Written
from langchain_pos.reasoning.planning import RETRY_TEMPERATURE
from langchain_pos.reasoning.question import NO_OPTIONS
from langchain_pos.remote.dialects import Call, constrains, fields_of
from langchain_pos.remote.sinks import PassageSink, SkeletonSink, TextSink

if TYPE_CHECKING:
    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.reasoning.budget import Budget
    from langchain_pos.reasoning.decoder import (
        BranchTask,
        Decoder,
        Outline,
        Passage,
        Trunk,
    )
    from langchain_pos.reasoning.prompts import Messages
    from langchain_pos.reasoning.question import Question
    from langchain_pos.remote.engine import Connection, OpenAICompletionsEngine
    from langchain_pos.remote.sinks import Sink
    from langchain_pos.results.result import ReasoningResult

_SEEDS = 1 << 32
"""Upper bound of the seeds that every server accepts."""


class RemoteDecoding:
    """Questions put to a server; see `reasoning.decoder.Decoding`.

    Args:
        engine: the server.
        model: the model's name on the server; None takes the engine's.
    """

    def __init__(self, engine: OpenAICompletionsEngine, model: str | None = None) -> None:
        self.engine = engine
        self.model = model

    @property
    def model_name(self) -> str:
        """The model's name on the server, as far as known before asking it."""
        return self.model or self.engine.model or self.engine.base_url

    def decoder(self, question: Question) -> RemoteDecoder:
        """See `Decoding`."""
        return RemoteDecoder(self.engine, self.model, question)

    def submit(
        self,
        reason: Callable[[Pending[ReasoningResult]], Coroutine[Any, Any, ReasoningResult]],
        *,
        budget: Budget | None,
        caller: Hashable | None,
    ) -> Pending[ReasoningResult]:
        """See `Decoding`. The server decides the order."""
        return self.engine.scheduler.submit(reason)


@dataclass
class TextTrunk:
    """The text shared by all stages; see `reasoning.decoder.Trunk`.

    Attributes:
        decoder: counts its tokens.
        head: the prompt: text, or token ids where the server would tokenize its text differently.
        text: the settled part of the answer.
        thinks: see `Trunk`.
    """

    decoder: RemoteDecoder
    head: str | list[int]
    text: str = ""
    thinks: bool | None = False

    def count(self, text: str = "") -> int:
        """See `Trunk`."""
        return self.decoder.length(self, text)

    def copy(self) -> TextTrunk:
        """See `Trunk`."""
        return replace(self)

    def settle(self, text: str) -> None:
        """See `Trunk`."""
        self.text += text

    def keep(self, written: Written, length: int) -> None:
        """See `Trunk`."""
        self.text = self.text[: written.where] + written.raw[:length]


class RemoteDecoder:
    """Calls a server on behalf of one question; see `reasoning.decoder.Decoder`.

    Args:
        engine: the server.
        model: the model's name on the server; None takes the engine's.
        question: to answer.

    Attributes:
        model_name: the model's name on the server; known once it has been asked.
        input_tokens: tokens of all prompts, as the server reports them.
        cached_tokens: those of them that were in its prefix cache.

    Raises:
        InvalidRequestError: the question needs a local model.
        ModelLoadError: the tokenizer cannot be loaded.
        MissingExtraError: the client is not installed.
    """

    passes = 0
    peak_slots = 0

    def __init__(
        self, engine: OpenAICompletionsEngine, model: str | None, question: Question
    ) -> None:
        if question.settings.join == "reuse":
            raise InvalidRequestError(
                "join='reuse' continues from the branches' own keys and values, which stay on the "
                "server; omit it"
            )
        if question.options != NO_OPTIONS:
            raise InvalidRequestError(
                "tools, schemas of the whole answer and log-probabilities need a model in this "
                "process; ask a server for plain answers"
            )
        import langchain_pos.remote.client  # noqa: F401  # its error names the missing extra

        self.budget: Budget
        self.model_name = ""
        self.input_tokens = 0
        self.cached_tokens = 0
        self._engine = engine
        self._model = model
        self._settings = question.settings
        self._progress = question.progress
        self._schema = question.schema
        steps = question.request.steps or ()
        self._also = [part for step in steps for part in (step.title, step.prompt) if part]
        self._tokenizer = engine.tokenizer_or_none  # loaded here, not on the event loop
        self._connection: Connection  # from `start` on
        self._limit: int | None = None

    # ------------------------------------------------------------------- its size

    @property
    def may_think(self) -> bool:
        """See `Decoder`."""
        return self._settings.enable_thinking is not False and may_think(self._tokenizer)

    @property
    def limit(self) -> int | None:
        """See `Decoder`: the server's context, if it is known and tokens can be counted."""
        return self._limit

    def too_long(self, prompt: int, room: int) -> ParallelReasoningError:
        """See `Decoder`."""
        return ContextLengthError(
            f"the prompt has {prompt} tokens, and {room} must be left for the answer; the server "
            f"has room for {self._limit}. Shorten the question, or start the server with a longer "
            "context"
        )

    def prompt_tokens(self, messages: Messages) -> int:
        """See `Decoder`."""
        return self.open(messages).count()

    def tokens(self, trunk: Trunk, text: str, *, after: str = "") -> int:
        """See `Decoder`."""
        return len(self._encode(text))

    def length(self, trunk: TextTrunk, more: str = "") -> int:
        """Tokens of a trunk and what follows it; 0 if they cannot be counted."""
        if self._tokenizer is None:
            return 0
        if isinstance(trunk.head, str):
            return len(self._tokenizer(trunk.head + trunk.text + more)["input_ids"])
        return len(trunk.head) + len(self._encode(trunk.text + more))

    def _encode(self, text: str) -> list[int]:
        return [] if self._tokenizer is None else encode_continuation(self._tokenizer, text)

    # -------------------------------------------------------------------- writing

    async def start(self, pending: Pending[ReasoningResult]) -> None:
        """See `Decoder`. Asks the server for its models, unless they are known."""
        self._connection = await self._engine.connect(self._model)
        self.model_name = self._connection.model
        if self._tokenizer is not None:
            self._limit = self._connection.context_length

    def open(self, messages: Messages) -> TextTrunk:
        """See `Decoder`.

        Raises:
            InvalidRequestError: the chat template refuses the messages; or a text spells a special
                token, which the server would take for one.
        """
        tokenizer = self._tokenizer
        texts = [*(text for _, text in messages), *self._also]
        thinking = self._settings.enable_thinking
        text = prompt_text(tokenizer, messages, thinking)
        opened = thinks(text) if self.may_think else False
        if tokenizer is None or not spells_special_token(tokenizer, texts):
            return TextTrunk(self, text, thinks=opened)
        if not self._constrained:
            raise InvalidRequestError(
                "the question spells one of the model's special tokens, which a server that takes "
                "prompts only as text would read as one; remove it from the question. vLLM, "
                "SGLang and llama.cpp take token ids (server='vllm', 'sglang', 'llamacpp')"
            )
        return TextTrunk(self, encode_prompt(tokenizer, messages, thinking), thinks=opened)

    async def write_outline(self, trunk: Trunk, outline: Outline) -> Written:
        """See `Decoder`. Without a grammar, the skeleton's terminator is a stop text."""
        trunk = _remote(trunk)
        if outline.list_began is not None:
            trunk = _remote(outline.list_began).copy()
            trunk.settle(outline.skeleton.so_far)
        sink = SkeletonSink(outline, stop=self._outline_stop(outline))
        call = Call(
            max_tokens=outline.max_tokens,
            temperature=outline.temperature,
            seed=outline.seed % _SEEDS,
            stop=sink.stop,
            grammar=outline.skeleton.grammar if self._constrained else None,
        )
        first = None
        if outline.first is not None:
            first = asyncio.create_task(self._ahead(trunk.copy(), outline.first, outline))
        try:
            await self._write(sink, trunk, call, outline.skeleton.begin)
            text = sink.whole()
            written = Written(text, text, "stop", sink.usage, where=len(trunk.text))
            if first is not None and outline.wait(written):
                await first
        finally:
            if first is not None:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
        return written

    def _outline_stop(self, outline: Outline) -> tuple[str, ...]:
        """The text that ends a skeleton, where no grammar does."""
        end = outline.skeleton.end
        return () if self._constrained or not end else (end,)

    async def write_branches(
        self,
        trunk: Trunk,
        seen: str,
        tasks: Sequence[BranchTask],
        *,
        parallel: int,
        on_start: Callable[[int], None],
        on_end: Callable[[int, Written], None],
    ) -> None:
        """See `Decoder`."""
        before = _remote(trunk)
        before = TextTrunk(self, before.head, before.text + seen)
        slots = asyncio.Semaphore(parallel)

        async def branch(index: int) -> None:
            async with slots:
                on_start(index)
                on_end(index, await self._branch(before, tasks[index]))

        running = [asyncio.create_task(branch(index)) for index in range(len(tasks))]
        try:
            await asyncio.gather(*running)
        finally:  # cancelled, or one has failed in a way that concerns all
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _ahead(self, trunk: TextTrunk, task: BranchTask, outline: Outline) -> None:
        """The first branch, as far as it is waited for.

        One that is cut there, or failed, is written again with the others.
        """
        most = min(outline.most, task.max_tokens)
        written = await self._branch_once(trunk, replace(task, max_tokens=most), 0, silent=True)
        cut = written.finish_reason == "length" and most < task.max_tokens
        schema = task.schema
        wrong = schema is not None and schema.read(written.text, written.finish_reason)[1]
        if not (cut or wrong or written.failure is not None):
            outline.on_first(written)

    async def _branch(self, trunk: TextTrunk, task: BranchTask) -> Written:
        """One branch. Its failures are recorded in it and affect no other.

        If the server cannot enforce a schema, a branch that does not match is retried, and none of
        its text is passed on before it matches.
        """
        schema = task.schema
        again = schema is not None and not self._constrained
        usage = TokenUsage()
        for tries in range(self._settings.max_plan_attempts if again else 1):
            written = await self._branch_once(trunk, task, tries, silent=again)
            usage += written.usage
            if schema is None or not again or written.failure is not None:
                break
            if written.finish_reason == "length" or schema.read(written.text, "stop")[1] is None:
                break
            if self.budget.answer - self._progress.output_tokens < task.max_tokens:
                break
        if again and written.text:
            task.on_text(written.text)
        return replace(written, usage=usage)

    async def _branch_once(
        self, trunk: TextTrunk, task: BranchTask, tries: int, *, silent: bool
    ) -> Written:
        sink = TextSink(
            None if silent else task.on_text,
            stop=task.stop,
            strip=task.strip,
            end=task.end,
            restartable=not self._progress.deltas,
        )
        call = Call(
            max_tokens=task.max_tokens,
            temperature=max(task.temperature, RETRY_TEMPERATURE) if tries else task.temperature,
            seed=(task.seed + tries) % _SEEDS,
            stop=task.stop,
            json_schema=task.schema.json_schema if task.schema else None,
        )
        failure = None
        try:
            await self._write(sink, trunk, call, task.opening)
        except ParallelReasoningError as error:
            failure = error
        text = sink.close()
        return Written(text, text, sink.finish_reason, sink.usage, failure=failure)

    def join(self, trunk: Trunk, joined: str, tail: str, bodies: Sequence[str]) -> None:
        """See `Decoder`."""
        trunk.settle(joined)

    async def write(self, trunk: Trunk, passage: Passage) -> Written:
        """See `Decoder`. Where a block opens, the request is aborted."""
        trunk = _remote(trunk)
        sink = PassageSink(
            passage.on_text,
            stop=passage.stop,
            strip=passage.strip,
            restartable=not self._progress.deltas,
            opens=passage.opened,
        )
        call = Call(
            max_tokens=passage.max_tokens,
            temperature=self._settings.temperature,
            seed=passage.seed % _SEEDS,
            stop=passage.stop,
        )
        failure = None
        try:
            await self._write(sink, trunk, call)
        except ParallelReasoningError as error:
            failure = error
        return Written(
            text=sink.close() if sink.opened is None else sink.text,
            raw=sink.written.text,
            finish_reason=sink.finish_reason,
            usage=sink.usage,
            opened=sink.opened,
            failure=failure,
            where=len(trunk.text),
        )

    # -------------------------------------------------------------------- a request

    @property
    def _constrained(self) -> bool:
        """Whether the server can enforce a grammar."""
        return constrains(self._connection.dialect)

    async def _write(self, sink: Sink, trunk: TextTrunk, call: Call, more: str = "") -> None:
        """Request one completion after a trunk and follow it.

        Args:
            sink: receives it. Its `usage` is as reported by the server, or counted here if the
                server reports none or the sink has stopped early.
            trunk: the text to continue.
            call: budget, sampling, constraint.
            more: text between the trunk and the completion.

        Raises:
            ParallelReasoningError: see `CompletionsClient.write`.
        """
        prompt: str | list[int]
        if isinstance(trunk.head, str):
            prompt = f"{trunk.head}{trunk.text}{more}"
        else:
            prompt = [*trunk.head, *self._encode(f"{trunk.text}{more}")]
        fields = fields_of(call, self._settings, self._connection.dialect)
        fields["extra_body"] |= self._engine.extra_body
        fields |= {"model": self._connection.model, "prompt": prompt}
        try:
            await self._connection.client.write(sink, fields)
        finally:
            self._count(sink, trunk, more)

    def _count(self, sink: Sink, trunk: TextTrunk, more: str) -> None:
        written = sink.written
        usage = written.usage
        if usage is None:
            if not written.chunks:
                return
            # Without a tokenizer: a chunk is a token with most servers.
            output = len(self._encode(written.text)) or written.chunks
            usage = TokenUsage(self.length(trunk, more), output)
        self._progress.output_tokens += usage.output_tokens
        self._progress.has_read(usage.input_tokens)
        self.input_tokens += usage.input_tokens
        self.cached_tokens += written.cached_tokens
        sink.usage = usage


def _remote(trunk: Trunk) -> TextTrunk:
    if not isinstance(trunk, TextTrunk):
        raise TypeError(f"a remote decoder writes after its own trunks, not {type(trunk).__name__}")
    return trunk


if TYPE_CHECKING:

    def _is_a_decoder(decoder: RemoteDecoder) -> Decoder:
        return decoder
