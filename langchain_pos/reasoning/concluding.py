"""Stage 3: the finished branches are joined after the trunk, and the model goes on.

What it writes may open a further block. Whether one comes of it is stage 1's matter; if none does,
the step was only text, and the conclusion goes on after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.reasoning.decoder import Passage
from langchain_pos.reasoning.spans import Ending
from langchain_pos.reasoning.stage import StageWriter

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import Trunk, Written
    from langchain_pos.reasoning.form import OpenedStep
    from langchain_pos.results.data import Block


@dataclass(frozen=True)
class Conclusion(Ending):
    """What stage 3 has written so far; the text is stripped at both ends.

    Attributes:
        opened: the step of a further block that it has just opened.
        space: the white space between the text and that step.
        written: what was written last, where it opened one or is a sequential answer.
        tokens: how many were written.
    """

    opened: OpenedStep | None = None
    space: str = ""
    written: Written | None = None
    tokens: int = 0


class Concluder(StageWriter):
    """Writes the conclusions of one question."""

    def join(self, trunk: Trunk, block: Block) -> None:
        """Join the branches of a block, those that were written last, after the trunk."""
        bodies = [branch.text for branch in block.branches]
        joined = self._form.join(block.plan, bodies)
        self._decoder.join(trunk, joined, self._form.tail(block.plan), bodies)

    async def conclude(
        self,
        trunk: Trunk,
        so_far: Conclusion,
        *,
        blocks: Sequence[Block],
        may_open: bool,
        list_is_over: bool = False,
        goes_on: bool = True,
    ) -> Conclusion:
        """Write on after the trunk.

        Args:
            trunk: everything before. Where a step opens a block, it ends before that step.
            so_far: the conclusion up to here. If it ends with a step that opened no block after
                all, that step was only text.
            blocks: those before; with none, this is how the answer begins.
            may_open: whether it may open a further block.
            list_is_over: it may not begin with a further entry of the last block's list.
            goes_on: that list may go on at all; not after another one that opened no block.
        """
        budget = self._decoder.budget
        block, after = len(blocks), [before.plan for before in blocks]
        before = so_far.text
        carried = self._take_as_text(trunk, so_far)
        most = budget.conclusion if block else budget.sequential
        limit = budget.limit
        left = budget.answer - self._progress.output_tokens
        room = min(most - so_far.tokens, limit - trunk.count(), left)
        if room < 1:
            if before or carried:
                self._progress.conclusion_text(carried.rstrip())
                return Conclusion(before + carried.rstrip(), "length")
            used = f"prompt and steps take {trunk.count()} of {limit} tokens"
            if left < 1:
                used = f"plan and branches took all of max_tokens={budget.answer}"
            error = (
                f"no room is left for the conclusion: {used}. Ask for fewer or shorter branches "
                "(max_branches, max_branch_tokens)"
            )
            return Conclusion("", "error", error)
        may_open = may_open and self._question.options.constraint is None
        listed = after if goes_on else []
        held = HeldText(self._progress.conclusion_text)
        held.push(carried)
        before += carried
        opens = partial(self._form.opened, after=listed, before=before)
        if may_open:
            held.wait_for(opens, partial(self._form.may_open, after=listed))
        seed = (
            derive_seed(self._seed, "conclusion", block) if block else _sequential_seed(self._seed)
        )
        written = await self._decoder.write(
            trunk,
            Passage(
                max_tokens=room,
                seed=seed,
                first_token=so_far.tokens,
                stop=self._settings.stop,
                on_text=held.push,
                strip=not before,
                opened=opens if may_open else None,
                options=self._question.options,
                new_line=bool(block) and not before and not self._form.needs_conclusion,
                needed=self._question.asks_for_conclusion,
                not_first=self._form.entry_begins(after[-1]) if list_is_over else "",
            ),
        )
        tokens = so_far.tokens + written.usage.output_tokens
        if written.opened is not None:
            step = opens(written.raw[written.own :]) or written.opened
            trunk.keep(written, written.own + step.start)
            whole = before + written.text[: written.opened.start]
            text = whole.rstrip()
            space = whole[len(text) :] if text else ""
            return Conclusion(text, opened=step, space=space, written=written, tokens=tokens)
        held.flush()
        text = (before + written.text).rstrip()
        if written.failure is not None:  # the branches are whole all the same
            return Conclusion(text, "error", str(written.failure), tokens=tokens)
        if not text and (self._form.needs_conclusion or not block):
            error = f"the conclusion ended ({written.finish_reason}) without any text"
            return Conclusion("", "error", error, tokens=tokens)
        return Conclusion(text, written.finish_reason, tokens=tokens)

    def drop(self, trunk: Trunk, so_far: Conclusion) -> Conclusion:
        """Drop a step that the last block has already; the text before it was empty."""
        if so_far.written is not None:
            trunk.keep(so_far.written, so_far.written.own)
        return Conclusion("", tokens=so_far.tokens)

    async def answer(self, trunk: Trunk) -> Conclusion:
        """Write a sequential answer, all of it.

        Raises:
            ParallelReasoningError: nothing can be written.
        """
        budget = self._decoder.budget
        left = min(budget.limit - trunk.count(), budget.answer - self._progress.output_tokens)
        prefilled = self._question.options.prefilled
        written = await self._decoder.write(
            trunk,
            Passage(
                max_tokens=max(min(budget.sequential, left), 1),
                seed=_sequential_seed(self._seed),
                stop=self._settings.stop,
                on_text=self._progress.conclusion_text,
                strip=not prefilled,  # or the words before and after would be one
                options=self._question.options,
            ),
        )
        if written.failure is not None:
            raise written.failure
        ended, error = written.finish_reason, None
        if not written.text and not prefilled:
            ended, error = "error", f"the model ended ({ended}) without any text"
        return Conclusion(written.text, ended, error, written=written)

    def _take_as_text(self, trunk: Trunk, so_far: Conclusion) -> str:
        """Settle a step that opened no block after all; what has been held back of the text."""
        if so_far.written is None or so_far.opened is None:
            return ""
        raw = so_far.written.raw
        trunk.keep(so_far.written, len(raw))
        return so_far.space + raw[so_far.written.own + so_far.opened.start :]


def _sequential_seed(seed: int) -> int:
    """The seed of an answer's beginning, which is that of a sequential answer."""
    return derive_seed(seed, "sequential")


