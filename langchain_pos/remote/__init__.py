"""A decoder over an OpenAI-compatible server."""

from typing import TYPE_CHECKING

from langchain_pos.lazy_names import lazy_names

if TYPE_CHECKING:
    from langchain_pos.remote.engine import OpenAICompletionsEngine as OpenAICompletionsEngine

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "engine": ["OpenAICompletionsEngine"],
    },
)
