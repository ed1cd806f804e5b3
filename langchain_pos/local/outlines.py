"""A skeleton while our own engine writes it: the grammar forces its form, its bounds its length."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.cpu.row_cost import DRAFT_ROWS
from langchain_pos.engine.decoding.drafts import NO_DRAFT, Draft, PromptLookup
from langchain_pos.engine.sampling import Logprobs, SamplingParams
from langchain_pos.engine.tokenization.text import encode_continuation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_pos.engine.decoding.sequence import DecodingSequence
    from langchain_pos.engine.engine import Engine
    from langchain_pos.local.trunk import LocalTrunk
    from langchain_pos.reasoning.decoder import Outline, Written


class OutlineInProgress:
    """A skeleton that is being written.

    Args:
        engine: the model.
        outline: to be written.
    """

    def __init__(self, engine: Engine, outline: Outline) -> None:
        self._engine = engine
        self._outline = outline
        self._skeleton = outline.skeleton
        self._bounds = outline.skeleton.bounds(outline.max_tokens)
        self._logprobs = Logprobs()

    def sequence(
        self, trunk: LocalTrunk, unfed: Sequence[int], sampling: SamplingParams, *, drafts: bool
    ) -> DecodingSequence:
        """What decodes it.

        It is not kept here: it refers to this object, and a ring of references would keep the
        model's weights until the garbage collector runs.

        Args:
            trunk: what it stands on; its tokens go into the trunk's segment.
            unfed: the trunk's tokens that the model has not read, and those of its own beginning.
            sampling: parameters; the outline has its own temperature.
            drafts: whether to guess tokens ahead.
        """
        outline = self._outline
        return self._engine.sequence(
            trunk.segment,
            unfed,
            max_new_tokens=2 * outline.max_tokens,  # a safeguard: the bounds end it before
            sampling=replace(sampling, temperature=outline.temperature),
            seed=outline.seed,
            constraint=Constraint("ebnf", outline.skeleton.grammar),
            context_ids=trunk.fed,
            on_text=outline.on_text,
            lookup=PromptLookup(trunk.fed) if drafts else None,
            guess=self._guess if drafts else None,
            on_token=self._keep_within_bounds,
            logprobs=self._logprobs,
        )

    def whole(self, written: Written) -> Written:
        """The same, as far as it counts, and how much went against the model."""
        text, judged = self._bounds.kept(self._skeleton.begin + written.text)
        chosen = self._logprobs.sampled(written.token_ids)[judged]
        against = -sum(token.allowed for token in chosen)
        pressure = max(0.0, against) / len(chosen) if chosen else None
        return replace(written, text=text.removeprefix(self._skeleton.begin), pressure=pressure)

    def _text(self, sequence: DecodingSequence) -> str:
        return self._skeleton.begin + sequence.text

    def _keep_within_bounds(self, sequence: DecodingSequence) -> None:
        def likely() -> list[float]:
            return [token.logprob for token in self._logprobs.sampled(sequence.token_ids)]

        bounds = self._bounds
        bounds.note(self._text(sequence), len(sequence.token_ids), likely)
        forced = bounds.text_to_force(self._text(sequence), len(sequence.token_ids))
        if forced and sequence.force(forced):
            bounds.note(self._text(sequence), len(sequence.token_ids), likely)
        if bounds.over and not forced and sequence.finish_reason is None:
            sequence.finish("stop")

    def _guess(self, sequence: DecodingSequence) -> Draft:
        """What may come next, as `Skeleton.guess` has it."""
        text = self._text(sequence)
        most = max(self._engine.scheduler.budget.draft_rows, DRAFT_ROWS)  # a pass takes fewer
        encode = partial(encode_continuation, self._engine.tokenizer)
        mark = text.rpartition("\n")[2]
        head = encode(mark)
        token_ids: list[int] = []
        expected: list[int | None] = []
        for title, closing in self._skeleton.guess(text, most // 4):
            both = encode(mark + title)
            token_ids += both[len(head) :] if both[: len(head)] == head else encode(title)
            expected += token_ids[len(expected) :]
            close = encode(closing)
            # The model chooses the first character, or the first token where a line begins; what
            # that forces is encoded as one text.
            choice = encode(closing[:1]) if title else close[:1]
            if len(choice) != 1 or len(token_ids) >= most:
                break
            token_ids += close
            expected += [choice[0], *[None] * (len(close) - 1)]
        if not token_ids:
            return NO_DRAFT
        return Draft(tuple(token_ids), tuple(expected), "caller").shortened(most)
