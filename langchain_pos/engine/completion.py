"""What the engine returns: plain frozen data, no tensors and no torch."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""How a sequence ended: by itself (EOS, a stop sequence, a completed grammar), at its token
budget, by cancellation, or by an error."""


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of a prompt and of what was written after it.

    Attributes:
        input_tokens: tokens that were given (prompt; for a branch, its opening).
        output_tokens: tokens that were written, text forced by a grammar included.
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
    """Tokens guessed ahead, and how many of the guesses were right.

    Attributes:
        drafted: tokens of drafts that were verified.
        accepted: those that were right; each has saved a forward pass.
    """

    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: "DraftUsage") -> "DraftUsage":
        return DraftUsage(self.drafted + other.drafted, self.accepted + other.accepted)


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model held one token of a completion to be.

    Attributes:
        token_id: the token.
        logprob: natural logarithm of its probability, before temperature, penalties and grammar;
            0 for a token that a grammar wrote without asking the model.
        top: the likeliest tokens at this place with theirs, the likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """One finished sequence.

    Attributes:
        token_ids: the tokens written, without the prompt and without a final EOS. Those of the
            stop sequence that ended it are there.
        text: their text, cut before the stop sequence that ended it; special tokens left out.
        finish_reason: how it ended.
        usage: tokens of the prompt (or opening) and of the completion.
        forward_passes: forward passes from its first token fed to its last token sampled.
        drafts: tokens guessed, and guessed right.
        stop: the stop sequence that ended it, None when something else did.
        error: what went wrong when `finish_reason` is "error".
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    usage: TokenUsage
    forward_passes: int
    drafts: DraftUsage = DraftUsage()
    stop: str | None = None
    error: str | None = None
