"""What a skeleton, a branch and a join look like as text: a `Form`.

The stages know none of its marks: they ask the form for a skeleton's grammar, have it read back
into a `Plan`, open and join branches with its texts, and ask it whether text that is being written
opens a further block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from langchain_pos.reasoning.settings import ReasoningSettings
    from langchain_pos.results.data import Plan, Step


@dataclass(frozen=True)
class OpenedStep:
    """A step that opens a block, found in text that is being written.

    Attributes:
        title: of the step.
        start: where it begins in the text.
        written: the step as it was written, from its mark on.
    """

    title: str
    start: int
    written: str


class Bounds(Protocol):
    """Keeps a skeleton within its bounds while it is written, whatever the model prefers."""

    def note(self, text: str, tokens: int) -> None:
        """Take note of the skeleton so far, and of its tokens."""

    def text_to_force(self, text: str, tokens: int) -> str | None:
        """What must be written now because a bound is reached; None where none is."""


class Form(ABC):
    """The text that is around titles and bodies.

    Attributes:
        name: as settings and results call it.
        end: closes a skeleton.
        stop: texts that end a branch, besides those that the settings name.
    """

    name: str
    end: str
    stop: tuple[str, ...]

    # ------------------------------------------------------------------------ stage 1

    @abstractmethod
    def opened_outline(self, title: str) -> str:
        """The skeleton of a block whose first step is there, up to where the next title begins."""

    @abstractmethod
    def grammar(self, settings: ReasoningSettings, *, opened: bool) -> str:
        """The language of a skeleton, or of what follows an `opened_outline`."""

    @abstractmethod
    def bounds(self, settings: ReasoningSettings, opened: str, max_tokens: int) -> Bounds:
        """Keeps a skeleton within its bounds while it is written."""

    @abstractmethod
    def close(self, text: str) -> str:
        """What is missing at the end of a skeleton that breaks off."""

    @abstractmethod
    def is_plan(self, text: str) -> bool:
        """Whether a skeleton that breaks off has steps enough to be closed."""

    @abstractmethod
    def has_steps(self, text: str) -> bool:
        """Whether a step begins in the text."""

    @abstractmethod
    def guess(self, question: str) -> Callable[[str, int], Sequence[tuple[str, str]]]:
        """Guesses titles from the records in a question; see `Outline.guess`."""

    @abstractmethod
    def read(self, text: str, *, max_branches: int, allow_decline: bool) -> Plan | None:
        """The plan that a skeleton is; None when the model declines to make one.

        Raises:
            PlanFormatError: it cannot be used; the message says what is wrong with it.
        """

    @abstractmethod
    def without_repeats(self, text: str) -> Plan | None:
        """The plan of a skeleton in which titles occur twice; None where less than that is left."""

    @abstractmethod
    def before_steps(self, text: str) -> int | None:
        """How much of a skeleton comes before its first step; None where its steps are not found.

        A plan may be read from a text that other marks were used in.
        """

    # ------------------------------------------------------------------------ stage 2

    @abstractmethod
    def opening(self, step: Step) -> str:
        """What a branch starts with: its title, after the step's own instruction if it has one."""

    @abstractmethod
    def outline_text(self, titles: Sequence[str]) -> str:
        """A plan as every branch sees it with `visibility="titles"`."""

    # ------------------------------------------------------------------------ stage 3

    @property
    @abstractmethod
    def tail(self) -> str:
        """What follows the last body in a join."""

    @abstractmethod
    def join(self, titles: Sequence[str], bodies: Sequence[str]) -> str:
        """Finished branches as one text, `tail` included."""

    @abstractmethod
    def opened(self, text: str) -> OpenedStep | None:
        """The first step in a text that opens a block."""

    @abstractmethod
    def may_open(self, line: str) -> bool:
        """Whether a line that is being written may yet become a step that opens a block."""
