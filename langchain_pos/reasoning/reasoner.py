"""The way of a question: plan, expand, conclude. Open this file first.

    reason
      ├─ plan       stage 1   the model writes a skeleton under a grammar (planning.py)
      ├─ expand     stage 2   a branch for each step; all decode together, one token each a pass
      │                       (expanding.py)
      └─ conclude   stage 3   join, decode on; a step opens another block → back to stage 1
                              (concluding.py)

`reason` is a generator in the engine's sense (`Steps`): it yields the tokens that it wants fed
and is sent back the tokens sampled, so many questions share the engine's forward passes without
knowing of one another, and closing the generator cancels the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_pos.engine.decoding.drafts import PromptLookup
from langchain_pos.engine.decoding.sequence import decode
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.seeds import derive_seed, request_seed
from langchain_pos.errors import (
    ContextLengthError,
    InvalidRequestError,
    NonFiniteLogitsError,
    PlanFormatError,
)
from langchain_pos.local.trunk import Trunk
from langchain_pos.reasoning.answer_form import PLAIN, AnswerForm
from langchain_pos.reasoning.branch_schema import branch_schema_of
from langchain_pos.reasoning.budget import Budget, no_gain
from langchain_pos.reasoning.chat_template import encode_prompt
from langchain_pos.reasoning.concluding import Concluder
from langchain_pos.reasoning.conclusion import Conclusion
from langchain_pos.reasoning.expanding import Expander
from langchain_pos.reasoning.planning import Planner
from langchain_pos.reasoning.progress import Progress
from langchain_pos.reasoning.prompts import ReasoningPrompts, prompts_for
from langchain_pos.reasoning.skeleton import given_plan
from langchain_pos.results.data import Block, Plan, ReasoningRequest
from langchain_pos.results.result import ReasoningChunk, ReasoningResult

if TYPE_CHECKING:
    from collections.abc import Hashable

    from langchain_pos.engine.decoding.sequence import Steps
    from langchain_pos.engine.engine import Engine
    from langchain_pos.engine.scheduler.request import Request
    from langchain_pos.reasoning.settings import ReasoningSettings


class Reasoner:
    """Answers questions with one engine.

    Args:
        engine: the model.
        prompts: what is said to it; by default chosen by the question's language.
        model_name: for the result.
    """

    def __init__(
        self, engine: Engine, *, prompts: ReasoningPrompts | None = None, model_name: str = ""
    ) -> None:
        self.engine = engine
        self.prompts = prompts
        self.model_name = model_name

    def submit(
        self,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        *,
        deltas: bool = False,
        spans: bool = False,
    ) -> Request[ReasoningResult]:
        """Queue a question; `engine.scheduler` runs it. Its events are `ReasoningChunk`s.

        Args:
            ask: the question.
            settings: budgets and sampling.
            deltas: tell every piece of text; otherwise only plans and finished branches.
            spans: tell the beginning and end of stages and branches, too (`SpanEvent`).

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
        form: AnswerForm = PLAIN,
    ) -> Answer:
        """What `submit` does without queueing it: `Answer.submit` does that, at once."""
        return Answer(self, ask, settings, deltas=deltas, spans=spans, form=form)


