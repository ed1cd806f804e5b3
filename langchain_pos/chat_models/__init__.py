"""`ChatParallelReasoning`: the three stages as a LangChain chat model."""

from typing import TYPE_CHECKING

from langchain_pos.lazy_names import lazy_names

if TYPE_CHECKING:
    from langchain_pos.chat_models.base import ChatParallelReasoning as ChatParallelReasoning

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "base": ["ChatParallelReasoning"],
    },
)
