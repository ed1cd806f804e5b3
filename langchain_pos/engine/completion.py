"""The engine's output: plain frozen data, no tensors and no torch."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""How a sequence ended: normally (EOS, a stop sequence, a completed grammar), at its token budget,
by cancellation, or by an error."""


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of a prompt and of the text written after it.

    Attributes:
        input_tokens: tokens given (prompt; for a branch, its opening).
        output_tokens: tokens written, including text forced by a grammar.
    """

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "TokenUsage") -> "TokenUsage":
        return TokenUsage(
            self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens
        )


@dataclass(frozen=True)
class DraftUsage:
    """Tokens guessed ahead, and how many of them were accepted.

    Attributes:
        drafted: draft tokens that were verified.
        accepted: those that were right; each has saved a forward pass.
    """

    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: "DraftUsage") -> "DraftUsage":
        return DraftUsage(self.drafted + other.drafted, self.accepted + other.accepted)


@dataclass(frozen=True)
class TokenLogprob:
    """How likely one token of a completion was to the model.

    Attributes:
        token_id: the token.
        logprob: natural logarithm of its probability, before temperature, penalties and grammar;
            0 for a token that a grammar forced without running the model.
        top: the most likely tokens at this place with theirs, in descending order.
        allowed: natural logarithm of the probability, before all these, of all the tokens together
            that a grammar allowed at this place; 0 without a grammar.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    allowed: float = 0.0


@dataclass(frozen=True)
class Completion:
    """One finished sequence.

    Attributes:
        token_ids: the tokens written, without the prompt and a final EOS, but with those of the
            stop sequence that ended it.
        text: their text, cut before the stop sequence that ended it; without special tokens.
        finish_reason: how it ended.
        usage: tokens of the prompt (or opening) and of the completion.
        forward_passes: forward passes from its first token fed to its last token sampled.
        drafts: tokens guessed, and accepted.
        stop: the stop sequence that ended it, None if something else did.
        error: what went wrong if `finish_reason` is "error".
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    usage: TokenUsage
    forward_passes: int
    drafts: DraftUsage = DraftUsage()
    stop: str | None = None
    error: str | None = None
