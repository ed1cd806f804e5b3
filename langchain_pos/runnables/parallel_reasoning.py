"""`ParallelReasoningLLM`: the three stages as a LangChain runnable."""

# ruff: noqa: A002 - `input` is langchain-core's name

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    CallbackManagerForChainRun,
)
from langchain_core.output_parsers import BaseLLMOutputParser
from langchain_core.runnables import RunnableConfig, RunnablePassthrough, RunnableSerializable
from langchain_core.runnables.config import (
    get_callback_manager_for_config,
    get_config_list,
    run_in_executor,
)
from langchain_core.runnables.graph import Graph
from pydantic import ConfigDict

from langchain_pos.errors import InvalidRequestError
from langchain_pos.model_source import ModelSource
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.result import ReasoningChunk, ReasoningResult
from langchain_pos.runnables.as_text import as_text
from langchain_pos.runnables.inputs import ReasoningInput, as_request, sum_up
from langchain_pos.runnables.pending import PendingAnswer, answer_all
from langchain_pos.runnables.tracing import RunTracer

if TYPE_CHECKING:
    from langchain_pos.reasoning.reasoner import Reasoning


def _reads_text(other: Any) -> bool:
    return isinstance(other, BaseLLMOutputParser)


_AsyncChunks = AsyncGenerator[ReasoningChunk, None]
_Manager = CallbackManagerForChainRun | AsyncCallbackManagerForChainRun


