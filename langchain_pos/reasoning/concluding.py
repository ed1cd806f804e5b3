"""Stage 3: the finished branches are joined after the trunk, and the model goes on.

What it writes may open a further block. Whether one comes of it is stage 1's matter; if none does,
the step was only text, and the conclusion goes on after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.reasoning.decoder import Passage
from langchain_pos.reasoning.spans import Ending

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import Decoder, Question, Trunk, Written
    from langchain_pos.reasoning.form import OpenedStep
    from langchain_pos.results.data import Block


@dataclass(frozen=True)
class Conclusion(Ending):
    """What stage 3 has written so far; the text is stripped at both ends.

    Attributes:
        opened: the step of a further block that it has just opened.
        written: what was written last, where it opened one.
        tokens: how many were written.
    """

    opened: OpenedStep | None = None
    written: Written | None = None
    tokens: int = 0


class Concluder:
    """Writes the conclusions of one question.

    Args:
        decoder: writes.
        question: what is asked, and its bounds.
        seed: the question's seed.
    """

    def __init__(self, decoder: Decoder, question: Question, seed: int) -> None:
        self._decoder = decoder
        self._settings = question.settings
        self._form = question.form
        self._options = question.options
        self._progress = question.progress
        self._seed = seed
        self._written = 0

    def join(self, trunk: Trunk, block: Block) -> None:
        """Join the branches of a block, those that were written last, after the trunk."""
        bodies = [branch.text for branch in block.branches]
        joined = self._form.join(block.plan.titles, bodies)
        self._decoder.join(trunk, joined, self._form.tail, bodies)

    async def conclude(self, trunk: Trunk, so_far: Conclusion, *, may_open: bool) -> Conclusion:
        """Write on after the trunk.

        Args:
            trunk: everything before. Where a step opens a block, it ends before that step.
            so_far: the conclusion up to here. If it ends with a step that opened no block after
                all, that step was only text.
            may_open: whether it may open a further block.
        """
        before = so_far.text
        carried = self._take_as_text(trunk, so_far)
        limit = self._decoder.budget.limit
        room = min(self._decoder.budget.conclusion - so_far.tokens, limit - trunk.count())
        if room < 1:
            if before or carried:
                self._progress.conclusion_text(carried.rstrip())
                return Conclusion(before + carried.rstrip(), "length")
            error = (
                f"no room is left for the conclusion: prompt and steps take {trunk.count()} of "
                f"{limit} tokens. Ask for fewer or shorter branches (max_branches, "
                "max_branch_tokens)"
            )
            return Conclusion("", "error", error)
        may_open = may_open and self._options.constraint is None
        held = HeldText(self._progress.conclusion_text, self._form.may_open if may_open else _never)
        held.push(carried)
        before += carried
        self._written += 1
        written = await self._decoder.write(
            trunk,
            Passage(
                max_tokens=room,
                seed=derive_seed(self._seed, "conclusion", self._written),
                stop=self._settings.stop,
                on_text=held.push,
                strip=not before,
                opened=self._form.opened if may_open else None,
                options=self._options,
            ),
        )
        tokens = so_far.tokens + written.usage.output_tokens
        if written.opened is not None:
            step = self._form.opened(written.raw) or written.opened
            trunk.keep(written, step.start)
            text = (before + written.text[: written.opened.start]).rstrip()
            return Conclusion(text, opened=step, written=written, tokens=tokens)
        held.flush()
        text = (before + written.text).rstrip()
        if written.failure is not None:  # the branches are whole all the same
            return Conclusion(text, "error", str(written.failure), tokens=tokens)
        if not text:
            error = f"the conclusion ended ({written.finish_reason}) without any text"
            return Conclusion("", "error", error, tokens=tokens)
        return Conclusion(text, written.finish_reason, tokens=tokens)

    def _take_as_text(self, trunk: Trunk, so_far: Conclusion) -> str:
        """Settle a step that opened no block after all; what has been held back of the text."""
        if so_far.written is None or so_far.opened is None:
            return ""
        raw, start = so_far.written.raw, so_far.opened.start
        trunk.keep(so_far.written, len(raw))
        return raw[len(raw[:start].rstrip()) if so_far.text else start :]


def _never(line: str) -> bool:
    """No line opens anything."""
    return False


class HeldText:
    """Passes text on, except what may yet be dropped.

    White space waits until something follows it, and a line that may turn out to open a block waits
    until it is over.

    Args:
        pass_on: takes what is certain.
        may_open: whether a line that is being written may open a block.
    """

    def __init__(self, pass_on: Callable[[str], None], may_open: Callable[[str], bool]) -> None:
        self._pass_on = pass_on
        self._may_open = may_open
        self._began = False
        self._held = ""

    def push(self, piece: str) -> None:
        """Take a piece."""
        whole = self._held + piece
        before, line_break, line = whole.rpartition("\n")
        at_line_start = bool(line_break) or not self._began
        waits = at_line_start and self._may_open(line)
        certain = (before if waits else whole).rstrip()
        self._held = whole[len(certain) :]
        if certain:
            self._began = True
            self._pass_on(certain)

    def flush(self) -> None:
        """All was only text."""
        self._may_open = _never
        self.push("")
