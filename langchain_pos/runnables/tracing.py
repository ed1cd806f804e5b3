"""A question's spans as LangChain's child runs and custom events.

    ParallelReasoningLLM        chain   the question's run
      ├─ plan                   model   the skeleton
      ├─ expand                 chain   holds the branches
      │    ├─ branch 0          model
      │    └─ branch 1          model   in parallel: their times overlap
      └─ conclude               model

Runs begin and end when the work does, because the caller that waits for an answer takes the spans
after every forward pass. If no handler listens, there is no `RunTracer` and no spans are recorded.

The same code serves sync and async: `handle` and `fail` are generators that yield whatever a
callback manager returned, a value or an awaitable, and are sent the value back (`run`, `arun`).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult

from langchain_pos.errors import ParallelReasoningError, RequestCancelled
from langchain_pos.reasoning.spans import Span, SpanEnd, SpanEvent, SpanStart, SpanText

if TYPE_CHECKING:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForChainRun,
        CallbackManagerForChainRun,
    )

EVENT_PLAN = "parallel_reasoning_plan"
"""Custom event: a plan is complete. Data: block, preamble, titles."""
EVENT_BRANCH_START = "parallel_reasoning_branch_start"
"""Custom event: a branch is about to be written. Data: block, index, title."""
EVENT_BRANCH_TOKEN = "parallel_reasoning_branch_token"
"""Custom event: a branch has written text. Only while streaming. Data: also delta."""
EVENT_BRANCH_END = "parallel_reasoning_branch_end"
"""Custom event: a branch has ended. Data: the `BranchResult` without its text."""

TracerSteps = Generator[Any, Any, None]


class RunTracer:
    """Turns the spans of one question into child runs and custom events of its run.

    Args:
        manager: of the question's run.
        model_name: for token counts by model.
        parameters: of the model's calls, recorded with them.
    """

    def __init__(
        self,
        manager: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun,
        *,
        model_name: str,
        parameters: dict[str, Any],
    ) -> None:
        self._manager = manager
        self._model_name = model_name
        self._parameters = parameters
        self._runs: dict[Span, Any] = {}

    @staticmethod
    def listens(manager: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun) -> bool:
        """Whether any handler would receive child runs."""
        return bool(manager.inheritable_handlers)

    def handle(self, event: SpanEvent) -> TracerSteps:
        """Report that a span has begun, written text or ended."""
        if isinstance(event, SpanStart):
            yield from self._start(event.span)
        elif isinstance(event, SpanText):
            yield from self._text(event)
        else:
            yield from self._end(event)

    def fail(self, error: BaseException) -> TracerSteps:
        """End all open runs with the error that ended the question."""
        if isinstance(error, GeneratorExit):
            error = RequestCancelled("the caller stopped listening")
        for span in reversed(list(self._runs)):
            run = self._runs.pop(span)
            if span.reads is None:
                yield run.on_chain_error(error)
            else:
                yield run.on_llm_error(error, response=LLMResult(generations=[]))

    # ------------------------------------------------------------ begin, write, end

    def _start(self, span: Span) -> TracerSteps:
        if span.branch is not None:
            yield self._custom(EVENT_BRANCH_START, _branch(span))
        parent = next((run for open_, run in self._runs.items() if open_.reads is None), None)
        children = (parent or self._manager).get_child()
        if span.plan is not None:
            plan = {
                "block": span.block,
                "preamble": span.plan.preamble,
                "titles": list(span.plan.titles),
            }
            yield self._custom(EVENT_PLAN, plan)
            self._runs[span] = yield children.on_chain_start(None, plan, name=span.stage)
            return
        children.add_metadata(
            {
                "ls_provider": "langchain_pos",
                "ls_model_name": self._model_name,
                "ls_model_type": "chat",
                "ls_temperature": self._parameters.get("temperature"),
            },
            inherit=False,
        )
        (self._runs[span],) = yield children.on_chat_model_start(
            {},
            [_messages(span)],
            name=span.stage if span.branch is None else f"branch {span.branch}",
            invocation_params={"model_name": self._model_name, **self._parameters},
        )

    def _text(self, text: SpanText) -> TracerSteps:
        run, span = self._runs[text.span], text.span
        message = AIMessageChunk(content=text.piece, id=f"lc_run--{run.run_id}")
        yield run.on_llm_new_token(text.piece, chunk=ChatGenerationChunk(message=message))
        if span.branch is not None:
            yield self._custom(EVENT_BRANCH_TOKEN, {**_branch(span), "delta": text.piece})

    def _end(self, end: SpanEnd) -> TracerSteps:
        run = self._runs.pop(end.span)
        if end.span.reads is None:
            yield run.on_chain_end({"branches": [b.model_dump() for b in end.branches]})
            return
        result = LLMResult(generations=[[self._generation(end, str(run.run_id))]])
        if end.error is not None:
            yield run.on_llm_error(ParallelReasoningError(end.error), response=result)
        else:
            yield run.on_llm_end(result)
        for branch in end.branches:
            data = {"block": end.span.block, **branch.model_dump(exclude={"text"})}
            yield self._custom(EVENT_BRANCH_END, data)

    def _generation(self, end: SpanEnd, run_id: str) -> ChatGeneration:
        message = AIMessage(
            content=end.text,
            id=f"lc_run--{run_id}",
            usage_metadata={
                "input_tokens": end.usage.input_tokens,
                "output_tokens": end.usage.output_tokens,
                "total_tokens": end.usage.total_tokens,
            },
            response_metadata={
                "model_name": self._model_name,
                "finish_reason": end.finish_reason,
                "forward_passes": end.passes,
                "started": end.span.started,
                "ended": end.ended,
                **({} if end.span.title is None else {"title": end.span.title}),
            },
        )
        return ChatGeneration(message=message, generation_info={"finish_reason": end.finish_reason})

    def _custom(self, name: str, data: dict[str, Any]) -> Any:
        return self._manager.get_child().on_custom_event(name, data, run_id=self._manager.run_id)


def run(steps: TracerSteps) -> None:
    """Carry out a tracer's steps with callbacks that return values."""
    answer: Any = None
    try:
        while True:
            answer = steps.send(answer)
    except StopIteration:
        return


async def arun(steps: TracerSteps) -> None:
    """Carry out a tracer's steps with callbacks that are awaited."""
    answer: Any = None
    try:
        while True:
            answer = await steps.send(answer)
    except StopIteration:
        return


def _branch(span: Span) -> dict[str, Any]:
    return {"block": span.block, "index": span.branch, "title": span.title}


def _messages(span: Span) -> list[BaseMessage]:
    return [] if span.reads is None else convert_to_messages(span.reads())
