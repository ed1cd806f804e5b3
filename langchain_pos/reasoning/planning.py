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
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import InvalidRequestError, PlanFormatError
from langchain_pos.reasoning.decoder import Messages, Outline
from langchain_pos.results.data import Plan, Step

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import Decoder, Question, Trunk, Written
    from langchain_pos.reasoning.form import Form, OpenedStep, Skeleton

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
        self._question = question.request.question
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
                skeleton = self._form.skeleton(self._settings, self._question, None)
                written = await self._write(trunk, skeleton, max_tokens, temperature)
                last = self.attempts == self._settings.max_plan_attempts
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

    async def plan_further(
        self, trunk: Trunk, preamble: str, opened: OpenedStep, max_tokens: int
    ) -> Plan | None:
        """Write on the skeleton of a block that text has opened.

        Args:
            trunk: everything before its first step; left as it is.
            preamble: the text so far.
            opened: the first step, which is written already.
            max_tokens: budget of the skeleton.

        Returns:
            None when no second step came of it.

        Raises:
            PlanFormatError: the steps cannot be used, e.g. because a title occurs twice.
        """
        skeleton = self._form.skeleton(self._settings, self._question, opened)
        self._progress.plan_text(skeleton.begin)
        written = await self._write(trunk, skeleton, max_tokens, self._settings.temperature)
        trunk.keep(written, 0)
        plan = self._read(skeleton, written, mend=True)
        return None if plan is None else plan.model_copy(update={"preamble": preamble.strip()})

    async def _write(
        self, trunk: Trunk, skeleton: Skeleton, max_tokens: int, temperature: float
    ) -> Written:
        self._written += 1
        outline = Outline(
            skeleton=skeleton,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=derive_seed(self._seed, "plan", self._written),
            on_text=self._progress.plan_text,
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
        pressure, most = written.pressure, self._settings.max_pressure
        if pressure is not None and most is not None and pressure > most:
            raise PressureError(
                f"the model would not have written it: pressure {pressure:.2f} nats a token, "
                f"{most:.2f} allowed (max_pressure)",
                text=text,
            )
        rounded = None if pressure is None else round(pressure, 4)
        return plan.model_copy(update={"pressure": rounded})


class PressureError(PlanFormatError):
    """A grammar went too much against the model; another attempt would do so again."""


def _settle_preamble(trunk: Trunk, skeleton: Skeleton, written: Written, plan: Plan) -> None:
    """The branches go on after the text before the steps, as the model wrote it."""
    before = skeleton.before_steps(written.raw)
    trunk.keep(written, before or 0)
    if before is None and plan.preamble:
        trunk.settle(f"{plan.preamble}\n")


async def _at_once(seconds: float) -> None:
    """In place of a pause between attempts: the model is no busy server."""


def _is_worth_another_attempt(error: BaseException) -> bool:
    return isinstance(error, PlanFormatError) and not isinstance(error, PressureError)


def given_plan(form: Form, steps: Sequence[Step], max_branches: int) -> Plan:
    """The plan of the steps that the caller gives.

    Raises:
        InvalidRequestError: there are too few or too many, or two have the same title.
    """
    if not 1 <= len(steps) <= max_branches:
        raise InvalidRequestError(
            f"{len(steps)} steps are given; allowed are 1 to {max_branches} (max_branches)"
        )
    try:
        return form.given(steps)
    except ValidationError as error:
        messages = (e["msg"] for e in error.errors(include_url=False))
        wrong = "; ".join(message.removeprefix("Value error, ") for message in messages)
        raise InvalidRequestError(f"these steps cannot be used: {wrong}") from error
