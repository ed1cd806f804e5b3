"""Drafts: guesses at the next tokens, verified in the pass that would feed one token anyway.

Answers quote: titles, values and bounds occur in the prompt, the conclusion repeats the branches.
So what followed an earlier occurrence of the last few tokens is a good guess at what follows now
("prompt look-up decoding"). A draft's tokens are fed along with the token before them, the model's
choice is sampled after each, and as many are kept as were guessed right; the rest lose their
labels in the forest.

Only the number of passes changes. Every row is sampled with the random number of its place in the
sequence, so the accepted tokens are exactly those that would have been sampled one by one,
greedily or at any temperature. For a draft of one fixed token this accepts as often as
speculative sampling can: with the model's probability of that token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from langchain_pos.errors import NonFiniteLogitsError

Source = Literal["caller", "lookup", "token"]
"""Whoever has the text written, an earlier occurrence of its last tokens, or of the last one."""

_LONGEST_MATCH = 12
_CANDIDATES = 12
_RIGHT: dict[Source, float] = {"caller": 0.9, "lookup": 0.6, "token": 0.3}
"""How often guesses are assumed to be right before there were any."""
_TRIED = 4.0
"""How many guesses that assumption counts for."""
_RECENT = 1 / 16
"""How much less each draft counts than the one after it."""


@dataclass(frozen=True)
class Draft:
    """Tokens to feed ahead, and what must be sampled for each of them.

    Attributes:
        token_ids: the guesses.
        expected: for each guess the token that must be sampled before it; None where a grammar
            leaves no choice, so that the sampled token is ignored.
        source: where the guesses come from; those of one source are right about as often.
    """

    token_ids: tuple[int, ...]
    expected: tuple[int | None, ...]
    source: Source = "lookup"

    @classmethod
    def of(cls, token_ids: Sequence[int], source: Source = "lookup") -> Draft:
        """A draft in which every token must be sampled as guessed."""
        return cls(tuple(token_ids), tuple(token_ids), source)

    def __len__(self) -> int:
        return len(self.token_ids)

    def shortened(self, most: int) -> Draft:
        """Its first `most` tokens."""
        return Draft(self.token_ids[:most], self.expected[:most], self.source)

    def accepted(self, sampled: Sequence[object]) -> int:
        """How many guesses were right.

        Args:
            sampled: the tokens sampled after the token before the draft and after each of its
                tokens; one more than the draft's length.
        """
        for index, token in enumerate(self.expected):
            if token is not None and sampled[index] != token:
                return index
        return len(self)


NO_DRAFT = Draft((), ())


@dataclass(frozen=True)
class Verified:
    """The outcome of a feed with a draft.

    Attributes:
        token_ids: those sampled before each accepted guess, and after the last of them.
        drafted: guesses that the pass had room for.
        failure: why nothing could be sampled after the last accepted guess; `token_ids` is then
            one shorter.
    """

    token_ids: tuple[int, ...]
    drafted: int
    failure: NonFiniteLogitsError | None = None

    @property
    def accepted(self) -> int:
        """Guesses that were right."""
        return len(self.token_ids) - (self.failure is None)


class Accuracy:
    """How often the guesses of one request were right lately, by their source."""

    def __init__(self) -> None:
        self._tried = dict.fromkeys(_RIGHT, _TRIED)
        self._right = {source: _TRIED * share for source, share in _RIGHT.items()}

    def learn(self, draft: Draft, accepted: int) -> None:
        """Record a verified draft. After a wrong guess, none was looked at."""
        if not draft:
            return
        source, kept = draft.source, 1 - _RECENT
        self._tried[source] = kept * self._tried[source] + accepted + (accepted < len(draft))
        self._right[source] = kept * self._right[source] + accepted

    def of(self, draft: Draft) -> float:
        """The probability of a guess to be right if those before it in the draft are."""
        return self._right[draft.source] / self._tried[draft.source]


class PromptLookup:
    """Finds earlier occurrences of the last tokens of a sequence.

    Branches of one answer share words and shapes, so each looks up what its siblings have written,
    too. That is a guess like any other: what is written does not depend on it.

    Args:
        token_ids: the initial tokens.
        base: another look-up to search, which `token_ids` follow; its tokens are not changed.
            Branches share the prompt's, and those that share one are siblings.
    """

    def __init__(self, token_ids: Sequence[int] = (), base: PromptLookup | None = None) -> None:
        self._base = base
        self._children: list[PromptLookup] = []
        if base is not None:
            base._children.append(self)
        self._tokens: list[int] = [] if base is None else base.tail()
        self._offset = len(self._tokens)  # tokens taken over from the base, to match across
        self._ends: dict[tuple[int, int], list[int]] = {}
        self._next: dict[int, int] = {}  # what followed a token when it came last
        if self._offset > 1:  # the base's last pair is followed by tokens here
            self._ends[self._tokens[-2], self._tokens[-1]] = [self._offset]
        self.extend(token_ids)

    def tail(self) -> list[int]:
        """The last tokens, as many as a match looks at."""
        return self._tokens[-_LONGEST_MATCH:]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens."""
        for token_id in token_ids:
            if self._tokens:
                self._next[self._tokens[-1]] = token_id
            self._tokens.append(token_id)
            end = len(self._tokens)
            if end > 1:
                pair = self._tokens[end - 2], token_id
                self._ends.setdefault(pair, []).append(end)

    def draft(self, most: int) -> list[int]:
        """The tokens after the longest, latest earlier occurrence of the last tokens.

        Args:
            most: maximum number of tokens to return.

        Returns:
            nothing if the last two tokens did not occur together before.
        """
        if most < 1 or len(self._tokens) < 2:
            return []
        tail = self.tail()
        best, found = 1, []
        for lookup in self._sources():
            length, continuation = lookup._find(tail, most)
            if length > best and continuation:
                best, found = length, continuation
        return found

    def single(self) -> list[int]:
        """One token, from the last token alone: often wrong, but a row may be free for it.

        Free prose has no better guess in many of its passes.
        """
        for lookup in self._sources():
            if self._tokens and self._tokens[-1] in lookup._next:
                return [lookup._next[self._tokens[-1]]]
        return []

    def _sources(self) -> Iterator[PromptLookup]:
        """Its own tokens, then those before them, then the siblings'."""
        lookup: PromptLookup | None = self
        while lookup is not None:
            yield lookup
            lookup = lookup._base
        if self._base is not None:
            yield from (child for child in self._base._children if child is not self)

    def _find(self, tail: Sequence[int], most: int) -> tuple[int, list[int]]:
        best, found = 0, []
        for end in reversed(self._ends.get((tail[-2], tail[-1]), [])[-_CANDIDATES:]):
            if end >= len(self._tokens):
                continue  # the tail itself
            length = 2
            while (
                length < min(len(tail), end) and self._tokens[end - length - 1] == tail[-length - 1]
            ):
                length += 1
            if length > best:
                best, found = length, self._tokens[end : end + most]
        return best, found


class DraftLength:
    """How many tokens are worth guessing: more while guesses are right, few after a wrong one."""

    def __init__(self, first: int = 4, most: int = 16) -> None:
        self._most = most
        self.now = first

    def learn(self, drafted: int, accepted: int) -> None:
        """Record a verified draft."""
        if not drafted:
            return
        if accepted == drafted:
            self.now = min(2 * self.now, self._most)
        else:
            self.now = max(accepted + 1, 1)