class ParallelReasoningLLM(
    ModelSource, RunnableSerializable[ReasoningInput, ReasoningResult], ReasoningSettings
):
    """Answers a question by parallel reasoning on a local model.

    The model plans independent steps, writes all of them together, one token of each per forward
    pass, and concludes. All of `ReasoningSettings` can be set here or for one call:
    `llm.invoke(question, mode="sequential")`.

    The model is loaded when first needed. With `engine=OpenAICompletionsEngine(…)`, a server
    answers instead. One instance serves many threads and tasks; their questions share forward
    passes.

    Examples:
        >>> llm = ParallelReasoningLLM()  # the shipped model
        >>> llm.invoke("Here are 10 students' resumes: …").conclusion
        'name: Lily Wilson'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    # -------------------------------------------------------------------- in a chain

    def __or__(self, other: Any) -> Any:
        """A chain; an output parser takes the answer as a text, `str(result)`."""
        return super().__or__(as_text() | other if _reads_text(other) else other)

    def pipe(self, *others: Any, name: str | None = None) -> Any:
        """See `__or__`."""
        if others and _reads_text(others[0]):
            others = (as_text(), *others)
        return super().pipe(*others, name=name)

    # ------------------------------------------------------------------ one question

    def invoke(
        self, input: ReasoningInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ReasoningResult:
        """Answer a question; `kwargs` are `ReasoningSettings` for this call."""
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(
        self, input: ReasoningInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ReasoningResult:
        """Answer without blocking the event loop. Cancelling the task frees its slots."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def stream(
        self, input: ReasoningInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[ReasoningChunk]:
        """Stream the answer while it is written; the chunks add up to the result of `invoke`.

        Closing the iterator cancels the question.
        """
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(
        self, input: ReasoningInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[ReasoningChunk]:
        """See `stream`."""

        async def one() -> AsyncIterator[ReasoningInput]:
            yield input

        chunks = cast("_AsyncChunks", self.atransform(one(), config, **kwargs))
        async with aclosing(chunks):  # so that closing this generator cancels the question at once
            async for chunk in chunks:
                yield chunk

    def transform(
        self,
        input: Iterator[ReasoningInput],
        config: RunnableConfig | None = None,
        **kwargs: Any | None,
    ) -> Iterator[ReasoningChunk]:
        """Take the whole input, then stream."""
        chunks = self._transform_stream_with_config(input, self._transform, config, **kwargs)
        yield from cast("Iterator[ReasoningChunk]", chunks)

    async def atransform(
        self,
        input: AsyncIterator[ReasoningInput],
        config: RunnableConfig | None = None,
        **kwargs: Any | None,
    ) -> AsyncIterator[ReasoningChunk]:
        """See `transform`."""
        chunks = cast(
            "_AsyncChunks",
            self._atransform_stream_with_config(input, self._atransform, config, **kwargs),
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    # ------------------------------------------------------------------ many questions

    def batch(
        self,
        inputs: list[ReasoningInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[ReasoningResult]:
        """Answer many questions together; they share forward passes.

        `max_concurrency` in the config limits how many are in progress at once.
        """
        return self._batch_with_config(
            self._batch, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    async def abatch(
        self,
        inputs: list[ReasoningInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[ReasoningResult]:
        """See `batch`."""
        return await self._abatch_with_config(
            self._abatch, inputs, config, return_exceptions=return_exceptions, **kwargs
        )

    def batch_as_completed(  # type: ignore[override]
        self,
        inputs: Sequence[ReasoningInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> Iterator[tuple[int, ReasoningResult | Exception]]:
        """Answer many questions together, yielding each with its index as soon as it is done.

        Closing the iterator cancels those still in progress.
        """
        configs = get_config_list(config, len(inputs))
        managers: dict[int, CallbackManagerForChainRun] = {}

        def ask(place: int) -> PendingAnswer:
            managers[place] = self._start_run(inputs[place], configs[place])
            return self._ask(inputs[place], managers[place], **kwargs)

        try:
            limit = configs[0].get("max_concurrency") if configs else None
            with closing(answer_all(len(inputs), limit, ask)) as answers:
                for place, answer in answers:
                    manager = managers.pop(place)
                    if isinstance(answer, ReasoningResult):
                        manager.on_chain_end(answer)
                    else:
                        manager.on_chain_error(answer)
                        if not return_exceptions:
                            raise answer
                    yield place, answer
        except BaseException as stopped:
            for manager in managers.values():
                manager.on_chain_error(stopped)
            raise

    def _start_run(self, input: ReasoningInput, config: RunnableConfig) -> Any:
        return get_callback_manager_for_config(config).on_chain_start(
            None,
            input,
            name=config.get("run_name") or self.get_name(),
            run_id=config.pop("run_id", None),
        )

    # ------------------------------------------------------------------ internals

    def _prepare(
        self,
        input: ReasoningInput,
        manager: _Manager,
        *,
        deltas: bool = False,
        **kwargs: Any,
    ) -> tuple[Reasoning, RunTracer | None]:
        """Everything that a question needs before it is queued: model, prompt, checks."""
        ask = as_request(input)
        if "steps" in kwargs:
            raise InvalidRequestError(
                "steps belong to the question: llm.invoke({'question': …, 'steps': […]})"
            )
        settings = ReasoningSettings.of(self, **kwargs)
        reasoner, tracer = self.reasoner, None
        if RunTracer.listens(manager):
            sampling = {"temperature", "top_p", "top_k", "min_p", "seed", "stop"}
            tracer = RunTracer(
                manager,
                model_name=reasoner.model_name or type(self.engine.model).__name__,
                parameters=settings.model_dump(include=sampling),
            )
        reasoning = reasoner.prepare(ask, settings, deltas=deltas, spans=tracer is not None)
        return reasoning, tracer

    def _ask(
        self,
        input: ReasoningInput,
        manager: _Manager,
        *,
        caller: Hashable | None = None,
        **kwargs: Any,
    ) -> PendingAnswer:
        reasoning, tracer = self._prepare(input, manager, **kwargs)
        return PendingAnswer(reasoning.submit(caller), tracer)

    async def _aask(
        self,
        input: ReasoningInput,
        manager: _Manager,
        *,
        caller: Hashable | None = None,
        **kwargs: Any,
    ) -> PendingAnswer:
        # Slow work runs outside the event loop. Queueing happens here, so that a task cancelled in
        # the meantime leaves no request behind.
        reasoning, tracer = await run_in_executor(None, self._prepare, input, manager, **kwargs)
        return PendingAnswer(reasoning.submit(caller), tracer)

    def _invoke(
        self, input: ReasoningInput, run_manager: CallbackManagerForChainRun, **kwargs: Any
    ) -> ReasoningResult:
        asked = self._ask(input, run_manager, **kwargs)
        with closing(asked.chunks()) as chunks:
            for _ in chunks:
                pass
        return asked.pending.result()

    async def _ainvoke(
        self, input: ReasoningInput, run_manager: AsyncCallbackManagerForChainRun, **kwargs: Any
    ) -> ReasoningResult:
        asked = await self._aask(input, run_manager, **kwargs)
        async with aclosing(asked.achunks()) as chunks:
            async for _ in chunks:
                pass
        return asked.pending.result()

    def _transform(
        self,
        inputs: Iterator[ReasoningInput],
        run_manager: CallbackManagerForChainRun,
        **kwargs: Any,
    ) -> Iterator[ReasoningChunk]:
        asked = self._ask(sum_up(list(inputs)), run_manager, deltas=True, **kwargs)
        with closing(asked.chunks()) as chunks:
            yield from chunks

    async def _atransform(
        self,
        inputs: AsyncIterator[ReasoningInput],
        run_manager: AsyncCallbackManagerForChainRun,
        **kwargs: Any,
    ) -> AsyncIterator[ReasoningChunk]:
        whole = sum_up([part async for part in inputs])
        asked = await self._aask(whole, run_manager, deltas=True, **kwargs)
        async with aclosing(asked.achunks()) as chunks:
            async for chunk in chunks:
                yield chunk

    def _batch(
        self,
        inputs: list[ReasoningInput],
        run_manager: list[CallbackManagerForChainRun],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Exception | ReasoningResult]:
        limit = config[0].get("max_concurrency") if config else None
        caller = object()

        def ask(place: int) -> PendingAnswer:
            return self._ask(inputs[place], run_manager[place], caller=caller, **kwargs)

        answers = dict(answer_all(len(inputs), limit, ask))
        return [answers[place] for place in range(len(inputs))]

    async def _abatch(
        self,
        inputs: list[ReasoningInput],
        run_manager: list[AsyncCallbackManagerForChainRun],
        config: list[RunnableConfig],
        **kwargs: Any,
    ) -> list[Exception | ReasoningResult]:
        limit = (config[0].get("max_concurrency") if config else None) or len(inputs)
        slots = asyncio.Semaphore(limit)
        caller = object()

        async def one(
            input: ReasoningInput, manager: AsyncCallbackManagerForChainRun
        ) -> Exception | ReasoningResult:
            async with slots:
                try:
                    return await self._ainvoke(input, manager, caller=caller, **kwargs)
                except Exception as error:  # noqa: BLE001 - it is this question's answer
                    return error

        tasks = [
            asyncio.ensure_future(one(*asked)) for asked in zip(inputs, run_manager, strict=True)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # when cancelled, `gather` does not wait for all of them
            await asyncio.gather(*tasks, return_exceptions=True)

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The three stages between input and output, drawn like a chain."""
        return _graph(self, config)


def _graph(llm: ParallelReasoningLLM, config: RunnableConfig | None) -> Graph:
    """Input, plan, branches, conclusion, output; without the stages that the settings omit."""
    metadata = config.get("metadata") if config else None
    graph = Graph()
    last = graph.add_node(llm.get_input_schema(config))
    stages = ["plan", "branches", "conclusion"] if llm.mode == "parallel" else ["answer"]
    for name in stages if llm.conclude else stages[:-1]:
        stage = graph.add_node(RunnablePassthrough(name=name), metadata=metadata)
        graph.add_edge(last, stage)
        last = stage
    graph.add_edge(last, graph.add_node(llm.get_output_schema(config)))
    return graph
