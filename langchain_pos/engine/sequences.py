"""Sequences over the segments of one forest, for one tokenizer: what requests are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from langchain_pos.engine.constraints import Constraint, ConstraintCompiler
from langchain_pos.engine.decoding.drafts import Draft, PromptLookup
from langchain_pos.engine.decoding.sequence import DecodingSequence
from langchain_pos.engine.seeds import request_seed
from langchain_pos.engine.tokenization.stopping import TextEnd
from langchain_pos.engine.tokenization.vocabulary import tokens_beyond

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from langchain_pos.engine.forest.segments import Segment
    from langchain_pos.engine.forward.forward_pass import ForwardPass
    from langchain_pos.engine.sampling import Logprobs, SamplingParams


class Sequences:
    """Makes the sequences and segments of requests.

    Args:
        tokenizer: the model's.
        forward: whose forest the segments belong to.
        eos_token_ids: the tokens that end a sequence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        forward: ForwardPass,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.forward = forward
        self.eos_token_ids = eos_token_ids
        self._tokens_beyond = tokens_beyond(tokenizer, forward.vocabulary)
        self._constraints: ConstraintCompiler | None = None

    def sequence(
        self,
        segment: Segment,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        seed: int,
        constraint: Constraint | None = None,
        stop: Sequence[str] = (),
        strip: bool | str = False,
        end: TextEnd | None = None,
        first_step: int = 0,
        context_ids: Sequence[int] = (),
        on_text: Callable[[str], None] | None = None,
        lookup: PromptLookup | None = None,
        guess: Callable[[DecodingSequence], Draft] | None = None,
        on_token: Callable[[DecodingSequence], None] | None = None,
        logprobs: Logprobs | None = None,
    ) -> DecodingSequence:
        """A sequence for this tokenizer and its EOS; see `DecodingSequence`."""
        return DecodingSequence(
            self.tokenizer,
            segment,
            prompt_ids,
            eos_token_ids=self.eos_token_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            stop=stop,
            constraint=None if constraint is None else self.constraints.state(constraint),
            strip=strip,
            end=end,
            first_step=first_step,
            context_ids=context_ids,
            on_text=on_text,
            lookup=lookup,
            guess=guess,
            on_token=on_token,
            logprobs=logprobs,
        )

    def fork(self, segment: Segment, at: int | None = None) -> Segment:
        """See `SegmentForest.fork`."""
        return self.forward.forest.fork(segment, at)

    def join(self, segments: Sequence[Segment], at: int) -> Segment:
        """See `SegmentForest.join`."""
        return self.forward.forest.join(segments, at)

    def release(self, segment: Segment) -> None:
        """See `SegmentForest.release`."""
        self.forward.forest.release(segment)

    def truncate(self, segment: Segment, end: int) -> None:
        """See `SegmentForest.truncate`."""
        self.forward.forest.truncate(segment, end)

    @property
    def constraints(self) -> ConstraintCompiler:
        """Grammars for this tokenizer; created when first needed."""
        if self._constraints is None:
            self._constraints = ConstraintCompiler(
                self.tokenizer,
                vocabulary=self.forward.config.vocab_size,
                stop_token_ids=sorted(self.eos_token_ids),
                unknown=tuple(self._tokens_beyond),
            )
        return self._constraints

    @staticmethod
    def seed(sampling: SamplingParams) -> int:
        """See `request_seed`."""
        return request_seed(sampling.seed, sampling.temperature)
