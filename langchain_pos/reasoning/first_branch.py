"""The first branch as the others' example.

In a list of the model's own, its first entry shows the others how long an entry is, and how it is
written. Its body is written beside the list's heads, before there is a plan that it belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import BranchTask, Written
    from langchain_pos.reasoning.question import Question

EXAMPLE = 96
"""Tokens of a first entry that the others may see by default. A list's entries take some 24 to 90.
A longer one is finished beside the others: to wait for it would cost as much again."""


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


def is_example(first: First | None, question: Question) -> bool:
    """Whether the other branches see what was written of the first one."""
    if first is None or not first.text or first.written.failure is not None:
        return False
    written, schema = first.written, question.schema
    if schema is not None and schema.read(written.text, written.finish_reason)[1] is not None:
        return False
    short = written.finish_reason == "stop" and not written.closed and first.tokens <= EXAMPLE
    return short or question.settings.visibility == "first"
