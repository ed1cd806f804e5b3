"""The output: plan, branches, conclusion, result, and how they are displayed."""

from typing import TYPE_CHECKING

from langchain_pos.lazy_names import lazy_names

if TYPE_CHECKING:
    from langchain_pos.results.data import Block as Block
    from langchain_pos.results.data import BranchResult as BranchResult
    from langchain_pos.results.data import Plan as Plan
    from langchain_pos.results.data import ReasoningRequest as ReasoningRequest
    from langchain_pos.results.data import StagePasses as StagePasses
    from langchain_pos.results.data import StageTimings as StageTimings
    from langchain_pos.results.data import Step as Step
    from langchain_pos.results.figures import plot_mask as plot_mask
    from langchain_pos.results.figures import plot_timeline as plot_timeline
    from langchain_pos.results.result import ReasoningChunk as ReasoningChunk
    from langchain_pos.results.result import ReasoningResult as ReasoningResult
    from langchain_pos.results.timeline import SequentialEstimate as SequentialEstimate
    from langchain_pos.results.timeline import Timeline as Timeline

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "data": [
            "Block",
            "BranchResult",
            "Plan",
            "ReasoningRequest",
            "StagePasses",
            "StageTimings",
            "Step",
        ],
        "figures": ["plot_mask", "plot_timeline"],
        "result": ["ReasoningChunk", "ReasoningResult"],
        "timeline": ["SequentialEstimate", "Timeline"],
    },
)
