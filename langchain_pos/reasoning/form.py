"""What a skeleton, a branch and a join look like as text: a `Form`.

The stages know none of its marks: they ask the form for a skeleton's grammar, have it read back
into a `Plan`, open and join branches with its texts, and ask it whether text that is being written
opens a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from langchain_pos.engine.tokenization.stopping import TextEnd
    from langchain_pos.reasoning.settings import ReasoningSettings
    from langchain_pos.results.data import Plan, Step


@dataclass(frozen=True)
class OpenedStep:
    """A step that opens a block, found in text that is being written.

    Attributes:
        title: of the step.
        start: where it begins in the text.
        marks: what the form knows of how it is written.
        goes_on: whether it is the next one of the list before.
        repeats: whether it goes on so at once, and the list has such a step already.
    """

    title: str
    start: int
    marks: Any = None
    goes_on: bool = False
    repeats: bool = False


class Bounds(Protocol):
    """Keeps a skeleton within its bounds while it is written, whatever the model prefers.

    Attributes:
        over: whether there is nothing more to be written, although the grammar would go on.
    """

    over: bool

    def note(self, text: str, tokens: int, likely: Callable[[], Sequence[float]] = tuple) -> None:
        """Take note of the skeleton so far.

        Args:
            text: the skeleton.
            tokens: how many it has.
            likely: gives the log-probabilities of those tokens that the model chose, if known.
        """

    def kept(self, text: str) -> tuple[str, slice]:
        """As much of a skeleton as counts, and which of its chosen tokens tell its pressure."""

    def text_to_force(self, text: str, tokens: int) -> str | None:
        """What must be written now because a bound is reached; None where none is."""


class Skeleton(ABC):
    """One skeleton in a form, before and after it is written.

    Attributes:
        begin: what is written already of it: the first step, where text has opened a block.
        end: the text that closes it; empty where the grammar alone says when it is complete.
        grammar: the language of what follows `begin`, in xgrammar's EBNF.
        so_far: steps of a list that goes on, which are written already, with their bodies left out.
    """

    begin: str
    end: str
    grammar: str
    so_far: str = ""

    @abstractmethod
    def bounds(self, max_tokens: int) -> Bounds:
        """Keeps it within its bounds while it is written."""

    @abstractmethod
    def close(self, text: str) -> str:
        """What is missing at the end of one that breaks off."""

    @abstractmethod
    def is_plan(self, text: str) -> bool:
        """Whether one that breaks off has steps enough to be closed."""

    @abstractmethod
    def has_steps(self, text: str) -> bool:
        """Whether a step begins in the text."""

    @abstractmethod
    def guess(self, text: str, most: int) -> Sequence[tuple[str, str]]:
        """What may come next, and is worth a guess: pairs of a title and of what closes it.

        The first title may be empty: then what follows is guessed, such as a next entry's mark.
        """

    @abstractmethod
    def read(self, text: str) -> Plan | None:
        """The plan that a text, `begin` included, is; None when the model declines to make one.

        Raises:
            PlanFormatError: it cannot be used; the message says what is wrong with it.
        """

    @abstractmethod
    def mend(self, text: str) -> Plan | None:
        """The plan of one that `read` refuses for its repeats; None where too little is left."""

    @abstractmethod
    def before_steps(self, text: str) -> int | None:
        """How much of a text comes before its first step; None where its steps are not found.

        A plan may be read from a text that other marks were used in.
        """


class Form(ABC):
    """The text that is around titles and bodies.

    Attributes:
        name: as settings and results call it.
        stop: texts that end a branch, besides those that the settings name.
        own_prompt: whether stage 1 has a prompt of its own; otherwise a block opens in the ordinary
            answer.
        needs_conclusion: whether an answer without a conclusion is none.
    """

    name: str
    stop: tuple[str, ...]
    own_prompt: bool
    needs_conclusion: bool

    @abstractmethod
    def skeleton(
        self, settings: ReasoningSettings, question: str, opened: OpenedStep | None
    ) -> Skeleton:
        """A skeleton to be written, or to be written on after its first step.

        Raises:
            PlanFormatError: the step goes on with a list that has as many steps as are allowed.
        """

    @abstractmethod
    def given(self, steps: Sequence[Step]) -> Plan:
        """The plan of steps that the caller gives.

        Raises:
            pydantic.ValidationError: they cannot be a plan.
        """

    @abstractmethod
    def opening(self, plan: Plan, index: int) -> str:
        """What a branch starts with, after the step's own instruction if it has one."""

    @abstractmethod
    def outline(self, plan: Plan) -> str:
        """A plan as every branch sees it with `visibility="titles"`."""

    @abstractmethod
    def strip(self, plan: Plan, index: int) -> bool | str:
        """What is left out at the ends of a branch's body; see `StoppedText`."""

    @abstractmethod
    def entry_end(self, plan: Plan) -> TextEnd | None:
        """What ends a branch besides `stop`; None where nothing does."""

    @abstractmethod
    def join(self, plan: Plan, bodies: Sequence[str]) -> str:
        """Finished branches as one text, `tail` included."""

    @abstractmethod
    def tail(self, plan: Plan) -> str:
        """What follows the last body in a join."""

    @abstractmethod
    def opened(self, text: str, after: Sequence[Plan] = (), before: str = "") -> OpenedStep | None:
        """The first step in a text that opens a block.

        Args:
            text: it may break off anywhere.
            after: the plans of the blocks that come before the text.
            before: what stands between those and the text, and opens nothing.
        """

    def alone(self, opened: OpenedStep) -> Plan | None:
        """A plan of this step only, if its branch may begin before the others are known.

        None by default, and where the step goes on with a list.
        """
        return None

    def entry_begins(self, plan: Plan) -> str:
        """Characters of which one begins any entry that would follow the plan's last one.

        As a grammar writes them between brackets. None by default: nothing follows the last entry.
        """
        return ""

    @abstractmethod
    def may_open(self, line: str, after: Sequence[Plan] = ()) -> bool:
        """Whether a line that is being written may yet become a step that opens a block.

        Args:
            line: as far as it is there.
            after: as in `opened`.
        """
