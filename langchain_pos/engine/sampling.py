"""Logits to token ids, every row with its own parameters and seed.

The warpers are transformers' own. Randomness is one number in [0, 1) for each token, made from
the row's seed and the token's place alone, and turned into a token by inverting the cumulative
distribution. So a branch draws the same tokens whatever runs beside it, on any device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from langchain_pos.engine.constraints import ConstraintState, apply_constraints
from langchain_pos.errors import InvalidRequestError, NonFiniteLogitsError

_NO_IDS = torch.LongTensor()  # the warpers do not look at tokens


@dataclass(frozen=True)
class SamplingParams:
    """How a sequence's tokens are chosen.

    Attributes:
        temperature: 0 is greedy; higher is more random.
        top_k: keep the k likeliest tokens; None keeps all.
        top_p: keep the likeliest tokens whose probabilities add up to p.
        min_p: drop tokens less likely than this share of the likeliest one; None drops none.
        repetition_penalty: above 1 makes tokens of the prompt and completion less likely.
        seed: same seed, same tokens. None draws a new one for each request.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, valid, allowed in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None for all"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1, or None"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 for none"),
        ):
            if not valid:
                raise InvalidRequestError(
                    f"{name}={getattr(self, name)} cannot be sampled with: it must be {allowed}"
                )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken: below 1e-5 float32 would overflow."""
        return self.temperature < 1e-5

    def warpers(self) -> LogitsProcessorList:
        """The warpers of transformers, in the order that `generate` applies them."""
        warpers = LogitsProcessorList()
        if self.greedy:
            return warpers
        if self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            warpers.append(MinPLogitsWarper(self.min_p))
        return warpers


@dataclass(frozen=True)
class RowSampling:
    """What one row of logits is sampled with.

    Attributes:
        params: the sequence's parameters.
        seed: the sequence's seed.
        step: the token's place in its completion, from 0.
        history: tokens so far, prompt included, for the repetition penalty.
        constraint: the grammar's state, None for free text.
    """

    params: SamplingParams
    seed: int
    step: int
    history: Sequence[int] = ()
    constraint: ConstraintState | None = None


def derive_seed(seed: int, *path: int | str) -> int:
    """A seed of its own for each part of a request, the same in every run: 63 bits."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform(seed: int, step: int) -> float:
    """The random number in [0, 1) of a sequence's token, with 53 bits."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


@torch.inference_mode()  # the logits were made in it, and are changed in place
def sample(logits: torch.Tensor, rows: Sequence[RowSampling]) -> list[int | NonFiniteLogitsError]:
    """Choose a token for each row. Synchronises with the device once.

    Args:
        logits: float32 `[R, vocabulary]`; changed in place.
        rows: what each row is sampled with.

    Returns:
        a token id for each row, or the error for a row without a single usable logit.
    """
    # 1. The model's own failures show before a grammar turns logits into minus infinity.
    broken = logits.amax(dim=-1).isfinite().logical_not_()  # NaN propagates through amax
    for index, row in enumerate(rows):
        if row.params.repetition_penalty != 1 and row.history:
            penalty = RepetitionPenaltyLogitsProcessor(row.params.repetition_penalty)
            history = torch.tensor([list(row.history)], device=logits.device)
            logits[index] = penalty(history, logits[index : index + 1])[0]
    if any(row.constraint is not None for row in rows):
        apply_constraints(logits, [row.constraint for row in rows])
        broken |= logits.amax(dim=-1).isneginf()  # nothing that the grammar allows is left

    # 2. Rows with equal parameters go through the warpers together.
    tokens = logits.argmax(dim=-1)
    groups: dict[SamplingParams, list[int]] = {}
    for index, row in enumerate(rows):
        if not row.params.greedy:
            groups.setdefault(row.params, []).append(index)
    for params, members in groups.items():
        where = torch.tensor(members, device=logits.device)
        draws = [uniform(rows[index].seed, rows[index].step) for index in members]
        u = torch.tensor(draws, dtype=torch.float64).to(logits.device)
        chosen = logits.index_select(0, where)
        warped = params.warpers()(_NO_IDS, chosen)
        tokens.index_copy_(0, where, inverse_cdf(warped, u))

    # 3. One copy to the host.
    chosen_tokens, failures = torch.stack([tokens, broken.to(tokens.dtype)]).tolist()
    return [
        NonFiniteLogitsError(
            "the model returned NaN or infinite logits, or none for what the grammar allows; try "
            "another dtype (float32 always works), or check the weights"
        )
        if failed
        else token
        for token, failed in zip(chosen_tokens, failures, strict=True)
    ]


def inverse_cdf(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Draw from softmax(logits) by inverting its cumulative distribution.

    Args:
        logits: `[R, vocabulary]`.
        u: float64 `[R]` in [0, 1).

    Returns:
        int64 `[R]`: the first token whose cumulative probability exceeds `u`.
    """
    # float64: over a vocabulary of 150,000, float32 sums lose the rare tokens.
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    target = u[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
