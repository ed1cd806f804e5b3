"""Parallel decoding in one sequence for LangChain.

Public names are imported when they are first used (PEP 562), so that `import langchain_pos` loads
neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_pos.chat_models.base import ChatParallelReasoning
    from langchain_pos.embedded import embedded_model_path
    from langchain_pos.embedded.demo import demo_question
    from langchain_pos.engine.completion import Completion, TokenUsage
    from langchain_pos.engine.engine import Engine
    from langchain_pos.engine.sampling import SamplingParams
    from langchain_pos.errors import (
        AnswerTimeoutError,
        ContextLengthError,
        InvalidRequestError,
        MissingExtraError,
        ModelLoadError,
        NonFiniteLogitsError,
        OutOfSlotsError,
        ParallelReasoningError,
        PlanFormatError,
        RequestCancelled,
        ServerError,
        UnsupportedModelError,
    )
    from langchain_pos.reasoning.plan_parser import PlanParser
    from langchain_pos.reasoning.prompts import ReasoningPrompts
    from langchain_pos.reasoning.reasoner import Reasoner
    from langchain_pos.remote.engine import OpenAICompletionsEngine
    from langchain_pos.results.data import (
        Block,
        BranchResult,
        Plan,
        ReasoningRequest,
        StagePasses,
        StageTimings,
        Step,
    )
    from langchain_pos.results.result import ReasoningChunk, ReasoningResult
    from langchain_pos.runnables.comparing import ComparedAnswer, ModeComparison, compare_modes
    from langchain_pos.runnables.documents import DocumentsAnswer, Reading, read_documents_chain
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM
    from langchain_pos.tools import ParallelSubtasksTool

    __version__: str

_MODULES = {
    "chat_models.base": ("ChatParallelReasoning",),
    "embedded.demo": ("demo_question",),
    "runnables.comparing": ("ComparedAnswer", "ModeComparison", "compare_modes"),
    "runnables.documents": ("DocumentsAnswer", "Reading", "read_documents_chain"),
    "embedded": ("embedded_model_path",),
    "engine.completion": ("Completion", "TokenUsage"),
    "engine.engine": ("Engine",),
    "engine.sampling": ("SamplingParams",),
    "errors": (
        "AnswerTimeoutError",
        "ContextLengthError",
        "InvalidRequestError",
        "MissingExtraError",
        "ModelLoadError",
        "NonFiniteLogitsError",
        "OutOfSlotsError",
        "ParallelReasoningError",
        "PlanFormatError",
        "RequestCancelled",
        "ServerError",
        "UnsupportedModelError",
    ),
    "reasoning.plan_parser": ("PlanParser",),
    "reasoning.prompts": ("ReasoningPrompts",),
    "reasoning.reasoner": ("Reasoner",),
    "remote.engine": ("OpenAICompletionsEngine",),
    "runnables.parallel_reasoning": ("ParallelReasoningLLM",),
    "results.data": (
        "Block",
        "BranchResult",
        "Plan",
        "ReasoningRequest",
        "StagePasses",
        "StageTimings",
        "Step",
    ),
    "results.result": ("ReasoningChunk", "ReasoningResult"),
    "tools": ("ParallelSubtasksTool",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AnswerTimeoutError",
    "Block",
    "BranchResult",
    "ChatParallelReasoning",
    "ComparedAnswer",
    "Completion",
    "ContextLengthError",
    "DocumentsAnswer",
    "Engine",
    "InvalidRequestError",
    "MissingExtraError",
    "ModeComparison",
    "ModelLoadError",
    "NonFiniteLogitsError",
    "OpenAICompletionsEngine",
    "OutOfSlotsError",
    "ParallelReasoningError",
    "ParallelReasoningLLM",
    "ParallelSubtasksTool",
    "Plan",
    "PlanFormatError",
    "PlanParser",
    "Reading",
    "Reasoner",
    "ReasoningChunk",
    "ReasoningPrompts",
    "ReasoningRequest",
    "ReasoningResult",
    "RequestCancelled",
    "SamplingParams",
    "ServerError",
    "StagePasses",
    "StageTimings",
    "Step",
    "TokenUsage",
    "UnsupportedModelError",
    "__version__",
    "compare_modes",
    "demo_question",
    "embedded_model_path",
    "read_documents_chain",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("langchain-pos")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"langchain_pos.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
