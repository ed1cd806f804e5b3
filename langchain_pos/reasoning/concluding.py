"""Stage 3: the finished branches are joined behind the trunk, and the model goes on.

What it writes may open a further block: a line `####title:......`. A heading or another use of
`####` opens nothing. Whether a block comes of it is stage 1's matter; if none does, the line was
only text and the conclusion goes on behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_pos.engine.decoding.drafts import PromptLookup
from langchain_pos.engine.sampling import SamplingParams, derive_seed
from langchain_pos.local.joining import reuse
from langchain_pos.local.trunk import Trunk
from langchain_pos.reasoning.conclusion import OPENED_STEP, Conclusion, Told
from langchain_pos.reasoning.prompts import join_text
from langchain_pos.results.data import BranchResult

if TYPE_CHECKING:
    from langchain_pos.engine.constraints import Constraint
    from langchain_pos.engine.decoding.sequence import DecodingSequence, Feed, Steps
    from langchain_pos.engine.engine import Engine
    from langchain_pos.reasoning.budget import Budget
    from langchain_pos.reasoning.progress import Progress
    from langchain_pos.reasoning.settings import ReasoningSettings


class Concluder:
    """Writes the conclusions of one request.

    Args:
        engine: decodes.
        settings: bounds and stop sequences.
        sampling: how tokens are chosen.
        seed: the request's seed.
        budget: what fits.
        progress: is told the text and counts the tokens.
        constraint: the language that a conclusion must belong to; then it opens no further block.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ReasoningSettings,
        sampling: SamplingParams,
        seed: int,
        budget: Budget,
        progress: Progress,
        constraint: Constraint | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._sampling = sampling
        self._seed = seed
        self._budget = budget
        self._progress = progress
        self._constraint = constraint

    def conclude(
        self,
        trunk: Trunk,
        branches: tuple[BranchResult, ...],
        grown: Sequence[DecodingSequence],
        block: int,
    ) -> Steps[Conclusion]:
        """Join the finished branches behind the trunk and decode on.

        Args:
            trunk: what the branches have grown on; it goes on behind them.
            branches: what they say.
            grown: with `join="reuse"` the branches as they were decoded, in the same order; their
                keys and values are used as they are. Otherwise nothing: what the branches say is
                fed behind the trunk, in one pass.
            block: number of this block, from 1.
        """
        joined = trunk.encode(join_text([(branch.title, branch.text) for branch in branches]))
        room = self._budget.limit - len(trunk.token_ids) - len(joined)
        if room < 1:  # texts may take more tokens than they were written with
            error = (
                f"the steps take {len(joined)} tokens together; {room + len(joined)} are left. "
                "Ask for fewer or shorter branches (max_branches, max_branch_tokens)"
            )
            return Conclusion("", "error", error)
        first: list[Feed] = []
        if grown:
            first = reuse(self._engine, trunk, branches, grown)
        else:
            trunk.settle(joined)
        may_open = block < self._settings.max_blocks and self._constraint is None
        budget = self._budget.conclusion
        return (yield from self._write(trunk, budget, may_open=may_open, first=first))

    def conclude_on(self, trunk: Trunk, so_far: Conclusion) -> Steps[Conclusion]:
        """Go on behind a step that opened no block after all: it was only text."""
        more = (so_far.gap if so_far.text else "") + so_far.opened
        trunk.settle(trunk.encode(so_far.opened))
        self._progress.conclusion_text(more)
        left = self._budget.conclusion - so_far.tokens
        return (yield from self._write(trunk, left, so_far.text + more))

    def _write(
        self,
        trunk: Trunk,
        budget: int,
        so_far: str = "",
        *,
        may_open: bool = False,
        first: Sequence[Feed] = (),
    ) -> Steps[Conclusion]:
        unfed, settled = trunk.unfed, len(trunk.token_ids)
        before = trunk.token_ids[: settled - len(unfed)]
        budget = min(budget, self._budget.limit - settled)
        if budget < 1:
            return Conclusion(so_far, "length")
        told = Told(self._progress.conclusion_text, may_open=may_open)
        sequence = self._engine.sequence(
            trunk.segment,
            unfed,
            max_new_tokens=budget,
            sampling=self._sampling,
            seed=derive_seed(self._seed, "conclusion", settled),
            stop=self._settings.stop,
            constraint=self._constraint,
            strip=not so_far,
            context_ids=before,
            on_text=told.push,
            lookup=PromptLookup(before) if self._settings.drafts else None,
        )
        step = None
        while sequence.finish_reason is None and step is None:
            *_, sampled = yield [*first, sequence.feed()]
            first = ()
            sequence.accept(sampled)
            if may_open and sequence.finish_reason is None:
                step = OPENED_STEP.search(sequence.text)
        written = len(sequence.token_ids)
        self._progress.output_tokens += written
        self._progress.drafts += sequence.drafts
        self._engine.truncate(trunk.segment, sequence.end_of_seen)
        if step is not None:
            raw = trunk.settle_before(sequence.token_ids, OPENED_STEP)
            self._engine.truncate(trunk.segment, trunk.end)
            text, gap = sequence.text[: step.start()].rstrip(), raw[len(raw.rstrip()) :]
            return Conclusion(text, title=step["title"], opened=step[0], gap=gap, tokens=written)
        told.flush()
        done = sequence.completion()
        text, reason, error = so_far + done.text.rstrip(), done.finish_reason, done.error
        if not text and error is None:
            reason, error = "error", f"the conclusion ended ({reason}) without any text"
        return Conclusion(text, reason, error, tokens=written)
