"""The text that all stages stand on: the prompt and what of the answer is settled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from langchain_pos.engine.tokenization.text import TextStream, encode_continuation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.engine.forest.segments import Segment


@dataclass
class Trunk:
    """Settled tokens of one answer, in one segment.

    The model may be behind (tokens not fed yet) or ahead (it wrote on, and what it wrote was
    dropped); `Trunk` knows what has to be fed.

    Attributes:
        segment: where the tokens lie.
        token_ids: all settled tokens, prompt first.
        lead: settled text whose tokens depend on what follows it; less than a token.
        shift: by how much the tokens of `segment` stand later in `token_ids` than in the model's
            positions. Branches share positions, so behind reused ones the two differ.
    """

    tokenizer: PreTrainedTokenizerBase
    segment: Segment
    token_ids: list[int] = field(default_factory=list)
    lead: str = ""
    shift: int = 0

    @property
    def end(self) -> int:
        """Position of the next token."""
        return len(self.token_ids) - self.shift

    @property
    def unfed(self) -> list[int]:
        """Settled tokens that the model has not seen."""
        return self.token_ids[self.segment.end + self.shift :]

    def encode(self, text: str, *, lead: bool = True) -> list[int]:
        """Tokens of a text that goes on from here, or, without `lead`, from a line's end."""
        return encode_continuation(self.tokenizer, self.lead + text if lead else text)

    def settle(self, token_ids: Sequence[int]) -> None:
        """Take tokens as settled."""
        self.token_ids.extend(token_ids)
        self.lead = ""

    def settle_before(self, written: Sequence[int], mark: re.Pattern[str]) -> str:
        """Settle those of the tokens `written` whose text comes before the first `mark`.

        A token that reaches into the mark is not taken; its text before it becomes the lead.

        Returns:
            the text before the mark.
        """
        stream = TextStream(self.tokenizer, self.token_ids)
        text = ""
        ends: list[tuple[int, int]] = [(0, 0)]  # tokens, and characters that they are the whole of
        for count, token_id in enumerate(written, start=1):
            text += stream.decode(token_id)
            if not stream.unfinished:  # a character may begin in one token and end in the next
                ends.append((count, len(text)))
        found = mark.search(text)
        length = len(text) if found is None else found.start()
        taken, end = max(place for place in ends if place[1] <= length)
        self.settle(written[:taken])
        self.lead = text[end:length]
        return text[:length]
