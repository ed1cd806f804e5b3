"""`ParallelSubtasksTool`: an agent hands over independent subtasks, and all are written at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any, Literal

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ArgsSchema, BaseTool, ToolException
from pydantic import BaseModel, Field, ValidationError

from langchain_pos.errors import ParallelReasoningError
from langchain_pos.results.result import ReasoningChunk, ReasoningResult
from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

_TASK = "Several subtasks follow. Work out each of them on its own, as its instruction says."
_ARGUMENTS = (
    "allowed are 'subtasks', a list of at least one object with 'title' (a few words, each title "
    "once) and 'prompt' (the whole instruction), and 'context' (a text that all of them read)"
)

StreamWriter = Callable[[Any], None]


class Subtask(BaseModel):
    """One independent subtask."""

    title: str = Field(min_length=1, description="A few words that set it apart from the others.")
    prompt: str = Field(
        min_length=1,
        description="The whole instruction. A subtask sees the context and its own prompt only.",
    )


class ParallelSubtasksInput(BaseModel):
    """The tool's arguments."""

    subtasks: list[Subtask] = Field(
        min_length=1, description="Subtasks that need no other's result."
    )
    context: str = Field(default="", description="What every subtask has to read, word for word.")


def _explain(error: ValidationError | Any) -> str:
    """What is wrong with the arguments, so that a model can correct them."""
    wrong = "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg']} (given: {str(e['input'])[:80]!r})"
        for e in error.errors(include_url=False)
    )
    return f"The call could not be carried out: {wrong}. {_ARGUMENTS}."


class ParallelSubtasksTool(BaseTool):
    """Works out an agent's independent subtasks with one local model, all at the same time.

    The content of its answer is the text of all subtasks, the artifact the `ReasoningResult`.
    Inside a LangGraph graph it reports progress through the graph's stream writer
    (`stream_mode="custom"`), elsewhere not at all. Failures become a tool message with status
    "error", which the agent's model can read; interrupts and cancellation pass through.

    Example:
        >>> tool = ParallelSubtasksTool(llm=ParallelReasoningLLM())
        >>> agent = create_agent(model, [tool])
    """

    name: str = "run_parallel_subtasks"
    description: str = (
        "Works out several independent subtasks at the same time. Use it when a task falls into "
        "parts that do not need one another's results, for example one for each document, person "
        "or aspect. Every subtask sees the context and its own prompt only."
    )
    args_schema: ArgsSchema | None = ParallelSubtasksInput
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: bool | str | Callable[[ToolException], str] | None = True
    handle_validation_error: Any = _explain
    llm: ParallelReasoningLLM = Field(default_factory=ParallelReasoningLLM)
    """The model, with budgets and sampling; the shipped one by default."""

    def _run(
        self, subtasks: list[Subtask], config: RunnableConfig, context: str = ""
    ) -> tuple[str, ReasoningResult]:
        report = _stream_writer()
        try:
            request, settings = _request(subtasks, context), self._settings()
            if report is None:
                return _answer(self.llm.invoke(request, config, **settings))
            chunks = []
            for chunk in self.llm.stream(request, config, **settings):
                chunks.append(chunk)
                _report(self.name, report, chunk)
            return _answer(reduce(add, chunks).result())
        except ToolException:
            raise
        except Exception as error:
            raise _as_tool_error(error) from error

    async def _arun(
        self, subtasks: list[Subtask], config: RunnableConfig, context: str = ""
    ) -> tuple[str, ReasoningResult]:
        report = _stream_writer()
        try:
            request, settings = _request(subtasks, context), self._settings()
            if report is None:
                return _answer(await self.llm.ainvoke(request, config, **settings))
            chunks = []
            async for chunk in self.llm.astream(request, config, **settings):
                chunks.append(chunk)
                _report(self.name, report, chunk)
            return _answer(reduce(add, chunks).result())
        except ToolException:
            raise
        except Exception as error:
            raise _as_tool_error(error) from error

    @staticmethod
    def _settings() -> dict[str, Any]:
        return {"mode": "parallel", "conclude": False}


def _request(subtasks: list[Subtask], context: str) -> dict[str, Any]:
    question = f"{context}\n\n{_TASK}" if context.strip() else _TASK
    steps = [{"title": task.title, "prompt": task.prompt} for task in subtasks]
    return {"question": question, "steps": steps}


def _answer(result: ReasoningResult) -> tuple[str, ReasoningResult]:
    """The text of all subtasks, and the result.

    Raises:
        ToolException: all of them failed.
    """
    if all(branch.error is not None for branch in result.branches):
        wrong = "; ".join(f"{branch.title}: {branch.error}" for branch in result.branches)
        raise ToolException(f"No subtask could be worked out: {wrong}")
    parts = []
    for branch in result.branches:
        text = branch.text
        if branch.error is not None:
            text = f"{text}\n[failed: {branch.error}]".strip()
        elif branch.finish_reason == "length":
            text = f"{text}\n[cut at its token budget]"
        parts.append(f"## {branch.title}\n{text}")
    return "\n\n".join(parts), result


def _as_tool_error(error: Exception) -> ToolException:
    if isinstance(error, ParallelReasoningError):
        return ToolException(f"The subtasks could not be worked out: {error}. {_ARGUMENTS}.")
    return ToolException(f"The model failed: {type(error).__name__}: {error}")


def _stream_writer() -> StreamWriter | None:
    """The stream writer of the surrounding LangGraph graph; None outside of one."""
    if "langgraph" not in sys.modules:
        return None
    try:
        from langgraph.config import get_stream_writer

        return get_stream_writer()
    except (ImportError, KeyError, RuntimeError):  # no graph, or one without a runtime
        return None


def _report(tool: str, report: StreamWriter, chunk: ReasoningChunk) -> None:
    """Report what a chunk says of the subtasks' progress."""
    if chunk.stage == "plan" and chunk.blocks:
        report({"tool": tool, "event": "start", "titles": list(chunk.blocks[-1].plan.titles)})
    elif chunk.stage == "expand" and chunk.blocks:
        (branch,) = chunk.blocks[-1].branches
        fields: dict[str, Any] = {"tool": tool, "index": branch.index, "title": branch.title}
        if chunk.delta:
            report({**fields, "event": "token", "delta": chunk.delta})
        else:
            end = {"finish_reason": branch.finish_reason, "error": branch.error}
            report({**fields, "event": "end", **end})
