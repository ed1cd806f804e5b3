"""The first branch as the others' example.

In a list of the model's own, its first entry shows the others how long an entry is, and how it is
written. Its body is written beside the list's heads, before there is a plan that it belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import BranchTask, Written
    from langchain_pos.reasoning.question import Question
    from langchain_pos.results.data import Plan

EXAMPLE = 96
"""Tokens of a first entry that the others may see by default. A list's entries take some 24 to 90.
A longer one is finished beside the others: to wait for it would cost as much again."""
WAIT = 16
"""The same for each entry of the list: of a list of two or three, waiting would eat up what is won.
A head takes 5 to 8 (lists of a 0.5B and a 1.5B model), so the others wait for some ten passes an
entry at most."""


class Ahead(NamedTuple):
    """The first branch of a plan that is not there yet.

    Attributes:
        task: the branch.
        tokens: of it that are waited for.
    """

    task: BranchTask
    tokens: int


class First(NamedTuple):
    """What was written of the first branch before the others.

    Attributes:
        written: its body, perhaps unfinished.
        started: seconds from the request's start to when it was begun.
        ended: the same to where it ended, or was left.
    """

    written: Written
    started: float
    ended: float

    @property
    def text(self) -> str | None:
        """Its text, if it is finished."""
        return None if self.written.unfinished else self.written.text

    @property
    def tokens(self) -> int:
        """Tokens of its body."""
        return self.written.usage.output_tokens


def waited_for(question: Question, plan: Plan) -> int:
    """Tokens that the first branch of a plan may have to be the others' example."""
    chosen = question.settings.visibility == "first"
    return EXAMPLE if chosen else min(EXAMPLE, WAIT * len(plan.steps))


def is_example(first: First | None, question: Question, plan: Plan) -> bool:
    """Whether the other branches of a plan see what was written of the first one."""
    if first is None or not first.text or first.written.failure is not None:
        return False
    written, schema = first.written, question.schema
    if schema is not None and schema.read(written.text, written.finish_reason)[1] is not None:
        return False
    short = first.tokens <= waited_for(question, plan)
    whole = written.finish_reason == "stop" and not written.closed
    return (short and whole) or question.settings.visibility == "first"
