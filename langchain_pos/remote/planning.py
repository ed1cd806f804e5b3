"""Stage 1 over HTTP: the server writes a skeleton until a valid plan is there.

Where the server holds texts to a grammar, it is that of `planning.py`. Elsewhere the skeleton is
read as models write them (`plan_parser.py`). The retries are those of `planning.py` too: first the
error is told to the model, then it samples with a new seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import PlanFormatError
from langchain_pos.reasoning.skeleton import (
    RETRY_TEMPERATURE,
    before_steps,
    read_skeleton,
    without_repeats,
)
from langchain_pos.reasoning.skeleton_grammar import STEP_CLOSE, skeleton_grammar
from langchain_pos.remote.asking import TextTrunk
from langchain_pos.remote.dialects import Call
from langchain_pos.remote.sinks import SkeletonSink
from langchain_pos.results.data import END_MARK, STEP_MARK, Plan

if TYPE_CHECKING:
    from langchain_pos.remote.asking import Asker


class RemotePlanner:
    """Writes the plans of one question.

    Args:
        asker: asks the server.

    Attributes:
        attempts: skeletons written.
    """

    def __init__(self, asker: Asker) -> None:
        self.attempts = 0
        self._asker = asker
        self._settings = asker.settings

    async def plan(
        self, new_trunk: Callable[[str | None], TextTrunk]
    ) -> tuple[Plan | None, TextTrunk]:
        """Write the first block's skeleton, with retries.

        Args:
            new_trunk: makes the prompt; given what was wrong with the last skeleton, or None.

        Returns:
            the plan (None: the model means that the question does not fall into parts), and
            prompt and preamble, ready for the branches.

        Raises:
            PlanFormatError: every attempt failed; it names what was wrong with the last.
        """
        wrong: str | None = None
        asked: list[TextTrunk] = []
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._settings.max_plan_attempts),
            retry=retry_if_exception_type(PlanFormatError),
            reraise=True,
        )

        async def attempt() -> tuple[Plan | None, TextTrunk]:
            nonlocal wrong
            trunk = new_trunk(wrong)
            temperature = self._settings.temperature
            if self.attempts >= 2 or trunk in asked:
                temperature = max(temperature, RETRY_TEMPERATURE)
            asked.append(trunk)
            text = await self._write(trunk, None, temperature)
            try:
                plan = self._read(text)
            except PlanFormatError as error:
                wrong = str(error)
                last = self.attempts == self._settings.max_plan_attempts
                plan = without_repeats(text) if last else None
                if plan is None:
                    raise
            if plan is None:
                return None, trunk
            return plan, TextTrunk(trunk.head, trunk.text + before_steps(text, plan))

        return await retrying(attempt)

    async def plan_further(self, trunk: TextTrunk, preamble: str, title: str) -> Plan | None:
        """Write on the skeleton of a block that the conclusion has opened.

        Args:
            trunk: everything before its first step.
            preamble: the conclusion so far.
            title: of the first step, which is written already.

        Returns:
            None when no second step came of it.

        Raises:
            PlanFormatError: the steps cannot be used.
        """
        text = await self._write(trunk, title, self._settings.temperature)
        try:
            plan = self._read(text, allow_decline=True)
        except PlanFormatError:
            plan = without_repeats(text)
            if plan is None:
                raise
        return None if plan is None else Plan(preamble=preamble.strip(), steps=plan.steps)

    async def _write(self, trunk: TextTrunk, first: str | None, temperature: float) -> str:
        """One skeleton within its budget, closed; with its first step if that was there already."""
        self.attempts += 1
        settings, budget = self._settings, self._asker.budget
        opened = "" if first is None else f"{STEP_MARK}{first}{STEP_CLOSE}"
        max_tokens = settings.max_plan_tokens if budget is None else budget.plan
        if opened and budget is not None:
            max_tokens = budget.further_plan(self._asker.length(trunk, opened))
            if not max_tokens:
                raise PlanFormatError("there is no room for a further block", text=opened)
        sink = SkeletonSink(
            self._asker.progress.plan_text, stop=() if self._asker.constrained else (END_MARK,)
        )
        grammar = skeleton_grammar(
            max_branches=settings.max_branches - bool(opened),
            min_branches=1 if opened else 2,
            allow_decline=settings.allow_decline or bool(opened),
            continued=bool(opened),
        )
        call = Call(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=derive_seed(self._asker.seed, "plan", len(trunk.text), self.attempts) >> 32,
            stop=sink.stop,
            grammar=grammar if self._asker.constrained else None,
        )
        await self._asker.write(sink, trunk, call, opened)
        return opened + sink.whole(opened)

    def _read(self, text: str, *, allow_decline: bool | None = None) -> Plan | None:
        return read_skeleton(
            text,
            max_branches=self._settings.max_branches,
            allow_decline=self._settings.allow_decline if allow_decline is None else allow_decline,
        )
