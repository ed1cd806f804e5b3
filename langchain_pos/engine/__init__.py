"""Parallel decoding in one sequence: token ids in, token ids out.

`Engine` is the entry point. This package imports torch only when one of its names is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_pos.engine.completion import Completion as Completion
    from langchain_pos.engine.completion import TokenUsage as TokenUsage
    from langchain_pos.engine.constraints import Constraint as Constraint
    from langchain_pos.engine.engine import Engine as Engine
    from langchain_pos.engine.sampling import SamplingParams as SamplingParams

_HOMES = {
    "Completion": "completion",
    "TokenUsage": "completion",
    "Constraint": "constraints",
    "Engine": "engine",
    "SamplingParams": "sampling",
}
__all__ = ["Completion", "Constraint", "Engine", "SamplingParams", "TokenUsage"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
