"""Sequences during decoding: what to feed next, what to do with the token that comes back.

Everything the engine does for a request is a coroutine (`Steps`): it awaits `decode` or `feed`,
which yield the tokens to feed and are sent back the tokens sampled. The scheduler steps all live
coroutines in one forward pass. So a request reads top-down, and closing its coroutine cancels it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from langchain_pos.engine.completion import Completion, DraftUsage, FinishReason, TokenUsage
from langchain_pos.engine.constraints import ConstraintState
from langchain_pos.engine.decoding.drafts import (
    NO_DRAFT,
    Draft,
    DraftLength,
    PromptLookup,
    Verified,
)
from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.repetition import PenaltyHistory
from langchain_pos.engine.sampling import Logprobs, RowSampling, SamplingParams
from langchain_pos.engine.tokenization.stopping import TextEnd
from langchain_pos.engine.tokenization.text import (
    CONTEXT_TOKENS,
    TextStream,
    encode_continuation,
    whole_characters,
)
from langchain_pos.errors import NonFiniteLogitsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass(frozen=True)
class Feed:
    """Tokens for one segment, and whether to sample a token after the last of them.

    Attributes:
        segment: where they go.
        token_ids: the tokens.
        sampling: how the token after the last one is chosen; None samples none.
        draft: guesses at what follows; as many are fed along as the pass has room for.
        draft_sampling: how the token after each guess is chosen.
        start: position of the first token, by default the segment's end. The segment's tokens
            from there on are dropped.
        shared: the segment is a prefix used by others, too, and `token_ids` are its contents from
            `start` on; those already in it are not fed again.
    """

    segment: Segment
    token_ids: Sequence[int]
    sampling: RowSampling | None = None
    draft: Draft = NO_DRAFT
    draft_sampling: Sequence[RowSampling] = ()
    start: int | None = None
    shared: bool = False


Sampled = int | Verified | NonFiniteLogitsError | None
"""The reply to a `Feed`: the token; tokens, if a draft went along; why there is none; or None if
none was requested."""

Steps = Coroutine[list[Feed], list[Sampled], T]
"""A request, or part of one. Feeds in a list are in order: a later one may depend on an earlier
one, as a branch's opening does on the prompt."""


class _Feeds(list[Feed]):
    """Feeds for the scheduler. An event loop that receives them reports their `repr`."""

    def __repr__(self) -> str:
        return (
            f"<{len(self)} feeds for a local engine: only its scheduler can run this coroutine, "
            "see Scheduler.submit>"
        )


@types.coroutine
def feed(feeds: Sequence[Feed]) -> Generator[list[Feed], list[Sampled], list[Sampled]]:
    """Have tokens fed: the one step that requests consist of.

    Awaited by anything but the scheduler, such as an asyncio task, it fails.

    Returns:
        the reply to each of `feeds`.
    """
    return (yield _Feeds(feeds))


