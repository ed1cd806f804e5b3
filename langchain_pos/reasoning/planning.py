"""Stage 1: the model writes a skeleton until a valid plan is there.

Where the decoder holds text to a grammar, a skeleton cannot have the wrong form, and its bounds
hold whatever the model prefers. What no grammar sees (duplicate titles) is retried, and every retry
changes something: first the error is shown to the model, then it samples with a new seed. After the
last attempt a title that is there already is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import ContextLengthError, PlanFormatError
from langchain_pos.reasoning.budget import LEAST_ROOM, no_gain
from langchain_pos.reasoning.decoder import Outline
from langchain_pos.reasoning.expanding import lay_out
from langchain_pos.reasoning.first_branch import First, is_example, waited_for
from langchain_pos.reasoning.stage import StageWriter
from langchain_pos.reasoning.titles import NEEDS_ORDER, counts_steps
from langchain_pos.results.data import NO_LIST

if TYPE_CHECKING:
    from langchain_pos.reasoning.concluding import Conclusion
    from langchain_pos.reasoning.decoder import Decoder, Trunk, Written
    from langchain_pos.reasoning.first_branch import Ahead
    from langchain_pos.reasoning.form import Skeleton
    from langchain_pos.reasoning.prompts import Messages
    from langchain_pos.reasoning.question import Question
    from langchain_pos.results.data import Plan

RETRY_TEMPERATURE = 0.7
"""Least temperature of what is tried a third time, or with the same prompt again."""


class Planner(StageWriter):
    """Writes the plans of one question.

    Attributes:
        declined: why no block came of the answer's text.
        unknown: whether it is none of the kinds of questions that the model knows.
        first: of the last plan, the first branch, as far as it was written beside the skeleton.
    """

    def __init__(self, decoder: Decoder, question: Question) -> None:
        super().__init__(decoder, question)
        self.declined = NO_LIST
        self.unknown = False
        self.first: First | None = None
        self._written = 0
        self._list_began: Trunk | None = None

    async def plan(self) -> tuple[Plan | None, Trunk | None, str | None]:
        """The caller's steps or the model's plan, and the trunk that the branches grow on.

        Returns:
            plan and trunk; or the reason why there is no plan.

        Raises:
            ContextLengthError: the caller's steps do not fit, or nothing is left for a plan.
            PlanFormatError: no attempt gave a plan, and `on_plan_failure="raise"`.
        """
        given, settings = self._question.given, self._settings
        if given is not None:
            trunk = await self.open(self._question.plan_messages())
            self._list_began = trunk.copy()
            lay_out(self._decoder, self._question, trunk, given)  # refuses what does not fit
            return self._with_first(given), trunk, None
        self._progress.prompt(self._question.plan_messages())
        self._progress.open("plan", [])
        prompts, constraint = self._question.prompts, self._question.options.constraint
        may_decline = bool(prompts.declines) and constraint is None
        try:
            plan, trunk = await self._attempts()
            if plan is not None:
                lay_out(self._decoder, self._question, trunk, plan)
        except (PlanFormatError, ContextLengthError) as error:
            if settings.on_plan_failure == "raise":
                raise
            self.unknown = may_decline and isinstance(error, PlanFormatError)
            return None, None, f"no valid plan: {error}"
        if may_decline and not (plan and prompts.know(plan, self._question.request.question)):
            self.unknown = True
            return None, None, None
        if plan is None:
            return None, None, "declined: the question does not fall into independent parts"
        if settings.decline_without_gain and (
            reason := no_gain(len(plan.steps), settings.max_branch_tokens)
        ):
            return None, None, reason
        return self._with_first(plan), trunk, None

    async def plan_further(
        self, trunk: Trunk, so_far: Conclusion, first: Ahead | None = None
    ) -> Plan | None:
        """The plan of a block that text has opened; None, and `declined`, if it is none after all.

        Args:
            trunk: everything before its first step.
            so_far: the text up to there, and that step.
            first: that step's branch, if it is to be written in the meantime.
        """
        if so_far.opened is None:
            return None
        progress = self._progress
        try:
            skeleton = self._form.skeleton(
                self._settings, self._question.request.question, so_far.opened
            )
        except PlanFormatError as error:  # e.g. the list has as many entries as are allowed
            self.declined = f"declined: {error}"
            return None
        base, written = trunk.count(skeleton.so_far), progress.output_tokens
        max_tokens = self._decoder.budget.further_plan(base, written)
        if not max_tokens:
            self.declined = (
                f"declined: a list began, and less than the {LEAST_ROOM} tokens are left that "
                "writing it in parallel takes; raise max_tokens"
            )
            return None
        try:
            plan = await self._go_on(trunk, so_far.text, skeleton, max_tokens, first)
            if plan is not None:
                self._check_room(trunk, plan)
        except (PlanFormatError, ContextLengthError) as error:  # e.g. no room for all
            self.declined = f"declined: {error}"
            return None
        if plan is None:
            return None
        if not so_far.opened.goes_on:
            self._list_began = trunk.copy()
        if self.first is not None:  # its tokens count where the branches' do
            progress.output_tokens -= self.first.tokens
        return self._with_first(plan)

    def _check_room(self, trunk: Trunk, plan: Plan) -> None:
        """See that the branches fit beside what was written of the first one.

        Raises:
            ContextLengthError: they do not.
        """
        first, body, uncounted = self.first, None, 0
        if first is not None and first.written.unfinished:
            uncounted = -first.tokens  # they are a part of what that branch gets
        elif first is not None:
            body = first.text if is_example(first, self._question, plan) else ""
        lay_out(self._decoder, self._question, trunk, plan, body, uncounted)

    def _with_first(self, plan: Plan) -> Plan:
        """A plan that says whether the other branches see the first one."""
        if self.first is None or self.first.written.unfinished:
            seen = self._settings.visibility == "first" and len(plan.steps) > 1
        else:
            seen = is_example(self.first, self._question, plan)
        return plan.model_copy(update={"first_seen": seen})

    async def _attempts(self) -> tuple[Plan | None, Trunk]:
        """Write the first block's skeleton, with retries.

        Returns:
            the plan (None: the model means that the question does not fall into parts), and
            prompt and preamble, ready for the branches.

        Raises:
            PlanFormatError: every attempt failed; it names what was wrong with the last.
        """
        wrong: str | None = None
        sent: list[Messages] = []

        async def attempt() -> tuple[Plan | None, Trunk]:
            nonlocal wrong
            self._progress.attempts += 1
            messages = self._prompt(wrong)
            temperature = self._settings.temperature
            if self._progress.attempts > 2 or messages in sent:
                temperature = max(temperature, RETRY_TEMPERATURE)
            sent.append(messages)
            trunk = await self.open(messages)
            budget, spent = self._decoder.budget, self._progress.output_tokens
            max_tokens = budget.first_plan(spent)
            if not max_tokens:
                raise ContextLengthError(
                    f"no room is left for it: {spent} of max_tokens={budget.answer} are used, and "
                    f"it takes {LEAST_ROOM}"
                )
            try:
                skeleton = self._form.skeleton(
                    self._settings, self._question.request.question, None
                )
                written = await self._write(trunk, skeleton, max_tokens, temperature)
                last = self._progress.attempts == self._settings.max_plan_attempts
                plan = self._read(skeleton, written, mend=last)
            except PlanFormatError as error:
                wrong = str(error)
                raise
            if plan is not None:
                _settle_preamble(trunk, skeleton, written, plan)
            return plan, trunk

        return await AsyncRetrying(
            stop=stop_after_attempt(self._settings.max_plan_attempts),
            retry=retry_if_exception(_is_worth_another_attempt),
            sleep=_at_once,
            reraise=True,
        )(attempt)

    def _prompt(self, wrong: str | None) -> Messages:
        """The messages to send, after a skeleton that was wrong in some way or without one."""
        first = self._question.plan_messages()
        if wrong is None:
            return first
        again, budget = self._question.plan_messages(wrong), self._decoder.budget
        # Where the context is too short for it, the same prompt; then the next attempt samples.
        fits = self._decoder.prompt_tokens(again) + 2 * budget.plan <= budget.limit
        return again if fits else first

    async def _go_on(
        self,
        trunk: Trunk,
        preamble: str,
        skeleton: Skeleton,
        max_tokens: int,
        first: Ahead | None,
    ) -> Plan | None:
        """Write on the skeleton of a block that text has opened.

        Of a list that goes on, it is written where the list began, as its first part was: after
        bodies that are whole, "..." would be the last thing that the model expects.

        Args:
            trunk: everything before its first step; left as it is.
            preamble: the text so far.
            skeleton: its first step is written already.
            max_tokens: budget of the skeleton.
            first: its first step's branch, if it is to be written in the meantime.

        Returns:
            the plan, None when no second step came of it. `first` is its first branch, as far as
            that was written.

        Raises:
            PlanFormatError: the steps cannot be used, e.g. because a title occurs twice.
        """
        self.first = None
        self._progress.plan_text(skeleton.begin)
        began, temperature = self._progress.now, self._settings.temperature

        def wait(written: Written) -> int:
            try:
                plan = self._read(skeleton, written, mend=True)
            except PlanFormatError:
                return 0
            return 0 if plan is None else waited_for(self._question, plan)

        def on_first(written: Written) -> None:
            self.first = First(written, began, self._progress.now)

        if skeleton.so_far:
            written = await self._write(
                trunk, skeleton, max_tokens, temperature, list_began=self._list_began
            )
        else:
            beside: dict[str, Any] = {}
            if first is not None:
                beside = {"first": first.task, "most": first.tokens}
                beside |= {"wait": wait, "on_first": on_first}
            written = await self._write(trunk, skeleton, max_tokens, temperature, **beside)
            trunk.keep(written, 0)
        plan = self._read(skeleton, written, mend=True)
        return None if plan is None else plan.model_copy(update={"preamble": preamble.strip()})

    async def _write(
        self,
        trunk: Trunk,
        skeleton: Skeleton,
        max_tokens: int,
        temperature: float,
        **beside: Any,
    ) -> Written:
        self._written += 1
        outline = Outline(
            skeleton=skeleton,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=derive_seed(self._seed, "plan", self._written),
            on_text=self._progress.plan_text,
            **beside,
        )
        return await self._decoder.write_outline(trunk, outline)

    def _read(self, skeleton: Skeleton, written: Written, *, mend: bool) -> Plan | None:
        """Read a skeleton; with `mend`, leave out the titles that repeat others.

        Raises:
            PlanFormatError: it cannot be used, or the model would not have written it.
        """
        text = skeleton.begin + written.text
        try:
            plan = skeleton.read(text)
        except PlanFormatError:
            plan = skeleton.mend(text) if mend else None
            if plan is None:
                raise
        if plan is None:
            return None
        if self._settings.allow_decline and counts_steps(plan.titles):
            raise HopelessPlanError(NEEDS_ORDER, text=text)
        pressure, most = written.pressure, self._settings.max_pressure
        if pressure is not None and most is not None and pressure > most:
            raise HopelessPlanError(
                f"the model would not have written it: pressure {pressure:.2f} nats a token, "
                f"{most:.2f} allowed (max_pressure)",
                text=text,
            )
        rounded = None if pressure is None else round(pressure, 4)
        return plan.model_copy(update={"pressure": rounded})


class HopelessPlanError(PlanFormatError):
    """Another attempt would fail for the same reason, e.g. go as much against the model."""


def _settle_preamble(trunk: Trunk, skeleton: Skeleton, written: Written, plan: Plan) -> None:
    """The branches go on after the text before the steps, as the model wrote it."""
    before = skeleton.before_steps(written.raw)
    trunk.keep(written, before or 0)
    if before is None and plan.preamble:
        trunk.settle(f"{plan.preamble}\n")


async def _at_once(seconds: float) -> None:
    """In place of a pause between attempts: waiting would not help."""


def _is_worth_another_attempt(error: BaseException) -> bool:
    return isinstance(error, PlanFormatError) and not isinstance(error, HopelessPlanError)
