"""What one question has cost so far, and what is reported to its caller in the meantime."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from langchain_pos.engine.completion import DraftUsage, TokenUsage
from langchain_pos.reasoning.spans import Ending, SpanReporter
from langchain_pos.results.data import Block, BranchResult, Plan, Stage, StagePasses, StageTimings
from langchain_pos.results.result import ReasoningChunk, ReasoningResult

if TYPE_CHECKING:
    from langchain_pos.engine.scheduler.pending import Pending


logger = logging.getLogger("langchain_pos")


class Footprint(Protocol):
    """What is read and held for a question."""

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompts read so far."""

    @property
    def cached_tokens(self) -> int:
        """Those of them that had been read before, for other questions."""

    @property
    def passes(self) -> int:
        """Forward passes so far; 0 if unknown."""

    @property
    def peak_slots(self) -> int:
        """KV-cache slots held at most, shared ones included; 0 if unknown."""


class Progress:
    """Clocks, counters and chunks of one question.

    Args:
        deltas: whether to report pieces of text, or only plans and finished branches.
        spans: whether to report the beginning and end of every stage and branch as well.
    """

    def __init__(self, *, deltas: bool, spans: bool = False) -> None:
        self.deltas = deltas
        self.spans: SpanReporter | None = None
        if spans:
            self.spans = SpanReporter(
                lambda event: self._pending.emit(event),
                deltas,
                lambda: self.now,
                lambda: (self.output_tokens, self._decoder.passes),
            )
        self.attempts = 0
        self.thoughts: str | None = None  # None: it has not been asked for any
        self.output_tokens = 0
        self.stage_tokens: dict[Stage, int] = {"plan": 0, "expand": 0, "conclude": 0}
        self.drafts = DraftUsage()
        self._held: dict[str, str] = {}  # of the plan under way, where pieces are not told
        self._queued_at = time.perf_counter()
        self._started_at = self._counted_to = self._queued_at
        self._seconds: dict[Stage, float] = {"plan": 0.0, "expand": 0.0, "conclude": 0.0}
        self._passes: dict[Stage, int] = {"plan": 0, "expand": 0, "conclude": 0}
        self._pending: Pending[ReasoningResult]  # while it is under way, as the next one
        self._decoder: Footprint

    @contextmanager
    def under_way(self, pending: Pending[ReasoningResult], decoder: Footprint) -> Iterator[None]:
        """The question has left the queue; `decoder` knows what is held and read for it.

        Both are dropped at the end. They refer to this object too, and a ring of references would
        keep the model's weights until the garbage collector runs.
        """
        self._pending, self._decoder = pending, decoder
        self._started_at = self._counted_to = time.perf_counter()
        try:
            yield
        finally:
            del self._pending, self._decoder

    @property
    def now(self) -> float:
        """Seconds since the question left the queue."""
        return time.perf_counter() - self._started_at

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Forward passes and tokens inside count for `stage`, and all time since the last one."""
        passes, tokens = self._decoder.passes, self.output_tokens
        try:
            yield
        finally:
            now = time.perf_counter()
            self._seconds[stage] += now - self._counted_to
            self._counted_to = now
            self._passes[stage] += self._decoder.passes - passes
            self.stage_tokens[stage] += self.output_tokens - tokens
        for name, text in self._held.items():
            self.report(ReasoningChunk(stage="plan", **{name: text}))
        self._held.clear()

    # -------------------------------------------------------------------- spans

    def has_read(self, tokens: int) -> None:
        """The model has read so many further tokens; the next span that ends counts them."""
        if self.spans is not None:
            self.spans.prompt_tokens += tokens

    def prompt(self, messages: list[tuple[str, str]]) -> None:
        """The prompt from here on."""
        if self.spans is not None:
            self.spans.prompt = messages

    @property
    def in_span(self) -> bool:
        """Whether a stage is open, or nobody asks for any."""
        return self.spans is None or self.spans.is_open

    def open(self, stage: Stage, blocks: list[Block], so_far: str = "") -> None:
        """A stage begins after `blocks` and what the conclusion has written so far."""
        if self.spans is not None:
            self.spans.open_stage(stage, blocks, so_far)

    def close(self, outcome: Ending | Block | Plan | None) -> None:
        """The stage that is open has ended with this."""
        if self.spans is not None:
            self.spans.close_stage(outcome)

    def branch_start(self, blocks: list[Block], index: int, reads: str, started: float) -> None:
        """A branch is, or was, begun with this text before it."""
        if self.spans is not None:
            self.spans.open_branch(blocks, index, reads, started)

    # ---------------------------------------------------------------- reporting

    def report(self, chunk: ReasoningChunk) -> None:
        """Give the caller a chunk."""
        self._pending.emit(chunk)

    def plan_text(self, piece: str) -> None:
        """A piece of raw skeleton."""
        if self.spans is not None:
            self.spans.stage_text(piece)
        self._tell_plan("delta", piece)

    def thought_text(self, piece: str) -> None:
        """A piece of what a thinking model thinks, before it answers."""
        if self.spans is not None:
            self.spans.stage_text(piece)
        self.thoughts = (self.thoughts or "") + piece
        self._tell_plan("thoughts", piece)

    def _tell_plan(self, name: str, piece: str) -> None:
        if self.deltas:
            self.report(ReasoningChunk(stage="plan", **{name: piece}))
        else:  # at the end of the stage, in one piece
            self._held[name] = self._held.get(name, "") + piece

    def branch_text(self, blocks: list[Block], index: int, piece: str) -> None:
        """A piece of a branch's body."""
        if self.spans is not None:
            self.spans.branch_text(index, piece)
        if self.deltas:
            title = blocks[-1].plan.titles[index]
            branch = BranchResult(index=index, title=title, text=piece)
            self._report_branch(blocks, branch, piece)

    def branch_end(self, blocks: list[Block], branch: BranchResult, passes: int) -> None:
        """A branch has ended. Its text, if already reported, is not repeated."""
        if self.spans is not None:
            self.spans.close_branch(branch, passes)
        update = {"text": ""} if self.deltas else {}
        self._report_branch(blocks, branch.model_copy(update=update), "")

    def _report_branch(self, blocks: list[Block], branch: BranchResult, piece: str) -> None:
        bare = [Block.model_construct(plan=block.plan) for block in blocks[:-1]]
        last = Block.model_construct(plan=blocks[-1].plan, branches=(branch,))
        self.report(
            ReasoningChunk(stage="expand", branch=branch.index, delta=piece, blocks=(*bare, last))
        )

    def conclusion_text(self, piece: str) -> None:
        """A piece of the conclusion, or of a sequential answer."""
        if self.spans is not None:
            self.spans.stage_text(piece)
        if self.deltas:
            self.report(ReasoningChunk(stage="conclude", delta=piece, conclusion=piece))

    # ---------------------------------------------------------------- the result

    def finish(self, result: ReasoningResult) -> ReasoningResult:
        """Add what it has cost, and report what no chunk has carried yet."""
        if result.fallback_reason is not None:
            logger.info("answered sequentially: %s", result.fallback_reason)
        result = result.model_copy(
            update={
                "usage": TokenUsage(self._decoder.input_tokens, self.output_tokens),
                "timings": StageTimings(queued=self._started_at - self._queued_at, **self._seconds),
                "forward_passes": StagePasses(**self._passes),
                "drafts": self.drafts,
                "plan_attempts": self.attempts,
                "peak_slots": self._decoder.peak_slots,
                "cached_tokens": self._decoder.cached_tokens,
                "thoughts": self.thoughts or "",
            }
        )
        rest = {name: getattr(result, name) for name in ReasoningResult.model_fields}
        del rest["blocks"], rest["thoughts"]
        if self.deltas:
            del rest["conclusion"]
        self.report(ReasoningChunk(stage="conclude", **rest))
        return result
