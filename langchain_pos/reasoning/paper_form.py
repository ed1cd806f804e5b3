"""The paper's form (Yu, arXiv 2503.20533, section 3.1), for models that are shown it in the prompt.

preamble
####title:......        stage 1: the skeleton; a body is only an ellipsis
####title2:......
####%%%%
                        stage 2: `####title:` stands open, its text follows
                        stage 3: the conclusion follows `####%%%%`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from langchain_pos.errors import PlanFormatError
from langchain_pos.reasoning.form import Form, OpenedStep, Skeleton
from langchain_pos.reasoning.plan_parser import PlanParser, declined
from langchain_pos.reasoning.skeleton_grammar import (
    PREAMBLE_CLOSE,
    STEP_CLOSE,
    closing,
    skeleton_grammar,
)
from langchain_pos.reasoning.title_drafts import next_titles
from langchain_pos.results.data import BODY_PLACEHOLDER, END_MARK, STEP_MARK, Plan, Step

if TYPE_CHECKING:
    from langchain_pos.reasoning.settings import ReasoningSettings

MOST_REPEATS = 3
"""Titles that stand twice in a skeleton before it is ended: it goes round in a circle."""
_OPENED_STEP = re.compile(
    r"^[ \t]*####[ \t]*(?P<title>[^\n:：]+?)[ \t]*[:：][ \t]*(?:\.{3}|…)[.…]*", re.MULTILINE
)
"""A step whose body is an ellipsis. A heading, or another use of `####`, opens nothing."""


class PaperSkeleton(Skeleton):
    """A skeleton of `####title:......` lines; see `Skeleton`.

    Args:
        settings: the bounds.
        question: where the titles of the steps may stand.
        first: title of a first step that is there already; None where there is none.
    """

    end = END_MARK

    def __init__(self, settings: ReasoningSettings, question: str, first: str | None) -> None:
        self._settings = settings
        self._question = question
        self._continued = first is not None
        self.begin = "" if first is None else f"{STEP_MARK}{first}{STEP_CLOSE}"
        self.grammar = skeleton_grammar(
            max_branches=settings.max_branches - self._continued,
            min_branches=1 if self._continued else 2,
            allow_decline=settings.allow_decline or self._continued,
            continued=self._continued,
        )

    def bounds(self, max_tokens: int) -> PaperBounds:
        """See `Skeleton`."""
        return PaperBounds(self._settings, self.begin, max_tokens)

    def close(self, text: str) -> str:
        """See `Skeleton`."""
        return closing(text)

    def is_plan(self, text: str) -> bool:
        """See `Skeleton`."""
        return text.count(STEP_MARK) > 2

    def has_steps(self, text: str) -> bool:
        """See `Skeleton`."""
        return STEP_MARK in text

    def guess(self, text: str, most: int) -> list[tuple[str, str]]:
        """See `Skeleton`."""
        if not text.endswith(STEP_MARK):
            return []
        known = [step.partition(":")[0] for step in text.split(STEP_MARK)[1:-1]]
        return [(title, STEP_CLOSE) for title in next_titles(self._question, known, most)]

    def read(self, text: str) -> Plan | None:
        """See `Skeleton`."""
        if self.has_steps(text) and not text.rstrip().endswith(END_MARK):
            raise PlanFormatError("the skeleton was not closed within its budget", text=text)
        plan = None
        if not declined(text):
            plan = PlanParser(max_branches=self._settings.max_branches).parse(text)
        if plan is not None and len(plan.steps) > 1:
            return plan
        if not (self._settings.allow_decline or self._continued):
            raise PlanFormatError("the outline has fewer than two steps", text=text)
        return None

    def mend(self, text: str) -> Plan | None:
        """See `Skeleton`. One that is not closed cannot be mended."""
        preamble, *steps = text.split(STEP_MARK)
        if not text.rstrip().endswith(END_MARK):
            return None
        titles: dict[str, str] = {}
        for step in steps[:-1]:
            title = " ".join(step.rpartition(":")[0].split())
            titles.setdefault(title.casefold(), title)
        if len(titles) < 2:
            return None
        return Plan.of(list(titles.values()), preamble.strip())

    def before_steps(self, text: str) -> int | None:
        """See `Skeleton`."""
        head, mark, _ = text.partition(STEP_MARK)
        return len(head) if mark and (not head or head.endswith("\n")) else None


class PaperForm(Form):
    """`####title:......`, closed by `####%%%%`."""

    name = "paper"
    stop = (STEP_MARK,)
    own_prompt = True
    needs_conclusion = True

    def skeleton(
        self, settings: ReasoningSettings, question: str, opened: OpenedStep | None
    ) -> PaperSkeleton:
        """See `Form`."""
        return PaperSkeleton(settings, question, None if opened is None else opened.title)

    def given(self, steps: Sequence[Step]) -> Plan:
        """See `Form`."""
        return Plan(steps=tuple(steps))

    def opening(self, plan: Plan, index: int) -> str:
        """`####title:`, after the step's own instruction if it has one.

        The instruction is a line of the branch alone: neither its siblings nor the conclusion see
        it.
        """
        step = plan.steps[index]
        lead = "" if step.prompt is None else f"{step.prompt.strip()}\n"
        return f"{lead}{STEP_MARK}{step.title}:"

    def outline(self, plan: Plan) -> str:
        """See `Form`."""
        lines = [f"{STEP_MARK}{title}:{BODY_PLACEHOLDER}\n" for title in plan.titles]
        return "".join([*lines, END_MARK, "\n"])

    def strip(self, plan: Plan, index: int) -> bool:
        """See `Form`: all white space."""
        return True

    def entry_end(self, plan: Plan) -> None:
        """See `Form`: the stop text is all."""

    def join(self, plan: Plan, bodies: Sequence[str]) -> str:
        """`####t1: body1`, `####t2: body2` and `####%%%%`, each on a line that is ended."""
        pairs = zip(plan.titles, bodies, strict=True)
        lines = "\n".join(f"{STEP_MARK}{title}: {body}" for title, body in pairs)
        return lines + self.tail(plan)

    def tail(self, plan: Plan) -> str:
        """See `Form`."""
        return f"\n{END_MARK}\n"

    def opened(self, text: str, after: Sequence[Plan] = (), before: str = "") -> OpenedStep | None:
        """See `Form`."""
        step = _OPENED_STEP.search(text)
        return None if step is None else OpenedStep(step["title"], step.start())

    def may_open(self, line: str, after: Sequence[Plan] = ()) -> bool:
        """See `Form`."""
        return STEP_MARK.startswith(line.strip()[: len(STEP_MARK)])


class PaperBounds:
    """Closes what has reached its bound: a preamble, a title, the skeleton.

    Args:
        settings: the bounds on preamble and titles.
        opened: the skeleton's beginning that is written already.
        max_tokens: the bound on the skeleton.
    """

    def __init__(self, settings: ReasoningSettings, opened: str, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._max_preamble = min(settings.max_preamble_tokens, max_tokens // 6)
        self._max_title = min(settings.max_title_tokens, max(max_tokens // 6, 1))
        self._marks = opened.count(STEP_MARK)
        self._tokens_at_mark = 0
        self.over = False  # the terminator says so, except where it repeats itself

    def note(self, text: str, tokens: int, likely: Callable[[], Sequence[float]] = tuple) -> None:
        """Take note of how many steps there are, and where the last of them began."""
        seen = text.count(STEP_MARK)
        if seen != self._marks:
            self._marks, self._tokens_at_mark = seen, tokens
            steps = text.split(STEP_MARK)[1:-1]
            titles = [step.partition(":")[0].strip().casefold() for step in steps]
            self.over = len(titles) - len(set(titles)) >= MOST_REPEATS

    def kept(self, text: str) -> tuple[str, slice]:
        """See `Bounds`."""
        return text, slice(None)

    def text_to_force(self, text: str, tokens: int) -> str | None:
        """The text that closes what is too long.

        The grammar may not allow it yet; then the next token's turn comes.
        """
        since = tokens - self._tokens_at_mark
        if self.over or (tokens >= self._max_tokens and self._marks > 2):
            return closing(text)
        if self._marks == 0:
            if since < self._max_preamble:
                return None
            return PREAMBLE_CLOSE[1:] if text.endswith("\n") else PREAMBLE_CLOSE
        return ":" if since >= self._max_title else None


PAPER = PaperForm()
