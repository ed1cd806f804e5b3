"""What the stages require of a decoder: our own engine (`local/`), or a server (`remote/`).

The stages are coroutines over a `Decoder`. Over our engine, the engine's scheduler steps them, and
an `await` is a place where forward passes happen. Over a server, asyncio does, and an `await` is an
HTTP request. The stages cannot tell the difference.

    Decoding    a model that answers questions; makes a decoder for each of them
    Decoder     has text written for one question, each time after a `Trunk`
    Trunk       the prompt, and what of the answer is settled
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from langchain_pos.engine.completion import FinishReason, TokenUsage
from langchain_pos.reasoning.progress import Footprint
from langchain_pos.reasoning.question import NO_OPTIONS, AnswerOptions

if TYPE_CHECKING:
    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.engine.tokenization.stopping import TextEnd
    from langchain_pos.errors import ParallelReasoningError
    from langchain_pos.reasoning.branch_schema import BranchSchema
    from langchain_pos.reasoning.budget import Budget
    from langchain_pos.reasoning.form import OpenedStep, Skeleton
    from langchain_pos.reasoning.prompts import Messages
    from langchain_pos.reasoning.question import Question
    from langchain_pos.results.result import ReasoningResult


@dataclass(frozen=True)
class Outline:
    """A skeleton to be written.

    Attributes:
        skeleton: its beginning, its grammar and its bounds.
        max_tokens: budget of what follows its beginning.
        temperature: of its tokens.
        seed: of its tokens.
        on_text: called with every piece.
        list_began: of a list that goes on, a copy of the trunk from before it began. The skeleton
            is written there, after the steps so far (`Skeleton.so_far`).
        first: the first step's branch, to be written beside the skeleton.
        most: the tokens of that branch which are waited for in any case.
        wait: the same, given the skeleton; 0 where that has come to nothing.
        on_first: called with the branch when it has ended, or is left unfinished.
    """

    skeleton: Skeleton
    max_tokens: int
    temperature: float
    seed: int
    on_text: Callable[[str], None]
    list_began: Trunk | None = None
    first: BranchTask | None = None
    most: int = 0
    wait: Callable[[Written], int] = lambda skeleton: 0
    on_first: Callable[[Written], None] = lambda branch: None


@dataclass(frozen=True)
class BranchTask:
    """A branch to be written.

    Attributes:
        opening: its first text, after what all branches see.
        max_tokens: budget of its body.
        temperature: of its tokens.
        seed: of its tokens.
        stop: texts that end it.
        schema: what it must be an object of; None for free text.
        strip: what is left out at its ends; see `StoppedText`.
        end: a further rule by which it ends.
        on_text: called with every piece of its body.
        goes_on: it is the one that was left unfinished beside the skeleton.
    """

    opening: str
    max_tokens: int
    temperature: float
    seed: int
    stop: tuple[str, ...]
    schema: BranchSchema | None
    strip: bool | str
    end: TextEnd | None
    on_text: Callable[[str], None]
    goes_on: bool = False


@dataclass(frozen=True)
class Passage:
    """Ordinary text to be written: a conclusion, or a sequential answer.

    Attributes:
        max_tokens: its budget.
        seed: of its tokens.
        stop: texts that end it.
        on_text: called with every piece, except what may yet be dropped.
        strip: leave out white space at its beginning; at its end it is left out in any case.
        opened: given the text so far, the step in it that opens a block: there it is broken off.
        first_token: its first token's place in the text that it goes on with.
        options: constraint and log-probabilities of it.
        new_line: it begins with a line end, or there is none; where the decoder can see to that.
        needed: with `new_line`, there must be such a line.
        not_first: characters that do not begin that line, as a grammar writes them in brackets.
    """

    max_tokens: int
    seed: int
    stop: tuple[str, ...]
    on_text: Callable[[str], None]
    strip: bool = True
    opened: Callable[[str], OpenedStep | None] | None = None
    first_token: int = 0
    options: AnswerOptions = NO_OPTIONS
    new_line: bool = False
    needed: bool = False
    not_first: str = ""


@dataclass(frozen=True)
class Written:
    """What a decoder has written.

    Attributes:
        text: cut before the stop text that ended it; stripped if the task says so.
        raw: the same as the model wrote it, with what was stripped or cut where the decoder knows.
        finish_reason: how it ended.
        usage: tokens read for it and tokens written.
        passes: forward passes that it took part in; 0 if unknown.
        token_ids: of `raw`, where the decoder knows them.
        opened: the step that it was broken off at.
        failure: what went wrong, as an error to be raised; `text` is what was there by then.
        pressure: of a skeleton; see `Plan`.
        closed: whether JSON was closed for the model because its budget was about to end.
        own: where `raw` leaves what was settled before and is only written again.
        unfinished: it is no end: its decoder can go on with it.
    """

    text: str
    raw: str
    finish_reason: FinishReason
    usage: TokenUsage = field(default_factory=TokenUsage)
    passes: int = 0
    token_ids: tuple[int, ...] = ()
    opened: OpenedStep | None = None
    failure: ParallelReasoningError | None = None
    pressure: float | None = None
    closed: bool = False
    own: int = 0
    unfinished: bool = False
    where: Any = field(default=None, repr=False)
    """Where the trunk stood when it was written; the decoder's own business."""


