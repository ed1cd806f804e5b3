"""`ParallelReasoningLLM`: the three stages as a LangChain runnable."""

# ruff: noqa: A002 - `input` is what langchain-core calls it

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForChainRun,
    CallbackManagerForChainRun,
)
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import (
    get_callback_manager_for_config,
    get_config_list,
    run_in_executor,
)
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from langchain_pos.asked import Asked, answer_all
from langchain_pos.graph import reasoning_graph
from langchain_pos.inputs import ReasoningInput, as_request, sum_up
from langchain_pos.loaded import LoadedEngines
from langchain_pos.prompts import ReasoningPrompts, load_prompts
from langchain_pos.schema import ReasoningChunk, ReasoningResult
from langchain_pos.settings import ReasoningSettings
from langchain_pos.tracing import RunTracer

if TYPE_CHECKING:
    from langchain_core.runnables.graph import Graph

    from langchain_pos.engine.engine import Engine
    from langchain_pos.reasoner import Answer, Reasoner

_AsyncChunks = AsyncGenerator[ReasoningChunk, None]
_Manager = CallbackManagerForChainRun | AsyncCallbackManagerForChainRun


class ParallelReasoningLLM(
    RunnableSerializable[ReasoningInput, ReasoningResult], ReasoningSettings
):
    """Answers a question by parallel reasoning on a local model.

    The model plans independent steps, writes all of them together, one forward pass a token for
    all, and concludes. Everything `ReasoningSettings` has can be set here, and for one call:
    `llm.invoke(question, mode="sequential")`.

    The model is loaded when it is first needed. One instance serves many threads and tasks;
    their questions share forward passes.

    Examples:
        >>> llm = ParallelReasoningLLM()  # the shipped model
        >>> llm.invoke("Here are 10 students' resumes: …").conclusion
        'name: Lily Wilson'
    """

    model: str | None = None
    """Folder or Hugging Face hub name; None is the model that ships with the package."""
    dtype: str = "auto"
    """"auto" (the checkpoint's) or a torch dtype's name."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", "mps"."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    attn_implementation: str = "auto"
    """"auto", "sdpa" or "eager"."""
    max_slots: int | None = Field(default=None, ge=1)
    """KV-cache slots to hold at most; None takes what fits in half of the free memory."""
    draft_rows: int | None = Field(default=None, ge=1)
    """Rows of a forward pass that drafts may fill; None: measured when the model is loaded."""
    prefix_cache_tokens: int = Field(default=16384, ge=0)
    """Tokens of questions whose keys and values are kept for later ones that begin alike."""
    cuda_graphs: bool | None = None
    """Record forward passes as CUDA graphs; None: where the model lies on one CUDA device."""
    pack_weights: bool | None = None
    """Rewrite the weights for faster steps on a CPU; None: unless the model was given loaded."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    use_safetensors: bool = True
    """Refuse pickled weights."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """For transformers' `from_pretrained`: `device_map`, `quantization_config`, …"""
    prompts: ReasoningPrompts | None = None
    """What is said to the model; None: its own wording if its folder carries one, else English or
    Chinese by the question's script."""

    engines: SkipJsonSchema[LoadedEngines] = Field(
        default_factory=LoadedEngines, exclude=True, repr=False
    )
    """The loaded model, shared by the copies that LangChain makes; leave it alone."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    # ------------------------------------------------------------------ the model

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, **fields: Any) -> Self:
        """A runnable over a transformers model and tokenizer that are loaded already."""
        from langchain_pos.engine.engine import Engine

        return cls.from_engine(
            Engine(
                model,
                tokenizer,
                attn_implementation=fields.get("attn_implementation", "auto"),
                max_slots=fields.get("max_slots"),
                draft_rows=fields.get("draft_rows"),
                prefix_cache_tokens=fields.get("prefix_cache_tokens", 16384),
                cuda_graphs=fields.get("cuda_graphs"),
                pack_weights=bool(fields.get("pack_weights")),
            ),
            **fields,
        )

    @classmethod
    def from_engine(cls, engine: Engine, **fields: Any) -> Self:
        """A runnable over an engine; several may share one, and its forward passes."""
        name = str(getattr(engine.model, "name_or_path", "") or "") or None
        runnable = cls(**{"model": name, **fields})
        runnable.engines.give(name, runnable._load_options(), engine)
        return runnable

    @property
    def engine(self) -> Engine:
        """The engine; loads the model if need be.

        Raises:
            ModelLoadError, UnsupportedModelError: it cannot serve.
        """
        return self.engines.get(self.model, self._load_options())

    @property
    def reasoner(self) -> Reasoner:
        """The three stages over `engine`."""
        from langchain_pos.reasoner import Reasoner

        engine = self.engine
        name = self.model or str(getattr(engine.model, "name_or_path", "") or "")
        folder = Path(name).expanduser() if name else None
        if folder is None or not folder.is_dir():
            return Reasoner(engine, prompts=self.prompts, model_name=name)
        prompts = self.prompts or load_prompts(folder)
        return Reasoner(engine, prompts=prompts, model_name=folder.name)

    def _load_options(self) -> dict[str, Any]:
        return {
            "dtype": self.dtype,
            "device": self.device,
            "revision": self.revision,
            "attn_implementation": self.attn_implementation,
            "max_slots": self.max_slots,
            "draft_rows": self.draft_rows,
            "prefix_cache_tokens": self.prefix_cache_tokens,
            "cuda_graphs": self.cuda_graphs,
            "pack_weights": self.pack_weights,
            "trust_remote_code": self.trust_remote_code,
            "use_safetensors": self.use_safetensors,
            **self.model_kwargs,
        }

    # ------------------------------------------------------------------ one question

    def invoke(
        self, input: ReasoningInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ReasoningResult:
        """Answer a question; `kwargs` are `ReasoningSettings` for this call."""
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(
        self, input: ReasoningInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ReasoningResult:
        """Answer a question beside the event loop. Cancelling the task frees its slots."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def stream(
        self, input: ReasoningInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[ReasoningChunk]:
        """The answer while it is written; the chunks add up to what `invoke` returns.

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
        async with aclosing(chunks):  # so that closing this one cancels the question at once
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
        """Answer many questions together: they share forward passes.

        `max_concurrency` in the config bounds how many are under way at once.
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
        """Answer many questions together, and yield each with its index as soon as it is done.

        Closing the iterator cancels those that are still under way.
        """
        configs = get_config_list(config, len(inputs))
        managers: dict[int, CallbackManagerForChainRun] = {}

        def ask(place: int) -> Asked:
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

    # ------------------------------------------------------------------ behind them

    def _prepare(
        self,
        input: ReasoningInput,
        manager: _Manager,
        *,
        deltas: bool = False,
        **kwargs: Any,
    ) -> tuple[Answer, RunTracer | None]:
        """All that a question needs before it is queued: the model, the prompt, the checks."""
        ask = as_request(input)
        settings = ReasoningSettings.of(self, **kwargs)
        reasoner, tracer = self.reasoner, None
        if RunTracer.listens(manager):
            sampling = {"temperature", "top_p", "top_k", "min_p", "seed", "stop"}
            tracer = RunTracer(
                manager,
                model_name=reasoner.model_name or type(reasoner.engine.model).__name__,
                parameters=settings.model_dump(include=sampling),
            )
        answer = reasoner.prepare(ask, settings, deltas=deltas, spans=tracer is not None)
        return answer, tracer

    def _ask(self, input: ReasoningInput, manager: _Manager, **kwargs: Any) -> Asked:
        answer, tracer = self._prepare(input, manager, **kwargs)
        return Asked(answer.engine.scheduler, answer.submit(), tracer)

    async def _aask(self, input: ReasoningInput, manager: _Manager, **kwargs: Any) -> Asked:
        # What takes time is done beside the event loop. Queueing is done here: a task that is
        # cancelled meanwhile leaves no request behind.
        answer, tracer = await run_in_executor(None, self._prepare, input, manager, **kwargs)
        return Asked(answer.engine.scheduler, answer.submit(), tracer)

    def _invoke(
        self, input: ReasoningInput, run_manager: CallbackManagerForChainRun, **kwargs: Any
    ) -> ReasoningResult:
        asked = self._ask(input, run_manager, **kwargs)
        with closing(asked.chunks()) as chunks:
            for _ in chunks:
                pass
        return asked.request.result()

    async def _ainvoke(
        self, input: ReasoningInput, run_manager: AsyncCallbackManagerForChainRun, **kwargs: Any
    ) -> ReasoningResult:
        asked = await self._aask(input, run_manager, **kwargs)
        async with aclosing(asked.achunks()) as chunks:
            async for _ in chunks:
                pass
        return asked.request.result()

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

        def ask(place: int) -> Asked:
            return self._ask(inputs[place], run_manager[place], **kwargs)

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

        async def one(
            input: ReasoningInput, manager: AsyncCallbackManagerForChainRun
        ) -> Exception | ReasoningResult:
            async with slots:
                try:
                    return await self._ainvoke(input, manager, **kwargs)
                except Exception as error:  # noqa: BLE001 - each question has its own
                    return error

        return list(await asyncio.gather(*map(one, inputs, run_manager)))

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The three stages between input and output, as LangChain draws a chain."""
        return reasoning_graph(self, config)
