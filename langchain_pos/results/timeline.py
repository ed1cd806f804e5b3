"""The timeline of a result, and what sequential decoding would have cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_pos.engine.completion import FinishReason
    from langchain_pos.results.data import ResultData

STAGES = ("plan", "expand", "conclude")


@dataclass(frozen=True)
class StageSpan:
    """The time that a stage took.

    Attributes:
        stage: "plan", "expand", "conclude", or "conclude, plan" between two blocks, where the
            result does not record when one ended and the other began.
        start: seconds from the request's start.
        end: seconds from the request's start.
    """

    stage: str
    start: float
    end: float


@dataclass(frozen=True)
class BranchBar:
    """The time in which a branch was decoded.

    Attributes:
        title: the step's title.
        start: seconds from the request's start.
        end: seconds from the request's start.
        finish_reason: how it ended.
    """

    title: str
    start: float
    end: float
    finish_reason: FinishReason


@dataclass(frozen=True)
class Timeline:
    """Stages and branches of one answer over time, as measured; time in the queue is left out.

    Attributes:
        stages: one after another.
        branches: of all blocks, in the plan's order.
        total: seconds from the request's start to its end.
    """

    stages: tuple[StageSpan, ...]
    branches: tuple[BranchBar, ...]
    total: float

    @classmethod
    def of(cls, result: ResultData) -> Timeline | None:
        """The timeline of a result; None if nothing has been timed (yet)."""
        seconds = result.timings
        bars = tuple(
            BranchBar(branch.title, branch.started, branch.ended, branch.finish_reason)
            for branch in result.branches
        )
        total = max(
            seconds.plan + seconds.expand + seconds.conclude,
            *(bar.end for bar in bars),
            0.0,
        )
        if total <= 0:
            return None
        spans: list[StageSpan] = []
        if len(result.blocks) <= 1:
            at = 0.0
            for stage in STAGES:
                took = getattr(seconds, stage)
                spans.append(StageSpan(stage, at, at + took))
                at += took
        else:  # stages between the blocks are not timed separately
            at, between = 0.0, "plan"
            for block in result.blocks:
                start = min((b.started for b in block.branches), default=at)
                end = max((b.ended for b in block.branches), default=start)
                spans += [StageSpan(between, at, start), StageSpan("expand", start, end)]
                at, between = end, "conclude, plan"
            spans.append(StageSpan("conclude", at, total))
        return cls(tuple(s for s in spans if s.end > s.start), bars, total)


@dataclass(frozen=True)
class SequentialEstimate:
    """What the same text would have cost, decoded one token at a time without drafts.

    Nothing here was run: it is `tokens` forward passes at `seconds_per_pass`, the mean of the
    stage with the fastest passes. As a pass over one token takes no longer than one over many,
    and the skeleton's `......` would not be written, it is an upper bound; how loose it is
    depends on the machine. `mode="sequential"` measures it.

    Attributes:
        tokens: tokens written in all stages, one forward pass each.
        seconds_per_pass: measured.
    """

    tokens: int
    seconds_per_pass: float

    @property
    def seconds(self) -> float:
        """Estimated seconds, excluding the prompt's prefill."""
        return self.tokens * self.seconds_per_pass

    @classmethod
    def of(cls, result: ResultData) -> SequentialEstimate | None:
        """The estimate for a result; None if it was answered sequentially or not timed."""
        means = [
            getattr(result.timings, stage) / getattr(result.forward_passes, stage)
            for stage in STAGES
            if getattr(result.forward_passes, stage) and getattr(result.timings, stage)
        ]
        if result.mode == "sequential" or not means:
            return None
        return cls(result.usage.output_tokens, min(means))