class Answer:
    """One question on its way. What can be refused is refused here, before any work."""

    def __init__(
        self,
        reasoner: Reasoner,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        *,
        deltas: bool,
        spans: bool = False,
        form: AnswerForm = PLAIN,
    ) -> None:
        self.engine = reasoner.engine
        self.form = form
        self.ask = ask
        self.settings = settings
        self.prompts = reasoner.prompts or prompts_for(ask.question)
        self.model_name = reasoner.model_name
        self.progress = Progress(deltas=deltas, spans=spans)
        self.written_ids: tuple[int, ...] = ()  # of an ordinary answer
        self.sampling = SamplingParams(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
        )
        own = [step.temperature for step in ask.steps or ()]
        self.seed = request_seed(settings.seed, settings.temperature, *own)
        if not ask.question.strip():
            raise InvalidRequestError("the question is empty; ask something")
        self.given: Plan | None = None
        if ask.steps is not None and settings.mode == "parallel":
            self.given = given_plan(ask.steps, settings.max_branches)
        self.contract = branch_schema_of(settings.branch_schema, self.given)
        self.sequential_ids = self._encode(self.prompts.for_sequential(ask.question))
        parallel = settings.mode == "parallel"
        self.prompt_ids = self._plan_prompt(None) if parallel else self.sequential_ids
        longest = max(len(self.prompt_ids), len(self.sequential_ids))
        self.budget = Budget.of(self.engine, longest, settings, self.given)
        if form.constraint is not None:
            self.engine.constraints.state(form.constraint)  # compiled here, while others decode
        common = self.engine, settings, self.sampling, self.seed, self.budget, self.progress
        self.expander = Expander(*common, self.contract)
        self.concluder = Concluder(*common, form.constraint)

    def submit(self, caller: Hashable | None = None) -> Request[ReasoningResult]:
        """Queue it; the questions of one `caller` wait for one another, not others for all."""
        reserve = self.budget.reserve
        return self.engine.scheduler.submit(self.reason, reserve=reserve, caller=caller)

    # ------------------------------------------------------------------ the way

    def reason(self, request: Request[ReasoningResult]) -> Steps[ReasoningResult]:
        """All stages in reading order."""
        self.request = request
        self.progress.begin(request, len(self.prompt_ids))
        if self.settings.mode == "sequential":
            return (yield from self.answer_sequentially(None))

        # Stage 1. A plan, or the reason why there is none.
        with self.progress.stage("plan"):
            if self.given is None:
                self.progress.open("plan", [])
            plan, trunk, reason = yield from self.plan()
            self.progress.close(plan)
        if plan is None:
            return (yield from self.answer_sequentially(reason))

        blocks: list[Block] = []
        while plan is not None:
            # Stage 2. All branches together.
            blocks.append(Block(plan=plan))
            self.progress.tell(ReasoningChunk(stage="plan", blocks=tuple(_bare(blocks))))
            with self.progress.stage("expand"):
                self.progress.open("expand", blocks)
                branches, grown = yield from self.expander.expand(trunk, blocks)
            blocks[-1] = Block(plan=plan, branches=branches)
            self.progress.close(blocks[-1])
            if not self.settings.conclude:
                return self._result(tuple(blocks), Conclusion(""), concluded=False)

            # Stage 3. The conclusion. It may open a further block: back to stage 1.
            with self.progress.stage("conclude"):
                self.progress.open("conclude", blocks)
                conclusion = yield from self.concluder.conclude(trunk, branches, grown, len(blocks))
                self.progress.close(conclusion)
            plan = None
            if conclusion.title is not None:
                with self.progress.stage("plan"):
                    self.progress.open("plan", blocks, conclusion.text)
                    plan = yield from self.plan_further(trunk, conclusion.text, conclusion.title)
                    self.progress.close(plan)
                if plan is None:
                    with self.progress.stage("conclude"):
                        self.progress.open("conclude", blocks, conclusion.text)
                        conclusion = yield from self.concluder.conclude_on(trunk, conclusion)
                        self.progress.close(conclusion)
        return self._result(tuple(blocks), conclusion)

    # ------------------------------------------------------------------ stage 1

    def plan(self) -> Steps[tuple[Plan | None, Trunk, str | None]]:
        """The caller's steps or the model's plan, and the trunk that the branches grow on."""
        if self.given is not None:
            trunk = self._new_trunk(None)
            self.expander.lay_out(trunk, self.given)  # refuses what does not fit
            return self.given, trunk, None
        planner = self._planner()
        try:
            plan, trunk = yield from planner.plan(self._new_trunk, self.budget.plan)
            if plan is not None:
                self.expander.lay_out(trunk, plan)
        except (PlanFormatError, ContextLengthError) as error:
            if self.settings.on_plan_failure == "raise":
                raise
            return None, self._new_trunk(None), f"no valid plan: {error}"
        finally:
            self.progress.attempts = planner.attempts
            self.progress.output_tokens += planner.output_tokens
            self.progress.drafts += planner.drafts
        if plan is None:
            return None, trunk, "declined: the question does not fall into independent parts"
        if self.settings.decline_without_gain and (
            reason := no_gain(len(plan.steps), self.settings.max_branch_tokens)
        ):
            return None, trunk, reason
        return plan, trunk, None

    def plan_further(self, trunk: Trunk, so_far: str, title: str) -> Steps[Plan | None]:
        """The plan of a block that the conclusion has opened; None if it is none after all."""
        planner = self._planner()
        max_tokens = self.budget.further_plan(len(trunk.token_ids))
        if not max_tokens:
            return None
        try:
            plan = yield from planner.plan_further(trunk, so_far, title, max_tokens)
            if plan is not None:
                self.expander.lay_out(trunk, plan)
        except (PlanFormatError, ContextLengthError):  # e.g. one title twice, or no room for all
            return None
        finally:
            self.progress.output_tokens += planner.output_tokens
            self.progress.drafts += planner.drafts
        return plan

    # ------------------------------------------------------- the ordinary way

    def answer_sequentially(self, reason: str | None) -> Steps[ReasoningResult]:
        """One sequence, as any model answers; `reason` says why it is not parallel."""
        self.progress.prompt(self._messages(self.prompts.for_sequential(self.ask.question)))
        for segment in list(self.request.ledger.segments):
            self.engine.release(segment)
        self.progress.tell(
            ReasoningChunk(stage="conclude", mode="sequential", fallback_reason=reason)
        )
        root = self.engine.scheduler.root(self.request, self.sequential_ids)
        known = self.sequential_ids[: root.end]
        sequence = self.engine.sequence(
            root,
            self.sequential_ids[root.end :],
            max_new_tokens=self.budget.sequential,
            sampling=self.sampling,
            seed=derive_seed(self.seed, "sequential"),
            stop=self.settings.stop,
            strip=True,
            constraint=self.form.constraint,
            on_text=self.progress.conclusion_text,
            context_ids=known,
            lookup=PromptLookup(known) if self.settings.drafts else None,
            logprobs=self.form.logprobs,
        )
        with self.progress.stage("conclude"):
            self.progress.open("conclude", [])
            yield from decode([sequence])
            self.progress.output_tokens += len(sequence.token_ids)
        done = sequence.completion()
        self.written_ids = done.token_ids
        self.progress.drafts += done.drafts
        if done.error is not None:
            raise NonFiniteLogitsError(done.error)
        error = None if done.text else f"the model ended ({done.finish_reason}) without any text"
        conclusion = Conclusion(done.text, "error" if error else done.finish_reason, error)
        self.progress.close(conclusion)
        return self._result((), conclusion, fallback_reason=reason)

    # ---------------------------------------------------------------- the rest

    def _result(
        self,
        blocks: tuple[Block, ...],
        conclusion: Conclusion,
        fallback_reason: str | None = None,
        *,
        concluded: bool = True,
    ) -> ReasoningResult:
        result = ReasoningResult(
            question=self.ask.question,
            blocks=blocks,
            conclusion=conclusion.text,
            mode="parallel" if blocks else "sequential",
            fallback_reason=fallback_reason,
            finish_reason=conclusion.finish_reason,
            error=conclusion.error,
            concluded=concluded,
            model_name=self.model_name,
        )
        return self.progress.finish(result, len(self.prompt_ids))

    def _planner(self) -> Planner:
        return Planner(
            self.engine,
            self.settings,
            self.sampling,
            self.seed,
            self.progress.plan_text,
            self.ask.question,
        )

    def _new_trunk(self, wrong: str | None) -> Trunk:
        """A segment and the prompt that belongs into it; nothing of it is fed yet."""
        ids = self.prompt_ids
        if wrong is not None:
            told = self._plan_prompt(wrong)
            # Where the context is too short for it, the same prompt; then sampling changes.
            ids = told if len(told) + 2 * self.budget.plan <= self.budget.limit else ids
        root = self.engine.scheduler.root(self.request, ids)
        return Trunk(self.engine.tokenizer, root, list(ids))

    def _plan_prompt(self, wrong: str | None) -> list[int]:
        question, most = self.ask.question, self.settings.max_branches
        if wrong is None:
            text = self.prompts.for_plan(question, max_branches=most)
        else:
            text = self.prompts.for_retry(question, max_branches=most, error=wrong)
        if self.contract is not None:
            text += self.prompts.for_branch_schema(self.contract.json_schema)
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        messages = self._messages(text)
        self.progress.prompt(messages)
        if self.form.encode is not None:
            return self.form.encode(text)
        return encode_prompt(self.engine.tokenizer, messages)

    def _messages(self, text: str) -> list[tuple[str, str]]:
        return [*self.ask.messages[:-1], ("user", text)]


def _bare(blocks: list[Block]) -> list[Block]:
    """The blocks without their branches: a chunk carries only what is new."""
    return [Block(plan=block.plan) for block in blocks]
