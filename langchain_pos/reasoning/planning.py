"""Stage 1: the model writes a skeleton until a valid plan is there.

Where the decoder holds text to a grammar, a skeleton cannot have the wrong form, and its bounds
hold whatever the model prefers. What no grammar sees (duplicate titles) is retried, and every retry
changes something: first the error is shown to the model, then it samples with a new seed. After the
last attempt a title that is there already is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import InvalidRequestError, PlanFormatError
from langchain_pos.reasoning.decoder import Messages, Outline
from langchain_pos.results.data import Plan, Step

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import Decoder, Question, Trunk, Written

RETRY_TEMPERATURE = 0.7
"""Least temperature of what is tried a third time, or with the same prompt again."""


class Planner:
    """Writes the plans of one question.

    Args:
        decoder: writes.
        question: what is asked, and its bounds.
        seed: the question's seed.

    Attributes:
        attempts: skeletons written for the first block.
    """

    def __init__(self, decoder: Decoder, question: Question, seed: int) -> None:
        self.attempts = 0
        self._decoder = decoder
        self._settings = question.settings
        self._form = question.form
        self._progress = question.progress
        self._guess = question.form.guess(question.request.question)
        self._seed = seed
        self._written = 0

    async def plan(
        self, prompt: Callable[[str | None], Messages], open_trunk: Callable[[Messages], Trunk]
    ) -> tuple[Plan | None, Trunk]:
        """Write the first block's skeleton, with retries.

        Args:
            prompt: the messages to send; given what was wrong with the last skeleton, or None.
            open_trunk: makes a trunk of them.

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
            self.attempts += 1
            messages = prompt(wrong)
            temperature = self._settings.temperature
            if self.attempts > 2 or messages in sent:
                temperature = max(temperature, RETRY_TEMPERATURE)
            sent.append(messages)
            trunk = open_trunk(messages)
            max_tokens = self._decoder.budget.plan
            try:
                written = await self._write(trunk, "", max_tokens, temperature)
                last = self.attempts == self._settings.max_plan_attempts
                plan = self._read(written.text, mend=last)
            except PlanFormatError as error:
                wrong = str(error)
                raise
            if plan is not None:
                self._settle_preamble(trunk, written, plan)
            return plan, trunk

        return await AsyncRetrying(
            stop=stop_after_attempt(self._settings.max_plan_attempts),
            retry=retry_if_exception_type(PlanFormatError),
            sleep=_at_once,
            reraise=True,
        )(attempt)

    async def plan_further(
        self, trunk: Trunk, preamble: str, title: str, max_tokens: int
    ) -> Plan | None:
        """Write on the skeleton of a block that the conclusion has opened.

        Args:
            trunk: everything before its first step; left as it is.
            preamble: the conclusion so far.
            title: of the first step, which is written already.
            max_tokens: budget of the skeleton.

        Returns:
            None when no second step came of it.

        Raises:
            PlanFormatError: the steps cannot be used, e.g. because a title occurs twice.
        """
        opened = self._form.opened_outline(title)
        self._progress.plan_text(opened)
        written = await self._write(trunk, opened, max_tokens, self._settings.temperature)
        trunk.keep(written, 0)
        plan = self._read(opened + written.text, mend=True, allow_decline=True)
        return None if plan is None else Plan(preamble=preamble.strip(), steps=plan.steps)

    async def _write(
        self, trunk: Trunk, opened: str, max_tokens: int, temperature: float
    ) -> Written:
        self._written += 1
        form, settings = self._form, self._settings
        outline = Outline(
            opened=opened,
            grammar=form.grammar(settings, opened=bool(opened)),
            end=form.end,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=derive_seed(self._seed, "plan", self._written),
            close=form.close,
            is_plan=form.is_plan,
            has_steps=form.has_steps,
            bounds=lambda: form.bounds(settings, opened, max_tokens),
            guess=self._guess,
            on_text=self._progress.plan_text,
        )
        return await self._decoder.write_outline(trunk, outline)

    def _read(self, text: str, *, mend: bool, allow_decline: bool = False) -> Plan | None:
        """Read a skeleton; with `mend`, leave out the titles that repeat others."""
        allow_decline = allow_decline or self._settings.allow_decline
        most = self._settings.max_branches
        try:
            return self._form.read(text, max_branches=most, allow_decline=allow_decline)
        except PlanFormatError:
            plan = self._form.without_repeats(text) if mend else None
            if plan is None:
                raise
            return plan

    def _settle_preamble(self, trunk: Trunk, written: Written, plan: Plan) -> None:
        """The branches go on after the text before the steps, as the model wrote it."""
        before = self._form.before_steps(written.raw)
        trunk.keep(written, before or 0)
        if before is None and plan.preamble:
            trunk.settle(f"{plan.preamble}\n")


async def _at_once(seconds: float) -> None:
    """In place of a pause between attempts: the model is no busy server."""


def given_plan(steps: Sequence[Step], max_branches: int) -> Plan:
    """The plan of the steps that the caller gives.

    Raises:
        InvalidRequestError: there are too few or too many, or two have the same title.
    """
    if not 1 <= len(steps) <= max_branches:
        raise InvalidRequestError(
            f"{len(steps)} steps are given; allowed are 1 to {max_branches} (max_branches)"
        )
    try:
        return Plan(steps=tuple(steps))
    except ValidationError as error:
        messages = (e["msg"] for e in error.errors(include_url=False))
        wrong = "; ".join(message.removeprefix("Value error, ") for message in messages)
        raise InvalidRequestError(f"these steps cannot be used: {wrong}") from error
