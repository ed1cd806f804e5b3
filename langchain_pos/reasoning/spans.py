"""What a question's work is made of, as it happens: a span for each stage and branch.

The word is OpenTelemetry's. The reasoner reports spans only on request
(`Reasoner.prepare(spans=True)`); `tracing.py` makes LangChain's runs and custom events of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from langchain_pos.engine.completion import FinishReason, TokenUsage
from langchain_pos.reasoning.prompts import Messages
from langchain_pos.results.data import Block, BranchResult, Plan, Stage


@dataclass(frozen=True)
class Ending:
    """How a text ended.

    Attributes:
        text: all of it.
        finish_reason: how it ended.
        error: what went wrong, when that is "error".
    """

    text: str
    finish_reason: FinishReason = "stop"
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Span:
    """One piece of work; the object itself is its identity.

    Attributes:
        stage: the stage that it is, or belongs to.
        block: the round of plan and branches, from 0.
        branch: index of the branch that it is; None for a stage as a whole.
        title: of that branch.
        plan: what stage 2 as a whole carries out.
        started: seconds from the request's start.
        reads: makes what the model reads in it, its own beginning included; None for stage 2 as
            a whole, which is no call of the model but holds the branches'.
    """

    stage: Stage
    block: int
    branch: int | None = None
    title: str | None = None
    plan: Plan | None = None
    started: float = 0.0
    reads: Callable[[], Messages] | None = None


@dataclass(frozen=True)
class SpanStart:
    """A span begins."""

    span: Span


@dataclass(frozen=True)
class SpanText:
    """A span has written text. Reported only with `deltas`."""

    span: Span
    piece: str


@dataclass(frozen=True)
class SpanEnd:
    """A span has ended.

    Attributes:
        text: what was written in it.
        usage: `input_tokens` is the prompt's for the first span that ends well, else 0: over all
            spans each token counts once, and the sum is the result's usage.
        ended: seconds from the request's start.
        passes: forward passes that it took part in.
        error: what went wrong, if something did.
        branches: what they wrote, where it is stage 2 as a whole; one, where it is a branch.
    """

    span: Span
    text: str
    usage: TokenUsage
    ended: float
    passes: int
    finish_reason: FinishReason = "stop"
    error: str | None = None
    branches: tuple[BranchResult, ...] = ()


SpanEvent = SpanStart | SpanText | SpanEnd


class SpanReporter:
    """Opens and closes the spans of one question, and counts what each of them costs.

    Args:
        emit: takes the events.
        deltas: whether to report text.
        now: seconds since the request's start.
        spent: tokens written and forward passes made so far.

    Attributes:
        prompt: the current one, as messages.
        prompt_tokens: those of it that no span has counted yet.
    """

    def __init__(
        self,
        emit: Callable[[SpanEvent], None],
        deltas: bool,
        now: Callable[[], float],
        spent: Callable[[], tuple[int, int]],
    ) -> None:
        self.prompt: Messages = []
        self.prompt_tokens = 0
        self._emit = emit
        self._deltas = deltas
        self._now = now
        self._spent = spent
        self._stage: Span | None = None
        self._spent_before = (0, 0)
        self._pieces: list[str] = []
        self._branches: dict[int, Span] = {}

    @property
    def is_open(self) -> bool:
        """Whether a stage is open."""
        return self._stage is not None

    def open_stage(self, stage: Stage, blocks: list[Block], so_far: str = "") -> None:
        """A stage begins after `blocks` and what the conclusion has written so far."""
        if stage == "expand":
            plan = blocks[-1].plan
            self._stage = Span(stage, len(blocks) - 1, plan=plan, started=self._now())
        else:
            reads = partial(_reads, self.prompt, list(blocks), so_far)
            block = len(blocks) if stage == "plan" else max(len(blocks) - 1, 0)
            self._stage = Span(stage, block, started=self._now(), reads=reads)
        self._spent_before = self._spent()
        self._pieces.clear()
        self._emit(SpanStart(self._stage))

    def stage_text(self, piece: str) -> None:
        """The stage that is open has written something."""
        self._pieces.append(piece)
        if self._deltas and self._stage is not None:
            self._emit(SpanText(self._stage, piece))

    def close_stage(self, outcome: Ending | Block | Plan | None) -> None:
        """The stage that is open has ended with this."""
        if self._stage is None:
            return
        tokens, passes = self._spent()
        end = SpanEnd(
            self._stage,
            "".join(self._pieces),
            TokenUsage(0, tokens - self._spent_before[0]),
            self._now(),
            passes - self._spent_before[1],
        )
        if isinstance(outcome, Block):
            end = replace(end, usage=TokenUsage(), branches=outcome.branches)
        elif outcome is not None and not isinstance(outcome, Plan):
            end = replace(
                end,
                text=outcome.text,
                finish_reason=outcome.finish_reason,
                error=outcome.error,
            )
        if self._stage.reads is not None and end.error is None:
            end = replace(end, usage=TokenUsage(self._prompt_once(), end.usage.output_tokens))
        self._emit(end)
        self._stage = None

    def open_branch(self, blocks: list[Block], index: int, before: str, started: float) -> None:
        """A branch is, or was, begun with this text before it."""
        step = blocks[-1].plan.steps[index]
        reads = partial(_reads, self.prompt, list(blocks), before)
        block = len(blocks) - 1
        span = Span("expand", block, index, step.title, started=started, reads=reads)
        self._branches[index] = span
        self._emit(SpanStart(span))

    def branch_text(self, index: int, piece: str) -> None:
        """A branch has written something."""
        if self._deltas:
            self._emit(SpanText(self._branches[index], piece))

    def close_branch(self, branch: BranchResult, passes: int) -> None:
        """A branch has ended."""
        end = SpanEnd(
            self._branches.pop(branch.index),
            branch.text,
            TokenUsage(
                0 if branch.error is not None else self._prompt_once(), branch.usage.output_tokens
            ),
            branch.ended,
            passes,
            branch.finish_reason,
            branch.error,
            branches=(branch,),
        )
        self._emit(end)

    def _prompt_once(self) -> int:
        tokens, self.prompt_tokens = self.prompt_tokens, 0
        return tokens


def _reads(prompt: Messages, blocks: list[Block], so_far: str) -> Messages:
    """The prompt, and the part of the answer that is continued."""
    texts = [block.text if block.branches else block.plan.preamble for block in blocks]
    answer = "\n".join(text for text in (*texts, so_far) if text)
    return [*prompt, ("assistant", answer)] if answer else prompt