class DecodingSequence:
    """One sequence, decoded into a `Completion`.

    Args:
        tokenizer: for text, stop sequences and forced text.
        segment: where its tokens go.
        prompt_ids: tokens to feed before the first one is sampled; at least one.
        eos_token_ids: tokens that end it.
        max_new_tokens: its budget.
        sampling: parameters; their seed is ignored.
        seed: the sequence's own seed.
        stop: texts that end it.
        constraint: a grammar's fresh state.
        strip: leave out white space at both ends of the text; see `StoppedText`.
        end: a further rule by which the text ends.
        first_step: place of its first token, where it goes on with a sequence that was cut here:
            its tokens are drawn with the random numbers that they would have had there.
        context_ids: tokens before `prompt_ids`, for the repetition penalty and spacing.
        on_text: called with each piece of text once it is certain.
        lookup: source of drafts; None for no drafts.
        guess: asked for a draft before `lookup`; may return an empty one.
        on_token: called after each token; may `force` text.
        logprobs: records how likely each token was.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        segment: Segment,
        prompt_ids: Sequence[int],
        *,
        eos_token_ids: frozenset[int],
        max_new_tokens: int,
        sampling: SamplingParams,
        seed: int,
        stop: Sequence[str] = (),
        constraint: ConstraintState | None = None,
        strip: bool | str = False,
        end: TextEnd | None = None,
        first_step: int = 0,
        context_ids: Sequence[int] = (),
        on_text: Callable[[str], None] | None = None,
        lookup: PromptLookup | None = None,
        guess: Callable[[DecodingSequence], Draft] | None = None,
        on_token: Callable[[DecodingSequence], None] | None = None,
        logprobs: Logprobs | None = None,
    ) -> None:
        self.segment = segment
        self.prompt_ids = tuple(prompt_ids)
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None
        self.failure: NonFiniteLogitsError | None = None
        self.forward_passes = 0
        self.constraint = constraint
        self._tokenizer = tokenizer
        self._begin: int | None = None  # position of the first of `prompt_ids`
        self._prompt_fed = False
        self._fed = 0  # tokens of the completion that the model has read
        self._lookup = None if lookup is None else PromptLookup(prompt_ids, lookup)
        self._guess = guess
        self._on_token = on_token or (lambda sequence: None)
        self._logprobs = logprobs
        self._draft = NO_DRAFT
        self._draft_length = DraftLength()
        self.drafts = DraftUsage()
        self._eos = eos_token_ids
        self._budget = max_new_tokens
        self._sampling = sampling
        self._seed = seed
        self._context = [*context_ids, *prompt_ids]
        penalised = sampling.repetition_penalty != 1
        self._history = PenaltyHistory(self._context) if penalised else None
        # A grammar begins with a whole character, even after a prompt that ends inside one.
        self._behind = self._context
        if constraint is not None:
            self._behind = whole_characters(tokenizer, self._context)
        self._stream = TextStream(tokenizer, self._behind, stop, strip=strip, end=end)
        self._first_step = first_step
        self._on_text = on_text or (lambda piece: None)

    @property
    def text(self) -> str:
        """The text that is certain so far."""
        return self._stream.text

    def feed(self) -> Feed:
        """The tokens that the model has not read yet, with one to be sampled after them."""
        unseen = (() if self._prompt_fed else self.prompt_ids) + tuple(self.token_ids[self._fed :])
        sampling = RowSampling(
            self._sampling,
            self._seed,
            step=self._first_step + len(self.token_ids),
            history=self._history,
            constraint=self.constraint,
            logprobs=self._logprobs,
        )
        if self._begin is None:
            self._begin = self.segment.end
        self._draft, draft_sampling = (
            self._drafted(sampling) if self._prompt_fed else (NO_DRAFT, ())
        )
        start = self.end_of_seen if self._prompt_fed else None
        return Feed(self.segment, unseen, sampling, self._draft, draft_sampling, start)

    @property
    def end_of_seen(self) -> int:
        """Position after the last token of this sequence that the model has read."""
        if self._begin is None:
            return self.segment.end
        return self._begin + (len(self.prompt_ids) + self._fed) * self._prompt_fed

    def accept(self, sampled: Sampled) -> None:
        """Take the reply to the last `feed`."""
        self._prompt_fed, self._fed = True, len(self.token_ids)
        self.forward_passes += 1
        if sampled is None or isinstance(sampled, NonFiniteLogitsError):
            self.failure = sampled
            self.finish("error", str(sampled))
            return
        known = len(self.token_ids)
        self._take(sampled if isinstance(sampled, Verified) else Verified((sampled,), 0))
        if self._lookup is not None:
            self._lookup.extend(self.token_ids[known:])

    def _take(self, verified: Verified) -> None:
        """Write the sampled tokens, as far as the draft's tokens between them were right."""
        sampled = verified.token_ids
        guesses = self._draft.token_ids[: verified.accepted]
        if self._logprobs is not None:  # sampled after a wrong guess, they are no tokens of it
            first = len(self.token_ids) + len(sampled)
            self._logprobs.forget(range(first, first + len(self._draft)))
        self.drafts += DraftUsage(verified.drafted, len(guesses))
        if self._draft.source == "lookup":
            self._draft_length.learn(verified.drafted, len(guesses))
        taken = 0
        while taken < len(sampled) and self.finish_reason is None:
            if sampled[taken] in self._eos:
                self.finish("stop")
                return
            known = len(self.token_ids)
            self._write_token(sampled[taken])
            if self.finish_reason is None:
                self._on_token(self)
            written = self.token_ids[known:]
            right = _common(written, guesses[taken:])
            self._fed += right
            taken += right
            if right < len(written):
                return  # the rest is not fed yet
        if verified.failure is not None and self.finish_reason is None:
            self.failure = verified.failure
            self.finish("error", str(verified.failure))

    def _drafted(self, sampling: RowSampling) -> tuple[Draft, Sequence[RowSampling]]:
        """A draft that the grammar allows, and how the token after each guess is chosen."""
        draft = NO_DRAFT if self._guess is None else self._guess(self)
        if not draft and self._lookup is not None:
            draft = Draft.of(self._lookup.draft(self._draft_length.now))
            if not draft:
                draft = Draft.of(self._lookup.single(), "token")
        draft = draft.shortened(max(self._budget - len(self.token_ids) - 1, 0))
        rows: list[RowSampling] = []
        state = None if self.constraint is None else self.constraint.fork()
        for place, expected in enumerate(draft.expected):
            if expected in self._eos:
                break  # nothing follows the end
            if state is not None and expected is not None:
                if not state.accept_token(expected):
                    break
                forced = state.forced_text()
                if forced and not self._is_forced_next(draft, place):
                    # Text forced by the grammar is written, not drafted; the draft ends before it.
                    break
                if forced:
                    state.accept_text(forced)
                if state.finished:
                    break
            free = place + 1 >= len(draft) or draft.expected[place + 1] is not None
            ahead = state.fork() if state is not None and free else None
            guessed = () if self._history is None else draft.token_ids[: place + 1]
            step = sampling.step + place + 1
            row = replace(sampling, step=step, ahead=guessed, constraint=ahead)
            # What the grammar forces, nobody has chosen.
            rows.append(row if free else replace(row, logprobs=None))
        return draft.shortened(len(rows)), rows

    @staticmethod
    def _is_forced_next(draft: Draft, place: int) -> bool:
        return place + 1 < len(draft) and draft.expected[place + 1] is None

    def _write_token(self, token_id: int) -> None:
        begun = self._stream.unfinished  # earlier tokens hold the beginning of this character
        piece = self._stream.decode(token_id)
        if self.constraint is not None:
            self.constraint.accept_token(token_id)
        forced = "" if self._stream.unfinished else self._forced_text()
        if not forced:
            self._write([token_id], piece)
            return
        # Forced text costs no pass. It is encoded together with the token before it, which is not
        # fed yet either, so that its tokens are those the model itself would have written.
        token_ids = [token_id, *encode_continuation(self._tokenizer, forced)]
        if piece and not begun:
            token_ids = encode_continuation(self._tokenizer, piece + forced)
        room = self._budget - len(self.token_ids)
        if len(token_ids) <= room:
            self._write(token_ids, piece + forced)
            self._stream.follow(self._tail())
            return
        # The budget cuts it: the text is that of the remaining tokens.
        kept, known = token_ids[:room], int(begun)
        self._stream.follow([*self._tail(), *kept[:known]])
        text = "".join(self._stream.decode(i) for i in kept[known:])
        self._write(kept, piece + text if begun else text, cut=True)

    def force(self, text: str) -> bool:
        """Write `text` regardless of the model's choice, if the grammar allows it here.

        The budget does not shorten it, but ends the sequence afterwards.

        Returns:
            False, with nothing changed, if the grammar does not allow it.
        """
        if self.constraint is not None and not self.constraint.accept_text(text):
            return False
        text += self._forced_text()
        token_ids = encode_continuation(self._tokenizer, text)
        self._write(token_ids, text)
        self._stream.follow(self._tail())
        return True

    def _tail(self) -> list[int]:
        """The last tokens so far, enough context to decode what follows."""
        return [*self._behind[-CONTEXT_TOKENS:], *self.token_ids[-CONTEXT_TOKENS:]]

    def _forced_text(self) -> str:
        forced = "" if self.constraint is None else self.constraint.forced_text()
        if forced and self.constraint is not None:
            self.constraint.accept_text(forced)
        return forced

    def _write(self, token_ids: Sequence[int], text: str, *, cut: bool = False) -> None:
        self.token_ids.extend(token_ids)
        if self._history is not None:
            self._history.extend(token_ids)
        self._emit(self._stream.push(text))
        complete = self.constraint is not None and self.constraint.finished and not cut
        if complete or self._stream.stopped is not None:
            self.finish("stop")
        elif len(self.token_ids) >= self._budget:
            self.finish("length")

    def _emit(self, piece: str) -> None:
        if piece:
            self._on_text(piece)

    def go_on(self, max_new_tokens: int, on_text: Callable[[str], None]) -> None:
        """Another budget and another receiver, which gets the text so far.

        Args:
            max_new_tokens: more than it has.
            on_text: as in the constructor.
        """
        self._budget, self._on_text = max_new_tokens, on_text
        self._emit(self.text)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """End the sequence; text that was held back becomes certain."""
        self.finish_reason, self.error = reason, error
        self._emit(self._stream.flush(cut=reason == "length"))

    def completion(self) -> Completion:
        """The finished sequence."""
        if self.finish_reason is None:
            raise ValueError("the sequence is still being decoded")
        return Completion(
            token_ids=tuple(self.token_ids),
            text=self.text,
            finish_reason=self.finish_reason,
            usage=TokenUsage(len(self.prompt_ids), len(self.token_ids)),
            forward_passes=self.forward_passes,
            drafts=self.drafts,
            stop=self._stream.stopped,
            error=self.error,
        )


