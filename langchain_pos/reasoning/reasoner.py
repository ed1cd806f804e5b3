"""A question on its way: plan, expand, conclude. Open this file first.

    reason
      ├─ plan       stage 1   the model writes a skeleton of independent steps (planning.py)
      ├─ expand     stage 2   a branch for each step; all are written together (expanding.py)
      └─ conclude   stage 3   join, write on; a step opens another block → back to stage 1
                              (concluding.py)

The stages are coroutines, written once over a `Decoder` (decoder.py): our engine, whose scheduler
steps many questions in the same forward passes, or a server that is asked over HTTP. Closing or
cancelling the coroutine cancels the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_pos.engine.seeds import request_seed
from langchain_pos.errors import ContextLengthError, InvalidRequestError, PlanFormatError
from langchain_pos.reasoning.branch_schema import branch_schema_of
from langchain_pos.reasoning.budget import LEAST_ROOM, Budget, no_gain
from langchain_pos.reasoning.concluding import Concluder, Conclusion, sequential_seed
from langchain_pos.reasoning.decoder import NO_OPTIONS, AnswerOptions, Passage, Question
from langchain_pos.reasoning.expanding import Expander
from langchain_pos.reasoning.native_form import NATIVE
from langchain_pos.reasoning.paper_form import PAPER
from langchain_pos.reasoning.planning import Planner, given_plan
from langchain_pos.reasoning.progress import Progress
from langchain_pos.reasoning.prompts import ReasoningPrompts, prompts_for
from langchain_pos.results.data import NOT_ANSWERED, Block, Mode, Plan, ReasoningRequest
from langchain_pos.results.result import ReasoningChunk, ReasoningResult

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.reasoning.decoder import Decoding, Messages, Trunk
    from langchain_pos.reasoning.form import Form
    from langchain_pos.reasoning.settings import ReasoningSettings


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
        return Reasoning(self, ask, settings, Progress(deltas=deltas, spans=spans), options)


class Reasoning:
    """One question on its way. What can be refused before any work is refused here.

    Attributes:
        progress: what it has cost so far.
        token_ids: of a sequential answer, where the decoder knows them.
        unknown: whether it is none of the kinds of questions that the model knows.
    """

    def __init__(
        self,
        reasoner: Reasoner,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        progress: Progress,
        options: AnswerOptions = NO_OPTIONS,
    ) -> None:
        if not ask.question.strip():
            raise InvalidRequestError("the question is empty; ask something")
        self.ask = ask
        self.settings = settings
        self.progress = progress
        self.options = options
        self.token_ids: tuple[int, ...] = ()
        self.unknown = False
        self.declined = "declined: the answer is no list whose entries could be written together"
        self.prompts = reasoner.prompts or prompts_for(ask.question)
        self.may_decline = bool(self.prompts.declines) and options.constraint is None
        self.model_name = reasoner.model_name
        self.decoding = reasoner.decoding
        own = [step.temperature for step in ask.steps or ()]
        self.seed = request_seed(settings.seed, settings.temperature, *own)
        self.form: Form = PAPER if _is_paper(settings, reasoner.prompts) else NATIVE
        self.given: Plan | None = None
        if ask.steps is not None and settings.mode == "parallel":
            self.given = given_plan(self.form, ask.steps, settings.max_branches)
        self.schema = branch_schema_of(settings.branch_schema, self.given)
        question = Question(ask, settings, options, self.form, self.schema, progress)
        self.decoder = self.decoding.decoder(question)
        self.planner = Planner(self.decoder, question, self.seed)
        self.expander = Expander(self.decoder, question, self.seed)
        self.concluder = Concluder(self.decoder, question, self.seed)
        self.budget: Budget | None = None
        if self.decoder.limit is not None:
            self._share_out()

    def submit(self, caller: Hashable | None = None) -> Pending[ReasoningResult]:
        """Queue it; the questions of one `caller` wait for one another, not others for all."""
        return self.decoding.submit(self.reason, budget=self.budget, caller=caller)

    # ------------------------------------------------------------------ all stages

    async def reason(self, pending: Pending[ReasoningResult]) -> ReasoningResult:
        """The whole answer, once it is this question's turn."""
        with self.progress.under_way(pending, self.decoder):
            await self.decoder.start(pending)
            if self.budget is None:
                self._share_out()
            if self.settings.mode == "sequential":
                return await self.answer_sequentially(None)
            return await self.answer_in_stages()

    async def answer_in_stages(self) -> ReasoningResult:
        """All stages in reading order."""
        # Stage 1. A plan: the caller's, the model's outline, or a list that its answer begins.
        blocks: list[Block] = []
        conclusion = Conclusion("")
        if self.given is not None or self.form.own_prompt:
            with self.progress.stage("plan"):
                if self.given is None:
                    self.progress.prompt(self.plan_messages())
                    self.progress.open("plan", [])
                plan, trunk, reason = await self.plan()
                self.progress.close(plan)
            if plan is None or trunk is None:
                if self.unknown:
                    return self.decline()
                return await self.answer_sequentially(reason)
        else:
            trunk = self._open(self.plan_messages())
            plan, conclusion = await self.write_on(trunk, blocks)

        while plan is not None:
            # Stage 2. All branches together.
            blocks.append(Block(plan=plan))
            self.progress.tell(ReasoningChunk(stage="plan", blocks=tuple(_bare(blocks))))
            with self.progress.stage("expand"):
                self.progress.open("expand", blocks)
                branches = await self.expander.expand(trunk, blocks)
            blocks[-1] = Block(plan=plan, branches=branches)
            self.progress.close(blocks[-1])
            written = sum(bool(branch.text) for branch in branches)
            if self.given is None and 2 * written < len(branches):
                return await self.answer_sequentially(
                    f"{len(branches) - written} of {len(branches)} branches came back empty", blocks
                )
            if not self.settings.conclude:
                return self._result(blocks, Conclusion(""), concluded=False)

            # Stage 3. Join, and write on. Another step opens a further block: back to stage 2.
            with self.progress.stage("conclude"):
                self.concluder.join(trunk, blocks[-1])
            plan, conclusion = await self.write_on(trunk, blocks)
        return self._result(blocks, conclusion, self.declined if not blocks else None)

    # ------------------------------------------------------------------ stage 1

    async def plan(self) -> tuple[Plan | None, Trunk | None, str | None]:
        """The caller's steps or the model's plan, and the trunk that the branches grow on."""
        if self.given is not None:
            trunk = self._open(self.plan_messages())
            self.expander.lay_out(trunk, self.given)  # refuses what does not fit
            return self.given, trunk, None
        try:
            plan, trunk = await self.planner.plan(self.plan_messages, self._open)
            if plan is not None:
                self.expander.lay_out(trunk, plan)
        except (PlanFormatError, ContextLengthError) as error:
            if self.settings.on_plan_failure == "raise":
                raise
            self.unknown = self.may_decline and isinstance(error, PlanFormatError)
            return None, None, f"no valid plan: {error}"
        finally:
            self.progress.attempts = self.planner.attempts
        if self.may_decline and not (plan and self.prompts.know(plan, self.ask.question)):
            self.unknown = True
            return None, None, None
        if plan is None:
            return None, None, "declined: the question does not fall into independent parts"
        if self.settings.decline_without_gain and (
            reason := no_gain(len(plan.steps), self.settings.max_branch_tokens)
        ):
            return None, None, reason
        return plan, trunk, None

    async def plan_further(self, trunk: Trunk, so_far: Conclusion) -> Plan | None:
        """The plan of a block that text has opened; None if it is none after all."""
        max_tokens = self.decoder.budget.further_plan(trunk.count())
        if so_far.opened is None or not max_tokens:
            return None
        try:
            plan = await self.planner.plan_further(trunk, so_far.text, so_far.opened, max_tokens)
            if plan is not None:
                self.expander.lay_out(trunk, plan)
        except (PlanFormatError, ContextLengthError) as error:  # e.g. no room for all
            self.declined = f"declined: {error}"
            return None
        return plan

    # ------------------------------------------------------------------ stage 3

    async def write_on(self, trunk: Trunk, blocks: list[Block]) -> tuple[Plan | None, Conclusion]:
        """Write ordinary text after the trunk, to its end or to where a block begins.

        After blocks it is the conclusion. Without any, it is how the answer begins, and all of it
        where no block does.
        """
        text, may_open = Conclusion(""), len(blocks) < self.settings.max_blocks
        while True:
            with self.progress.stage("conclude"):
                self.progress.open("conclude", blocks, text.text)
                text = await self.concluder.conclude(
                    trunk, text, block=len(blocks), may_open=may_open
                )
                self.progress.close(text)
            if text.opened is None:
                return None, text
            with self.progress.stage("plan"):
                self.progress.open("plan", blocks, text.text)
                plan = await self.plan_further(trunk, text)
                self.progress.close(plan)
            if plan is not None:
                return plan, text
            may_open = False

    # ------------------------------------------------------------------ one text

    async def answer_sequentially(
        self, reason: str | None, blocks: Sequence[Block] = ()
    ) -> ReasoningResult:
        """One text, as any model answers; `reason` says why it is not parallel.

        `blocks` that came to nothing stay in the result, and are no part of its text.
        """
        self.progress.tell(
            ReasoningChunk(stage="conclude", mode="sequential", fallback_reason=reason)
        )
        with self.progress.stage("conclude"):
            trunk = self._open(self.sequential_messages())
            self.progress.open("conclude", [])
            written = await self.decoder.write(
                trunk,
                Passage(
                    max_tokens=self.decoder.budget.sequential,
                    seed=sequential_seed(self.seed),
                    stop=self.settings.stop,
                    on_text=self.progress.conclusion_text,
                    options=self.options,
                ),
            )
        if written.failure is not None:
            raise written.failure
        self.token_ids = written.token_ids
        ended, error = written.finish_reason, None
        if not written.text:
            ended, error = "error", f"the model ended ({ended}) without any text"
        conclusion = Conclusion(written.text, ended, error)
        self.progress.close(conclusion)
        return self._result(blocks, conclusion, reason, mode="sequential")

    def decline(self) -> ReasoningResult:
        """The model's own words for not answering what is none of its kinds of questions."""
        reason = f"{NOT_ANSWERED}none of the kinds of questions that this model knows"
        self.progress.tell(
            ReasoningChunk(stage="conclude", mode="sequential", fallback_reason=reason)
        )
        conclusion = Conclusion(self.prompts.declines)
        self.progress.open("conclude", [])
        self.progress.conclusion_text(conclusion.text)
        self.progress.close(conclusion)
        return self._result((), conclusion, reason, mode="sequential")

    # ---------------------------------------------------------------- the rest

    def _result(
        self,
        blocks: Sequence[Block],
        conclusion: Conclusion,
        fallback_reason: str | None = None,
        *,
        mode: Mode = "parallel",
        concluded: bool = True,
    ) -> ReasoningResult:
        result = ReasoningResult(
            question=self.ask.question,
            blocks=tuple(blocks),
            conclusion=conclusion.text,
            mode=mode if blocks else "sequential",
            fallback_reason=fallback_reason,
            finish_reason=conclusion.finish_reason,
            error=conclusion.error,
            concluded=concluded,
            model_name=self.decoder.model_name or self.model_name,
        )
        return self.progress.finish(result)

    def _share_out(self) -> None:
        """Set the budget after the longest of the prompts.

        Raises:
            ContextLengthError, OutOfSlotsError: too little is left for an answer.
        """
        prompts = [self.sequential_messages()]
        if self.settings.mode == "parallel":
            prompts.append(self.plan_messages())
        longest = max(map(self.decoder.prompt_tokens, prompts))
        limit = self.decoder.limit
        if limit is not None and limit - longest < LEAST_ROOM:
            raise self.decoder.too_long(longest, LEAST_ROOM)
        self.budget = Budget.within(limit, longest, self.settings, self.given)
        self.decoder.budget = self.budget

    def _open(self, messages: Messages) -> Trunk:
        self.progress.prompt(messages)
        return self.decoder.open(messages)

    def plan_messages(self, wrong: str | None = None) -> Messages:
        """The prompt of stage 1, after a skeleton that was wrong in some way or without one."""
        question, most = self.ask.question, self.settings.max_branches
        schema = ""
        if self.schema is not None:
            schema = self.prompts.for_branch_schema(self.schema.json_schema)
        if not self.form.own_prompt:
            asks = self.settings.outline == "ask" and self.given is None
            text = (
                self.prompts.for_list(question) if asks else self.prompts.for_sequential(question)
            )
            return self._messages(text + schema)
        first = self._messages(self.prompts.for_plan(question, max_branches=most) + schema)
        if wrong is None:
            return first
        text = self.prompts.for_retry(question, max_branches=most, error=wrong) + schema
        again, budget = self._messages(text), self.decoder.budget
        # Where the context is too short for it, the same prompt; then the planner samples.
        fits = self.decoder.prompt_tokens(again) + 2 * budget.plan <= budget.limit
        return again if fits else first

    def sequential_messages(self) -> Messages:
        """The prompt of a sequential answer."""
        return self._messages(self.prompts.for_sequential(self.ask.question))

    def _messages(self, text: str) -> Messages:
        return [*self.ask.messages[:-1], ("user", text)]


def _is_paper(settings: ReasoningSettings, prompts: ReasoningPrompts | None) -> bool:
    """Whether the paper's form is used: where it is set, or for a model that is trained for it."""
    return settings.outline == "paper" or (settings.outline == "auto" and prompts is not None)


def _bare(blocks: list[Block]) -> list[Block]:
    """The blocks without their branches: a chunk carries only what is new."""
    return [Block(plan=block.plan) for block in blocks]
