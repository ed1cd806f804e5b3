"""The text shared by all stages, as tokens in a segment of the forest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from langchain_pos.engine.tokenization.text import (
    CONTEXT_TOKENS,
    TextStream,
    encode_continuation,
    whole_characters,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.engine.decoding.sequence import Feed
    from langchain_pos.engine.forest.segments import Segment, SegmentForest
    from langchain_pos.reasoning.decoder import Written


@dataclass
class LocalTrunk:
    """Settled tokens of one answer, in one segment; see `reasoning.decoder.Trunk`.

    The model may have read less (tokens not fed yet) or more (it wrote text that was dropped); the
    trunk keeps track of what must be fed.

    Attributes:
        tokenizer: of the model.
        forest: holds the segment.
        segment: where the tokens lie.
        token_ids: all settled tokens, prompt first.
        lead: settled text whose tokens depend on what follows it; less than a token.
        shift: index in `token_ids` minus the model's position, for the tokens of `segment`.
            Branches share positions, so after reused ones the two differ.
        feeds: what must be fed along with the next tokens, in other segments.
        thinks: see `Trunk`.
    """

    tokenizer: PreTrainedTokenizerBase
    forest: SegmentForest
    segment: Segment
    token_ids: list[int] = field(default_factory=list)
    lead: str = ""
    shift: int = 0
    feeds: list[Feed] = field(default_factory=list)
    thinks: bool | None = False

    @property
    def end(self) -> int:
        """Position of the next token."""
        return len(self.token_ids) - self.shift

    @property
    def unfed(self) -> list[int]:
        """Settled tokens that the model has not read."""
        return self.token_ids[self.segment.end + self.shift :]

    @property
    def fed(self) -> list[int]:
        """Settled tokens that it has read."""
        return self.token_ids[: self.segment.end + self.shift]

    def encode(self, text: str, *, after: str = "") -> list[int]:
        """Tokens of a text that continues from here, or from the end of the text `after`."""
        return encode_continuation(self.tokenizer, text if after else self.lead + text)

    def count(self, text: str = "") -> int:
        """See `Trunk`."""
        return len(self.token_ids) + len(self.encode(text))

    def copy(self) -> LocalTrunk:
        """See `Trunk`. It is of the same segment; to write after it, fork that at `end`."""
        return replace(self, token_ids=list(self.token_ids), feeds=[])

    def settle(self, text: str) -> None:
        """See `Trunk`."""
        self.token_ids.extend(self.encode(text))
        self.lead = ""

    def hold_back(self, stop: Sequence[str] = ()) -> str:
        r"""Make the last token the lead: the model may write its text in a longer token.

        To many tokenizers ".\n\n" is one token. We have settled ".", after which a model has learnt
        that no empty line follows.

        Args:
            stop: texts that end what is written; they may not be found in the lead.

        Returns:
            the text; "" if the token stays, because there is nothing else to feed, it is not whole
            characters, it ends in a letter or a digit, or a stop text has one of its characters.
        """
        if self.lead:
            return self.lead
        before = self.token_ids[-CONTEXT_TOKENS:-1]
        if len(self.unfed) < 2 or whole_characters(self.tokenizer, before) != before:
            return ""
        stream = TextStream(self.tokenizer, before)
        text = stream.decode(self.token_ids[-1])
        if stream.unfinished or text[-1:].isalnum() or not text.strip():
            return ""
        if set(text) & set("".join(stop)):
            return ""
        self.token_ids.pop()
        self.lead = text
        return text

    def keep(self, written: Written, length: int) -> None:
        """See `Trunk`. A token that extends beyond `length` is dropped: its text is the lead."""
        del self.token_ids[written.where :]
        kept, self.lead = self._tokens_of(written.token_ids, length)
        self.token_ids.extend(kept)
        self.forest.truncate(self.segment, self.end)

    def _tokens_of(self, token_ids: Sequence[int], length: int) -> tuple[Sequence[int], str]:
        """The tokens within the first `length` characters, and the remaining text of these."""
        stream = TextStream(self.tokenizer, self.token_ids)
        text = ""
        ends: list[tuple[int, int]] = [(0, 0)]  # tokens, and the characters they spell completely
        for count, token_id in enumerate(token_ids, start=1):
            text += stream.decode(token_id)
            if not stream.unfinished:  # a character may begin in one token and end in the next
                ends.append((count, len(text)))
        taken, end = max(place for place in ends if place[1] <= length)
        return token_ids[:taken], text[end:length]
