"""Stage 3: the finished branches are joined behind the trunk, and the model goes on.

What it writes may open a further block with `####`. Whether one comes of it is stage 1's matter;
if none does, the `####` was only text and the conclusion goes on behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_pos.engine.completion import FinishReason
from langchain_pos.engine.decoding import decode
from langchain_pos.engine.sampling import SamplingParams, derive_seed
from langchain_pos.prompts import join_text
from langchain_pos.schema import STEP_MARK, BranchResult
from langchain_pos.trunk import Trunk

if TYPE_CHECKING:
    from langchain_pos.budget import Budget
    from langchain_pos.engine.decoding import Steps
    from langchain_pos.engine.engine import Engine
    from langchain_pos.progress import Progress
    from langchain_pos.settings import ReasoningSettings


@dataclass(frozen=True)
class Conclusion:
    """What stage 3 has written so far.

    Attributes:
        text: stripped at both ends.
        gap: the white space that followed it.
        tokens: how many it took.
        opens_block: whether a `####` follows.
    """

    text: str
    finish_reason: FinishReason
    error: str | None = None
    gap: str = ""
    tokens: int = 0
    opens_block: bool = False


class Concluder:
    """Writes the conclusions of one request.

    Args:
        engine: decodes.
        settings: bounds and stop sequences.
        sampling: how tokens are chosen.
        seed: the request's seed.
        budget: what fits.
        progress: is told the text and counts the tokens.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ReasoningSettings,
        sampling: SamplingParams,
        seed: int,
        budget: Budget,
        progress: Progress,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._sampling = sampling
        self._seed = seed
        self._budget = budget
        self._progress = progress

    def conclude(
        self, trunk: Trunk, branches: tuple[BranchResult, ...], block: int
    ) -> Steps[Conclusion]:
        """Join the finished branches behind the trunk, in one pass, and decode on."""
        joined = trunk.encode(join_text([(branch.title, branch.text) for branch in branches]))
        room = self._budget.limit - len(trunk.token_ids) - len(joined)
        if room < 1:  # texts may take more tokens than they were written with
            error = (
                f"the steps take {len(joined)} tokens together; {room + len(joined)} are left. "
                "Ask for fewer or shorter branches (max_branches, max_branch_tokens)"
            )
            return Conclusion("", "error", error)
        trunk.settle(joined)
        marks = (STEP_MARK,) if block < self._settings.max_blocks else ()
        return (yield from self._write(trunk, marks, self._budget.conclusion))

    def conclude_on(self, trunk: Trunk, so_far: Conclusion) -> Steps[Conclusion]:
        """Go on behind a `####` that opened no block after all: it was only text."""
        mark = (so_far.gap if so_far.text else "") + STEP_MARK
        trunk.settle(trunk.encode(STEP_MARK))
        self._progress.conclusion_text(mark)
        left = self._budget.conclusion - so_far.tokens
        return (yield from self._write(trunk, (), left, so_far.text + mark))

    def _write(
        self, trunk: Trunk, marks: tuple[str, ...], budget: int, so_far: str = ""
    ) -> Steps[Conclusion]:
        unfed = trunk.unfed
        settled = len(trunk.token_ids)
        budget = min(budget, self._budget.limit - settled)
        if budget < 1:
            return Conclusion(so_far, "length")
        tail = _Tail(self._progress.conclusion_text)
        sequence = self._engine.sequence(
            trunk.segment,
            unfed,
            max_new_tokens=budget,
            sampling=self._sampling,
            seed=derive_seed(self._seed, "conclusion", settled),
            stop=(*marks, *self._settings.stop),
            strip=not so_far,
            context_ids=trunk.token_ids[: settled - len(unfed)],
            on_text=tail.push,
        )
        yield from decode([sequence])
        done = sequence.completion()
        self._progress.output_tokens += len(done.token_ids)
        opens_block = done.stop in marks
        gap = ""
        if opens_block:
            written = trunk.settle_before(done.token_ids, STEP_MARK)
            gap = written[len(written.rstrip()) :]
            self._engine.truncate(trunk.segment, len(trunk.token_ids))
        text, reason, error = so_far + done.text.rstrip(), done.finish_reason, done.error
        if not text and not opens_block and error is None:
            reason, error = "error", f"the conclusion ended ({reason}) without any text"
        return Conclusion(text, reason, error, gap, len(done.token_ids), opens_block)


class _Tail:
    """Passes text on; white space waits until something follows it."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._space = ""

    def push(self, piece: str) -> None:
        """Take a piece."""
        whole = self._space + piece
        certain = whole.rstrip()
        self._space = whole[len(certain) :]
        if certain:
            self._tell(certain)