class HeldText:
    """Passes text on, except what may yet be dropped.

    White space waits until something follows it. A line that may turn out to open a block waits
    until it is over, and a step that has opened one is never passed on.

    Args:
        pass_on: takes what is certain.
    """

    def __init__(self, pass_on: Callable[[str], None]) -> None:
        self._pass_on = pass_on
        self._opens: Callable[[str], OpenedStep | None] | None = None
        self._may_open: Callable[[str], bool] = bool
        self._text = ""
        self._passed = 0
        self._begin = 0

    def wait_for(
        self, opens: Callable[[str], OpenedStep | None], may_open: Callable[[str], bool]
    ) -> None:
        """Hold back what opens a block from here on; see `Form`. Without it nothing may."""
        self._opens, self._may_open = opens, may_open
        self._begin = len(self._text)

    def push(self, piece: str) -> None:
        """Take a piece."""
        self._text += piece
        certain = len(self._text)
        if self._opens is not None:
            line = max(self._text.rfind("\n") + 1, self._begin)
            if self._may_open(self._text[line:]):
                certain = line
            opened = self._opens(self._text[self._begin :])
            if opened is not None:
                certain = min(certain, self._begin + opened.start)
        certain = len(self._text[:certain].rstrip())
        if certain > self._passed:
            self._pass_on(self._text[self._passed : certain])
            self._passed = certain

    def flush(self) -> None:
        """All was only text."""
        self._opens = None
        self.push("")
