"""`ChatParallelReasoning`: a local chat model for LangChain, with parallel reasoning."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, cast

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.runnables.config import get_config_list, run_in_executor
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_pos.chat_models.batch import BATCH_THREADS, one_batch, side_by_side
from langchain_pos.chat_models.call import ChatCall, as_result
from langchain_pos.chat_models.fields import ChatFields
from langchain_pos.chat_models.structured_output import (
    Schema,
    StructuredMethod,
    StructuredOutputParser,
    is_pydantic,
    json_schema_of,
)
from langchain_pos.chat_models.tool_calling import as_tool, read_choice
from langchain_pos.errors import InvalidRequestError


class ChatParallelReasoning(ChatFields):
    """A chat model on a local model: parallel reasoning, tools, structured output.

    A plain question is answered by parallel reasoning: the branches are reasoning content, the
    conclusion is the text. With tools bound, structured output or log-probabilities asked for, or
    after a tool's result, the same model answers sequentially. `mode` decides otherwise, here or
    for one call. Everything `ReasoningSettings` has can be set here, and for one call.

    The model is loaded when it is first needed. With `engine=OpenAICompletionsEngine(…)` a server
    answers in its place: plain answers only. One instance serves many threads and tasks;
    their requests share forward passes.

    Example:
        >>> chat = ChatParallelReasoning()  # the shipped model
        >>> chat.invoke("Here are 10 students' resumes: …").text
        'name: Lily Wilson'
        >>> chat.bind_tools([add]).invoke("What is 3 + 4?").tool_calls  # doctest: +SKIP
    """

    # ---------------------------------------------------------- tools and structure

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call; every call is valid JSON of the tool's schema.

        Args:
            tools: tools, functions, pydantic models, TypedDicts, or schemas in OpenAI's form.
            tool_choice: "auto" or None leaves it to the model, "any" or True asks for at least one
                call, a name for exactly one of that tool, "none" for no call at all.
            strict: written into the schemas; calls are held to them either way.
            parallel_tool_calls: False allows one call a message.
            **kwargs: bound as well.

        Raises:
            InvalidRequestError: `tool_choice` names no tool that is given.
        """
        formatted = [as_tool(tool, strict=strict) for tool in tools]
        names = [tool["function"]["name"] for tool in formatted]
        if tool_choice is not None:
            kwargs["tool_choice"] = read_choice(tool_choice, names)
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=formatted, **kwargs)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: StructuredMethod = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with answers that are objects of a schema, by constrained decoding.

        Args:
            schema: pydantic model (answers are its objects), TypedDict or JSON schema (dicts).
            method: "json_schema" shows the model the schema and constrains its answer,
                "function_calling" does so through a tool call, "json_mode" leaves it to the prompt
                what to write and constrains all the same.
            include_raw: answer with a dict of `raw`, `parsed` and `parsing_error`.
            strict: written into a tool's schema; answers are held to it either way.
            **kwargs: bound as well.

        Raises:
            InvalidRequestError: the schema or method is not possible.
        """
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise InvalidRequestError(
                f"method={method!r} is not possible; allowed are 'json_schema', "
                "'function_calling' and 'json_mode'"
            )
        if schema is None and method != "json_mode":
            raise InvalidRequestError(
                f"method={method!r} needs a schema; only 'json_mode' does not"
            )
        traced: dict[str, Any] = {"kwargs": {"method": method, "strict": strict}}
        if schema is not None:
            traced["schema"] = schema
            kwargs["ls_structured_output_format"] = traced
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]  # type: ignore[arg-type]
            model = self.bind_tools([schema], tool_choice=name, strict=strict, **kwargs)  # type: ignore[list-item]
        else:
            described = None if schema is None else json_schema_of(schema)
            model = self.bind(response_format=_response_format(method, described), **kwargs)
        parser = StructuredOutputParser(
            schema_type=schema if is_pydantic(schema) else None,
            from_tool=method == "function_calling",
        )
        if not include_raw:
            return model | parser
        parsed = RunnablePassthrough.assign(
            parsed=(lambda both: both["raw"]) | parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks(
            [failed], exception_key="parsing_error"
        )

    # ------------------------------------------------------------------ one answer

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return as_result(list(ChatCall(self, messages, stop, kwargs, deltas=False).chunks()))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = await run_in_executor(None, ChatCall, self, messages, stop, kwargs, deltas=False)
        async with aclosing(call.achunks()) as chunks:
            return as_result([chunk async for chunk in chunks])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = ChatCall(self, messages, stop, kwargs, deltas=True)
        with closing(call.chunks()) as chunks:
            for chunk in chunks:
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = await run_in_executor(None, ChatCall, self, messages, stop, kwargs, deltas=True)
        async with aclosing(call.achunks()) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # ---------------------------------------------------------------- many answers

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many inputs together: they share forward passes.

        `max_concurrency` in the config bounds how many are under way at once. Where one fails and
        exceptions are not returned, those under way are cancelled.
        """
        configs = get_config_list(config, len(inputs))
        limit = (configs[0].get("max_concurrency") if configs else None) or len(inputs)

        def answer(place: int) -> AIMessage:
            return self.invoke(inputs[place], configs[place], **kwargs)

        found = side_by_side(answer, len(inputs), limit=limit, return_exceptions=return_exceptions)
        return found  # type: ignore[return-value]

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """See `batch`."""
        with one_batch():
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **kwargs
            )

    def batch_as_completed(  # type: ignore[override]
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[int, AIMessage | Exception]]:
        """As `batch`, each answer with its index as soon as it is there."""
        threads = min(max(len(inputs), 1), BATCH_THREADS)
        configs = [
            cast("RunnableConfig", {"max_concurrency": threads, **_given(each)})
            for each in get_config_list(config, len(inputs))
        ]
        yield from super().batch_as_completed(inputs, configs, **kwargs)

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        **kwargs: Any,
    ) -> LLMResult:
        """See `BaseChatModel.generate`; several lists of messages are answered together."""
        if len(messages) < 2:
            return super().generate(messages, stop, callbacks, **kwargs)
        run_id = kwargs.pop("run_id", None)

        def answer(place: int) -> LLMResult:
            own = {"run_id": run_id if place == 0 else None}
            return BaseChatModel.generate(self, [messages[place]], stop, callbacks, **own, **kwargs)

        answers = side_by_side(answer, len(messages), limit=len(messages))
        results = [answer for answer in answers if isinstance(answer, LLMResult)]
        return LLMResult(
            generations=[result.generations[0] for result in results],
            llm_output={},
            run=[run for result in results for run in result.run or ()] or None,
        )


def _given(config: RunnableConfig) -> dict[str, Any]:
    """What is set in a config."""
    return {name: value for name, value in config.items() if value is not None}


def _response_format(method: str, schema: dict[str, Any] | None) -> dict[str, Any]:
    if method == "json_mode":
        return {"type": "json_object"} | ({} if schema is None else {"schema": schema})
    name = (schema or {}).get("title", "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
