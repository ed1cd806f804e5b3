"""A question on its way: plan, expand, conclude. Open this file first.

    reason
      ├─ plan       stage 1   the model writes a skeleton of independent steps (planning.py)
      ├─ expand     stage 2   a branch for each step; all are written together (expanding.py)
      └─ conclude   stage 3   join, write on; a step opens another block → back to stage 1
                              (concluding.py)

The stages are coroutines, written once over a `Decoder` (decoder.py): our engine, whose scheduler
steps many questions in the same forward passes, or a server that is called over HTTP. Closing or
cancelling the coroutine cancels the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_pos.reasoning.concluding import Concluder, Conclusion
from langchain_pos.reasoning.expanding import Expander
from langchain_pos.reasoning.planning import Planner
from langchain_pos.reasoning.progress import Progress
from langchain_pos.reasoning.question import NO_OPTIONS, AnswerOptions, Question
from langchain_pos.reasoning.sentences import go_in_circles
from langchain_pos.reasoning.stage import share_out
from langchain_pos.results.data import NOT_ANSWERED, Block
from langchain_pos.results.result import ReasoningChunk

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.reasoning.budget import Budget
    from langchain_pos.reasoning.decoder import Decoding, Trunk
    from langchain_pos.reasoning.prompts import ReasoningPrompts
    from langchain_pos.reasoning.settings import ReasoningSettings
    from langchain_pos.results.data import Mode, Plan, ReasoningRequest
    from langchain_pos.results.result import ReasoningResult


class Reasoner:
    """Answers questions with one model.

    Args:
        decoding: the model: `LocalDecoding(engine)`, or a server.
        prompts: the wording; by default chosen by the question's language.
        model_name: for the result; by default what `decoding` calls it.
    """

    def __init__(
        self,
        decoding: Decoding,
        *,
        prompts: ReasoningPrompts | None = None,
        model_name: str | None = None,
    ) -> None:
        self.decoding = decoding
        self.prompts = prompts
        self.model_name = decoding.model_name if model_name is None else model_name

    def submit(
        self,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        *,
        deltas: bool = False,
        spans: bool = False,
    ) -> Pending[ReasoningResult]:
        """Queue a question. Its events are `ReasoningChunk`s.

        Args:
            ask: the question.
            settings: budgets and sampling.
            deltas: report every piece of text; otherwise only plans and finished branches.
            spans: report the beginning and end of stages and branches, too (`SpanEvent`).

        Raises:
            InvalidRequestError, ContextLengthError, OutOfSlotsError: it cannot be served; no
                work has been done.
        """
        return self.prepare(ask, settings, deltas=deltas, spans=spans).submit()

    def prepare(
        self,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        *,
        deltas: bool = False,
        spans: bool = False,
        options: AnswerOptions = NO_OPTIONS,
    ) -> Reasoning:
        """What `submit` does without queueing it; `Reasoning.submit` does that, at once."""
        progress = Progress(deltas=deltas, spans=spans)
        question = Question.of(ask, settings, progress, options=options, prompts=self.prompts)
        return Reasoning(self.decoding, question, self.model_name)


class Reasoning:
    """One question on its way. What can be refused before any work is refused here.

    Args:
        decoding: the model.
        question: to answer.
        model_name: for the result, unless the decoder knows a better one.

    Attributes:
        progress: what it has cost so far.
        token_ids: of a sequential answer, where the decoder knows them.
    """

    def __init__(self, decoding: Decoding, question: Question, model_name: str) -> None:
        self.question = question
        self.settings = question.settings
        self.progress = question.progress
        self.token_ids: tuple[int, ...] = ()
        self.decoding = decoding
        self.decoder = decoding.decoder(question)
        self.planner = Planner(self.decoder, question)
        self.expander = Expander(self.decoder, question)
        self.concluder = Concluder(self.decoder, question)
        self.model_name = model_name
        self.budget: Budget | None = None
        if self.decoder.limit is not None:
            self.budget = share_out(self.decoder, question)

    def submit(self, caller: Hashable | None = None) -> Pending[ReasoningResult]:
        """Queue it; the questions of one `caller` do not hold up another caller's."""
        return self.decoding.submit(self.reason, budget=self.budget, caller=caller)

    # ------------------------------------------------------------------ all stages

    async def reason(self, pending: Pending[ReasoningResult]) -> ReasoningResult:
        """The whole answer, once it is this question's turn."""
        with self.progress.under_way(pending, self.decoder):
            await self.decoder.start(pending)
            if self.budget is None:
                self.budget = share_out(self.decoder, self.question)
            if self.settings.mode == "sequential":
                return await self.answer_sequentially(None)
            return await self.answer_in_stages()

    async def answer_in_stages(self) -> ReasoningResult:
        """All stages in reading order."""
        # Stage 1. A plan: the caller's, the model's outline, or a list that its answer begins.
        blocks: list[Block] = []
        conclusion = Conclusion("")
        given = self.question.given
        if given is not None or self.question.form.own_prompt:
            with self.progress.stage("plan"):
                plan, trunk, reason = await self.planner.plan()
                self.progress.close(plan)
            if self.planner.unknown:
                return self.decline()
            if plan is None or trunk is None:
                return await self.answer_sequentially(reason)
        else:
            with self.progress.stage("plan"):
                trunk = await self.planner.open(self.question.plan_messages())
            plan, conclusion = await self.write_on(trunk, blocks)

        while plan is not None:
            # Stage 2. All branches together.
            blocks.append(Block(plan=plan))
            self.progress.report(ReasoningChunk(stage="plan", blocks=tuple(_bare(blocks))))
            with self.progress.stage("expand"):
                self.progress.open("expand", blocks)
                branches = await self.expander.expand(trunk, blocks, self.planner.first)
            blocks[-1] = Block(plan=plan, branches=branches)
            self.progress.close(blocks[-1])
            written = sum(bool(branch.text) for branch in branches)
            if given is None and 2 * written < len(branches):
                return await self.answer_sequentially(
                    f"{len(branches) - written} of {len(branches)} branches came back empty", blocks
                )
            if not self.settings.conclude:
                return self._result(blocks, Conclusion(""), concluded=False)

            # Stage 3. Join, and write on. Another step opens a further block: back to stage 2.
            with self.progress.stage("conclude"):
                self.concluder.join(trunk, blocks[-1])
            plan, conclusion = await self.write_on(trunk, blocks)
        return self._result(blocks, conclusion, self.planner.declined if not blocks else None)

    async def write_on(self, trunk: Trunk, blocks: list[Block]) -> tuple[Plan | None, Conclusion]:
        """Write ordinary text after the trunk, to its end or to where a block begins.

        After blocks it is the conclusion. Without any, it is how the answer begins, and all of it
        where no block does.
        """
        text, may_open = Conclusion(""), len(blocks) < self.settings.max_blocks
        # The caller's list is whole, and one that only repeats itself is not worth going on with,
        # unless it was asked for.
        whole = len(blocks) == 1 and self.question.given is not None
        circles = bool(blocks) and not self.question.asks_for_conclusion
        circles = circles and go_in_circles([b.text for b in blocks[-1].branches])
        list_is_over, goes_on, failed = whole or circles, not circles, 0
        while True:
            with self.progress.stage("conclude"):
                self.progress.open("conclude", blocks, text.text)
                text = await self.concluder.conclude(
                    trunk,
                    text,
                    blocks=blocks,
                    may_open=may_open,
                    list_is_over=list_is_over,
                    goes_on=goes_on,
                )
                self.progress.close(text)
            opened = text.opened
            if opened is None:
                return None, text
            if opened.repeats and not text.text and not list_is_over:
                text, list_is_over = self.concluder.drop(trunk, text), True
                continue
            if not opened.repeats:
                with self.progress.stage("plan"):
                    self.progress.open("plan", blocks, text.text)
                    first = self.expander.first(trunk, opened, blocks)
                    plan = await self.planner.plan_further(trunk, text, first)
                    self.progress.close(plan)
                if plan is not None:
                    return plan, text
            failed += 1
            goes_on = goes_on and opened.goes_on
            may_open = bool(blocks) and failed < self.settings.max_blocks

    async def answer_sequentially(
        self, reason: str | None, blocks: Sequence[Block] = ()
    ) -> ReasoningResult:
        """One text, as any model answers; `reason` says why it is not parallel.

        `blocks` that came to nothing stay in the result, and are no part of its text.
        """
        self.progress.report(
            ReasoningChunk(stage="conclude", mode="sequential", fallback_reason=reason)
        )
        with self.progress.stage("plan"):
            trunk = await self.concluder.open(self.question.sequential_messages())
        with self.progress.stage("conclude"):
            self.progress.open("conclude", [])
            conclusion = await self.concluder.answer(trunk)
        if conclusion.written is not None:
            self.token_ids = conclusion.written.token_ids
        self.progress.close(conclusion)
        return self._result(blocks, conclusion, reason, mode="sequential")

    def decline(self) -> ReasoningResult:
        """The model's own words for not answering what is none of its kinds of questions."""
        reason = f"{NOT_ANSWERED}none of the kinds of questions that this model knows"
        self.progress.report(
            ReasoningChunk(stage="conclude", mode="sequential", fallback_reason=reason)
        )
        conclusion = Conclusion(self.question.prompts.declines)
        self.progress.open("conclude", [])
        self.progress.conclusion_text(conclusion.text)
        self.progress.close(conclusion)
        return self._result((), conclusion, reason, mode="sequential")

    def _result(
        self,
        blocks: Sequence[Block],
        conclusion: Conclusion,
        fallback_reason: str | None = None,
        *,
        mode: Mode = "parallel",
        concluded: bool = True,
    ) -> ReasoningResult:
        result = self.question.result(
            blocks,
            conclusion,
            fallback_reason,
            mode=mode,
            concluded=concluded,
            model_name=self.decoder.model_name or self.model_name,
        )
        return self.progress.finish(result)


def _bare(blocks: list[Block]) -> list[Block]:
    """The blocks without their branches: a chunk carries only what is new."""
    return [Block(plan=block.plan) for block in blocks]
