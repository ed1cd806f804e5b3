"""Stage 3 over HTTP: one request behind the joined branches, broken off where a block opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_pos.engine.completion import FinishReason
from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import ParallelReasoningError
from langchain_pos.reasoning.conclusion import Conclusion
from langchain_pos.remote.dialects import Call
from langchain_pos.remote.sinks import ConclusionSink

if TYPE_CHECKING:
    from langchain_pos.remote.asking import Asker, TextTrunk


class RemoteConcluder:
    """Asks for the conclusions of one question.

    Args:
        asker: asks the server.
    """

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._settings = asker.settings
        self._progress = asker.progress
        self._seed = asker.seed

    async def conclude(
        self, trunk: TextTrunk, so_far: str = "", spent: int = 0, *, may_open: bool = False
    ) -> Conclusion:
        """Go on behind the joined branches; what is written is settled where a block opens.

        Args:
            trunk: everything before.
            so_far: what the conclusion has written already.
            spent: tokens of that.
            may_open: whether it may open a further block.
        """
        wanted = self._settings.max_conclusion_tokens
        if self._asker.budget is not None:
            wanted = min(self._asker.budget.conclusion, self._asker.room(trunk, wanted))
        if wanted - spent < 1:
            if so_far:
                return Conclusion(so_far, "length")
            full = (
                "the steps leave no room for the conclusion. Ask for fewer or shorter branches "
                "(max_branches, max_branch_tokens)"
            )
            return Conclusion("", "error", full)
        sink = ConclusionSink(
            self._progress.conclusion_text,
            stop=self._settings.stop,
            strip=not so_far,
            restartable=not self._progress.deltas,
            may_open=may_open,
        )
        call = Call(
            max_tokens=wanted - spent,
            temperature=self._settings.temperature,
            seed=derive_seed(self._seed, "conclusion", len(trunk.text)) >> 32,
            stop=self._settings.stop,
        )
        error: str | None = None
        reason: FinishReason | None = None
        try:
            await self._asker.write(sink, trunk, call)
        except ParallelReasoningError as failure:  # the branches are whole all the same
            error, reason = str(failure), "error"
        tokens = spent + sink.usage.output_tokens
        if sink.opened is not None:
            raw, text = sink.before_step()
            trunk.text += raw
            written, title = sink.opened
            gap = raw[len(raw.rstrip()) :]
            return Conclusion(text, title=title, opened=written, gap=gap, tokens=tokens)
        text = so_far + sink.close().rstrip()
        reason = reason or sink.finish_reason
        if not text and error is None:
            reason, error = "error", f"the conclusion ended ({reason}) without any text"
        return Conclusion(text, reason, error, tokens=tokens)

    async def conclude_on(self, trunk: TextTrunk, so_far: Conclusion) -> Conclusion:
        """Go on behind a step that opened no block after all: it was only text."""
        more = (so_far.gap if so_far.text else "") + so_far.opened
        trunk.text += so_far.opened
        self._progress.conclusion_text(more)
        return await self.conclude(trunk, so_far.text + more, so_far.tokens)
