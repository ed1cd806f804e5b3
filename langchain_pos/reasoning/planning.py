"""Stage 1: the model writes a skeleton under a grammar until a valid plan is there.

A skeleton cannot have the wrong form, and its bounds hold whatever the model prefers: when a
budget runs out, the text that closes it is written for the model. What no grammar sees (duplicate
titles) is retried, and every retry changes something: first the error is told to the model, then
it samples with a new seed. After the last attempt a title that is there already is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tenacity import IterState, Retrying, retry_if_exception_type, stop_after_attempt

from langchain_pos.engine.completion import DraftUsage
from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.decoding.drafts import NO_DRAFT, Draft, PromptLookup
from langchain_pos.engine.decoding.sequence import decode
from langchain_pos.engine.sampling import SamplingParams, derive_seed
from langchain_pos.engine.tokenization.text import encode_continuation
from langchain_pos.errors import NonFiniteLogitsError, PlanFormatError
from langchain_pos.local.trunk import Trunk
from langchain_pos.reasoning.plan_parser import PlanParser
from langchain_pos.reasoning.skeleton import RETRY_TEMPERATURE, without_repeats
from langchain_pos.reasoning.skeleton_grammar import (
    PREAMBLE_CLOSE,
    STEP_CLOSE,
    closing,
    skeleton_grammar,
)
from langchain_pos.reasoning.title_drafts import next_titles
from langchain_pos.results.data import END_MARK, STEP_MARK, Plan

if TYPE_CHECKING:
    from langchain_pos.engine.decoding.sequence import DecodingSequence, Steps
    from langchain_pos.engine.engine import Engine
    from langchain_pos.reasoning.settings import ReasoningSettings


class _Retrying(Retrying):
    """Keeps its state itself, where tenacity keeps it in the thread.

    A request is stepped by whichever thread drives the engine, so its attempts move between
    threads.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._figures: dict[str, Any] = {}
        self._state = IterState()

    @property
    def statistics(self) -> dict[str, Any]:
        return self._figures

    @property
    def iter_state(self) -> IterState:
        return self._state


