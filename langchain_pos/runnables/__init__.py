"""`ParallelReasoningLLM`: the three stages as a LangChain runnable."""

from typing import TYPE_CHECKING

from langchain_pos.lazy_names import lazy_names

if TYPE_CHECKING:
    from langchain_pos.runnables.comparing import ComparedAnswer as ComparedAnswer
    from langchain_pos.runnables.comparing import ModeComparison as ModeComparison
    from langchain_pos.runnables.comparing import compare_modes as compare_modes
    from langchain_pos.runnables.documents import DocumentsAnswer as DocumentsAnswer
    from langchain_pos.runnables.documents import Reading as Reading
    from langchain_pos.runnables.documents import read_documents_chain as read_documents_chain
    from langchain_pos.runnables.inputs import ReasoningInput as ReasoningInput
    from langchain_pos.runnables.parallel_reasoning import (
        ParallelReasoningLLM as ParallelReasoningLLM,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "comparing": ["ComparedAnswer", "ModeComparison", "compare_modes"],
        "documents": ["DocumentsAnswer", "Reading", "read_documents_chain"],
        "inputs": ["ReasoningInput"],
        "parallel_reasoning": ["ParallelReasoningLLM"],
    },
)