@types.coroutine
def decode(
    sequences: Iterable[DecodingSequence],
    *,
    first: Sequence[Feed] = (),
    max_parallel: int | None = None,
    on_start: Callable[[DecodingSequence], None] | None = None,
    on_end: Callable[[DecodingSequence], None] | None = None,
    enough: Callable[[DecodingSequence], bool] = lambda sequence: False,
) -> Generator[list[Feed], list[Sampled], None]:
    """Decode sequences together, one token each per forward pass.

    A sequence that has ended is no longer fed, and a waiting one takes its place at once.

    Args:
        sequences: may be an iterator that creates each sequence when its turn comes.
        first: feeds before and along with the first ones, such as a shared prompt.
        max_parallel: sequences decoded at the same time; None for all.
        on_start: called before a sequence is first fed.
        on_end: called when one has ended; its segment can be released here.
        enough: whether to leave one that has not ended as it stands. Decoded later, it goes on.
    """
    waiting = iter(sequences)
    live: list[DecodingSequence] = []
    more = True
    while True:
        while more and (max_parallel is None or len(live) < max_parallel):
            joining = next(waiting, None)
            if joining is None:
                more = False
            else:
                if on_start is not None:
                    on_start(joining)
                live.append(joining)
        if not live:
            return
        feeds = [*first, *(sequence.feed() for sequence in live)]
        sampled = (yield _Feeds(feeds))[len(first) :]
        first = ()
        for sequence, token in zip(live, sampled, strict=True):
            sequence.accept(token)
            if sequence.finish_reason is not None and on_end is not None:
                on_end(sequence)
        live = [each for each in live if each.finish_reason is None and not enough(each)]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