class Planner:
    """Writes the plans of one request.

    Args:
        engine: decodes.
        settings: bounds, attempts, sampling.
        seed: the request's seed.
        on_text: called with each piece of raw skeleton.
        question: where the titles of the steps may stand.

    Attributes:
        attempts: skeletons written.
        output_tokens: tokens of all of them.
        drafts: tokens guessed, and guessed right.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ReasoningSettings,
        sampling: SamplingParams,
        seed: int,
        on_text: Callable[[str], None],
        question: str,
    ) -> None:
        self._question = question
        self.attempts = 0
        self.output_tokens = 0
        self.drafts = DraftUsage()
        self._engine = engine
        self._settings = settings
        self._sampling = sampling
        self._seed = seed
        self._on_text = on_text

    def plan(
        self, new_trunk: Callable[[str | None], Trunk], max_tokens: int
    ) -> Steps[tuple[Plan | None, Trunk]]:
        """Write the first block's skeleton, with retries.

        Args:
            new_trunk: makes the prompt; given what was wrong with the last skeleton, or None.
            max_tokens: budget of one skeleton.

        Returns:
            the plan (None: the model means that the question does not fall into parts), and
            prompt and preamble, ready for the branches.

        Raises:
            PlanFormatError: every attempt failed; it names what was wrong with the last.
        """
        wrong: str | None = None
        asked: list[list[int]] = []
        retrying = _Retrying(
            stop=stop_after_attempt(self._settings.max_plan_attempts),
            retry=retry_if_exception_type(PlanFormatError),
            reraise=True,
        )
        for attempt in retrying:
            with attempt:
                trunk = new_trunk(wrong)
                sampling = self._sampling
                if self.attempts >= 2 or trunk.token_ids in asked:
                    warmer = max(sampling.temperature, RETRY_TEMPERATURE)
                    sampling = replace(sampling, temperature=warmer)
                asked.append(list(trunk.token_ids))
                sequence = yield from self._write(trunk, None, max_tokens, sampling)
                try:
                    plan = self._read(sequence.text)
                except PlanFormatError as error:
                    wrong = str(error)
                    last = self.attempts == self._settings.max_plan_attempts
                    plan = without_repeats(sequence.text) if last else None
                    if plan is None:
                        self._engine.release(trunk.segment)
                        raise
        trunk.settle_before(sequence.token_ids, re.compile(re.escape(STEP_MARK)))
        self._engine.truncate(trunk.segment, trunk.end)
        return plan, trunk

    def plan_further(
        self, trunk: Trunk, preamble: str, title: str, max_tokens: int
    ) -> Steps[Plan | None]:
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
        sequence = yield from self._write(trunk, title, max_tokens, self._sampling)
        self._engine.truncate(trunk.segment, trunk.end)
        text = STEP_MARK + sequence.text
        try:
            plan = self._read(text)
        except PlanFormatError:
            plan = without_repeats(text)
            if plan is None:
                raise
        return None if plan is None else Plan(preamble=preamble.strip(), steps=plan.steps)

    def _write(
        self, trunk: Trunk, first: str | None, max_tokens: int, sampling: SamplingParams
    ) -> Steps[DecodingSequence]:
        """Decode one skeleton behind `trunk` within its bounds.

        `first` is the title of a first step that is there already.
        """
        self.attempts += 1
        opening = "" if first is None else STEP_MARK
        grammar = skeleton_grammar(
            max_branches=self._settings.max_branches,
            allow_decline=self._settings.allow_decline or bool(opening),
            continued=bool(opening),
        )
        head = trunk.encode(opening) if opening else []
        unfed = trunk.unfed
        before = trunk.token_ids[: len(trunk.token_ids) - len(unfed)]
        sequence = self._engine.sequence(
            trunk.segment,
            [*unfed, *head],
            max_new_tokens=2 * max_tokens,  # a safeguard: `_close` ends it before
            sampling=sampling,
            seed=derive_seed(self._seed, "plan", len(trunk.token_ids), self.attempts),
            constraint=Constraint("ebnf", grammar),
            context_ids=before,
            on_text=self._on_text,
            lookup=PromptLookup(before) if self._settings.drafts else None,
            guess=partial(self._guess, opening) if self._settings.drafts else None,
            on_token=_Bounds(self._settings, opening, max_tokens).close,
        )
        if first is not None and not sequence.force(f"{first}:"):
            raise PlanFormatError(f"this cannot be a title: {first!r}", text=opening + first)
        yield from decode([sequence])
        self._engine.truncate(trunk.segment, sequence.end_of_seen)
        self.output_tokens += len(sequence.token_ids)
        self.drafts += sequence.drafts
        if sequence.error is not None:
            raise NonFiniteLogitsError(sequence.error)
        return sequence

    def _guess(self, opening: str, sequence: DecodingSequence) -> Draft:
        """Behind a `####`: the next titles, if the records in the question have a pattern."""
        text = opening + sequence.text
        if not text.endswith(STEP_MARK):
            return NO_DRAFT
        titles = [step.partition(":")[0] for step in text.split(STEP_MARK)[1:-1]]
        token_ids: list[int] = []
        expected: list[int | None] = []
        most = self._engine.scheduler.budget.draft_rows
        for title in next_titles(self._question, titles, most // 4):
            token_ids += self._encode_behind_mark(title)
            expected += token_ids[len(expected) :]
            close = encode_continuation(self._engine.tokenizer, STEP_CLOSE)
            colon = encode_continuation(self._engine.tokenizer, ":")
            if len(colon) != 1 or len(token_ids) >= most:
                break
            # The model chooses the colon; what it forces is written, and encoded, as one.
            token_ids += close
            expected += [colon[0], *[None] * (len(close) - 1)]
        return Draft(tuple(token_ids), tuple(expected)).shortened(most)

    def _encode_behind_mark(self, title: str) -> list[int]:
        mark = encode_continuation(self._engine.tokenizer, STEP_MARK)
        both = encode_continuation(self._engine.tokenizer, STEP_MARK + title)
        if both[: len(mark)] == mark:
            return both[len(mark) :]
        return encode_continuation(self._engine.tokenizer, title)

    def _read(self, text: str) -> Plan | None:
        """Parse a skeleton; None when it has fewer than two steps.

        Raises:
            PlanFormatError: what no grammar sees is wrong with it.
        """
        if not text.rstrip().endswith(END_MARK):
            raise PlanFormatError("the skeleton was not closed within its budget", text=text)
        if text.count(STEP_MARK) <= 1:  # the terminator alone
            return None
        plan = PlanParser(max_branches=self._settings.max_branches).parse(text)
        return plan if len(plan.steps) > 1 else None


class _Bounds:
    """Closes what has reached its bound: a preamble, a title, the skeleton.

    If the grammar does not allow it yet, the next token's turn comes.
    """

    def __init__(self, settings: ReasoningSettings, opening: str, max_tokens: int) -> None:
        self._opening = opening
        self._max_tokens = max_tokens
        self._max_preamble = min(settings.max_preamble_tokens, max_tokens // 6)
        self._max_title = min(settings.max_title_tokens, max(max_tokens // 6, 1))
        self._marks = 0
        self._tokens_at_mark = 0

    def close(self, sequence: DecodingSequence) -> None:
        """Look at the skeleton after a token."""
        self._count(sequence)
        self._close(sequence)
        self._count(sequence)  # what closes a title opens the next one

    def _count(self, sequence: DecodingSequence) -> None:
        seen = (self._opening + sequence.text).count(STEP_MARK)
        if seen != self._marks:
            self._marks, self._tokens_at_mark = seen, len(sequence.token_ids)

    def _close(self, sequence: DecodingSequence) -> None:
        since = len(sequence.token_ids) - self._tokens_at_mark
        if len(sequence.token_ids) >= self._max_tokens and self._marks > 2:
            sequence.force(closing(self._opening + sequence.text))
        elif self._marks == 0:
            if since >= self._max_preamble:
                text = PREAMBLE_CLOSE[1:] if sequence.text.endswith("\n") else PREAMBLE_CLOSE
                sequence.force(text)
        elif since >= self._max_title:
            sequence.force(":")