class Trunk(Protocol):
    """The text that all stages stand on: the prompt, and what of the answer is settled.

    Attributes:
        thinks: whether its prompt leaves a thought open; None where the model may open one itself.
    """

    thinks: bool | None

    def count(self, text: str = "") -> int:
        """Tokens of the trunk with a text after it; 0 where tokens cannot be counted."""

    def copy(self) -> Trunk:
        """The text as it stands now, whatever is settled later."""

    def settle(self, text: str) -> None:
        """Append text."""

    def keep(self, written: Written, length: int) -> None:
        """Settle the first `length` characters of `written.raw`, and drop the rest of it.

        `written` is what was written last after this trunk. It may be kept again with another
        length, in place of the first one, as long as nothing else has been settled.
        """


class Decoder(Footprint, Protocol):
    """Has text written for one question, and knows what that takes.

    Attributes:
        budget: what fits; set by the reasoner before anything is written.
    """

    budget: Budget

    @property
    def may_think(self) -> bool:
        """Whether the model may think before it answers; see `Trunk.thinks`."""

    @property
    def limit(self) -> int | None:
        """Positions that a prompt and its answer may take; None where that is not known (yet)."""

    @property
    def model_name(self) -> str:
        """What the model is called, where only the server knows; else empty."""

    def too_long(self, prompt: int, room: int) -> ParallelReasoningError:
        """The error for a prompt of so many tokens that leaves less than `room`."""

    def prompt_tokens(self, messages: Messages) -> int:
        """Tokens of a prompt; 0 where they cannot be counted.

        Raises:
            InvalidRequestError: the chat template refuses the messages.
        """

    def tokens(self, trunk: Trunk, text: str, *, after: str = "") -> int:
        """Tokens of a text after the trunk and another text; 0 where they cannot be counted."""

    async def start(self, pending: Pending[ReasoningResult]) -> None:
        """The question leaves the queue. After this, `limit` is known, if it can be."""

    def open(self, messages: Messages) -> Trunk:
        """A prompt, with nothing of the answer yet. What was written before is dropped."""

    async def write_outline(self, trunk: Trunk, outline: Outline) -> Written:
        """Write a skeleton after the trunk and its beginning; `text` begins after that.

        Where the first step's branch is written beside it, that is waited for as well: until it
        has ended, or has the tokens that it is given.

        Raises:
            PlanFormatError: it ended before there was a plan.
            ParallelReasoningError: nothing more can be written.
        """

    async def write_branches(
        self,
        trunk: Trunk,
        seen: str,
        tasks: Sequence[BranchTask],
        *,
        parallel: int,
        on_start: Callable[[int], None],
        on_end: Callable[[int, Written], None],
    ) -> None:
        """Write branches side by side; none sees another.

        What goes wrong with one of them is its `failure`, and does not concern the others.

        Args:
            trunk: what all of them stand on; left as it is.
            seen: text after the trunk that all of them see, and that is forgotten afterwards.
            tasks: the branches.
            parallel: how many are written at the same time, at most.
            on_start: called with a branch's index before it is begun.
            on_end: called with its index and what was written, when it has ended.
        """

    def join(self, trunk: Trunk, joined: str, tail: str, bodies: Sequence[str]) -> None:
        """Let the trunk go on after finished branches, those that were written last.

        Args:
            trunk: what the branches stand on.
            joined: all of them as one text, `tail` included.
            tail: the end of `joined`, after the last branch's body.
            bodies: of the branches, in order.
        """

    async def write(self, trunk: Trunk, passage: Passage) -> Written:
        """Write ordinary text after the trunk. An error is its `failure`."""


class Decoding(Protocol):
    """A model that answers questions."""

    @property
    def model_name(self) -> str:
        """What results call it."""

    def decoder(self, question: Question) -> Decoder:
        """A decoder for one question; whatever can be refused before any work is refused here."""

    def submit(
        self,
        reason: Callable[[Pending[ReasoningResult]], Coroutine[Any, Any, ReasoningResult]],
        *,
        budget: Budget | None,
        caller: Hashable | None,
    ) -> Pending[ReasoningResult]:
        """Queue a question; those of one caller do not hold up another caller's."""
