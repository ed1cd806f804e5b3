"""Budgets that fit: what each stage may write, within the model's positions and the slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from langchain_pos.errors import ContextLengthError

if TYPE_CHECKING:
    from langchain_pos.reasoning.settings import ReasoningSettings
    from langchain_pos.results.data import Plan

LEAST_ROOM = 64
"""Tokens that must remain after the prompt; with fewer, no answer is attempted."""
LEAST_BRANCH = 16
"""Tokens that each branch of the model's own plan must get. A list's entries take some 24 to 60;
with much less nearly all would be cut, where a sequential answer has at least the first ones whole.
"""
UNLIMITED = 1 << 40
"""Positions where the limit is unknown."""


@dataclass(frozen=True)
class Budget:
    """What one question may use, in tokens.

    The joined answer must fit the model's positions, so the room after the prompt is divided: at
    most a third for the skeleton, at most a third for the conclusion, and the rest for the
    branches. What a caller allows for the whole answer (`max_tokens`) is divided in the same way,
    by what is left of it when a stage begins, so methods ask for what has been `written`.

    Attributes:
        limit: positions and slots that the answer may reach.
        plan: one skeleton.
        conclusion: one conclusion.
        sequential: a sequential answer.
        reserve: slots held at most, at any moment.
        answer: the whole answer: thoughts, skeletons, those that failed included, branches and
            conclusions.
        thoughts: what a thinking model may think before it answers.
    """

    limit: int
    plan: int
    conclusion: int
    sequential: int
    reserve: int
    answer: int = UNLIMITED
    thoughts: int = 0

    @classmethod
    def within(
        cls,
        limit: int | None,
        prompt: int,
        settings: ReasoningSettings,
        given: Plan | None = None,
        *,
        thinks: bool = False,
    ) -> Budget:
        """Share out what `limit` positions leave after a prompt of so many tokens.

        Given steps may specify longer branches than the settings do. Without a limit, only the
        settings apply, and the decoder refuses what is too long.

        Args:
            limit: positions; the prompt leaves `LEAST_ROOM` of them, or more.
            prompt: its tokens.
            settings: the bounds of each stage.
            given: the caller's steps.
            thinks: whether the model may think first; a third at most is for that.
        """
        limit = UNLIMITED if limit is None else limit
        answer = settings.max_tokens or UNLIMITED
        thoughts = 0
        if thinks:
            most = min(limit - prompt, answer) // 3
            thoughts = max(min(settings.max_thinking_tokens, most), 1)
        prompt += thoughts
        room = limit - prompt
        text = settings.max_tokens or settings.max_conclusion_tokens
        plan = min(settings.max_plan_tokens, room // 3, max(answer // 3, 1))
        conclusion = min(text, room // 3) if settings.conclude else 0
        asked = [step.max_tokens or 0 for step in given.steps] if given else []
        step = settings.max_title_tokens + max([settings.max_branch_tokens, *asked])
        belt = prompt + 2 * plan + settings.max_parallel_branches * step
        joined = prompt + 2 * plan + settings.max_branches * step + settings.max_blocks * conclusion
        sequential = min(settings.max_tokens or settings.max_sequential_tokens, room)
        reserve = min(max(belt, joined, prompt + sequential), limit)
        return cls(limit, plan, conclusion, sequential, reserve, answer, thoughts)

    def first_plan(self, written: int) -> int:
        """Tokens of the first block's skeleton; 0 when `answer` leaves no room for one."""
        left = self.answer - written
        return min(self.plan, left // 3) if left >= LEAST_ROOM else 0

    def further_plan(self, base: int, written: int) -> int:
        """Tokens of a further skeleton after `base` tokens; 0 if there is no room for one."""
        room = min(self.limit - base, self.answer - written)
        return min(self.plan, room // 3) if room >= LEAST_ROOM else 0

    def branches(
        self,
        base: int,
        openings: Sequence[int],
        most: Sequence[int],
        written: int = 0,
        *,
        least: int = 1,
    ) -> list[int]:
        """Tokens of each branch, so that all of them and the conclusion fit after `base`.

        Args:
            base: tokens that all of them stand on.
            openings: tokens of each branch's opening.
            most: the upper bound of each branch, in tokens.
            written: tokens of the answer so far.
            least: tokens that each must get, unless `most` is less.

        Raises:
            ContextLengthError: less remains for each.
        """
        count, least = len(openings), min(least, *most)
        room = self.limit - base - self.conclusion - sum(openings)
        fits = room // count - 2  # the join writes a line break after each body
        left = self.answer - written
        kept = min(self.conclusion, left // 3)
        allowed = (left - kept) // count
        if allowed < least:
            raise ContextLengthError(
                f"{count} steps do not fit: {left} of max_tokens={self.answer} tokens are left "
                f"after the plan, {kept} of them for the conclusion; each step needs {least}. "
                "Allow more (max_tokens), or ask for fewer branches (max_branches)"
            )
        if fits < least:
            raise ContextLengthError(
                f"{count} steps do not fit: {self.limit - base} tokens are left after the plan, "
                f"{self.conclusion} of them for the conclusion; each step needs {least}. Ask for "
                "fewer branches (max_branches) or a shorter conclusion (max_conclusion_tokens)"
            )
        share = min(fits, allowed)
        return [min(tokens, share) for tokens in most]

    def parallel(
        self, base: int, openings: Sequence[int], branches: Sequence[int], most: int
    ) -> int:
        """Branches that may be decoded at the same time within the reserved slots."""
        lengths = (start + own for start, own in zip(openings, branches, strict=True))
        longest_first = sorted(lengths, reverse=True)
        fit = sum(held <= self.reserve - base for held in accumulate(longest_first))
        return max(min(most, fit), 1)


def no_gain(steps: int, longest: int) -> str | None:
    """Why writing the steps together does not pay; None if it may.

    Together they take a pass for the openings, one for each token of the longest body, and one for
    the join; one after the other, a pass for each token of all bodies. How long bodies get is not
    known before, so `longest`, what they may have at most, is taken: the answer is a bound.

    Args:
        steps: of the plan.
        longest: tokens that a body may have.
    """
    if steps * longest > longest + 2:
        return None
    return (
        f"declined: {steps} steps of at most {longest} tokens take no fewer forward passes "
        "together than one after the other"
    )
