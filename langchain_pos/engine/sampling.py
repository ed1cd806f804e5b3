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

from langchain_pos.engine.completion import TokenLogprob
from langchain_pos.engine.constraints import ConstraintState, apply_constraints
from langchain_pos.engine.seeds import derive_seed as derive_seed
from langchain_pos.errors import InvalidRequestError, NonFiniteLogitsError

_NO_IDS = torch.LongTensor()  # the warpers do not look at tokens
_BLOCK = 128  # logits


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


class Logprobs:
    """Collects the log-probabilities of one sequence's tokens while they are sampled.

    Args:
        top: alternatives to keep at each place; may be 0.
    """

    def __init__(self, top: int = 0) -> None:
        self.top = top
        self._seen: dict[int, TokenLogprob] = {}  # by the token's place

    def note(self, step: int, token_id: int, logprobs: torch.Tensor) -> None:
        """Keep what `[vocabulary]` log-probabilities say of the token sampled at a place.

        A place that is sampled once more, behind a rejected draft, is overwritten.
        """
        values, ids = logprobs.topk(min(self.top, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        self._seen[step] = TokenLogprob(token_id, float(logprobs[token_id]), top)

    def of(self, token_ids: Sequence[int]) -> list[TokenLogprob]:
        """One entry for each token of a finished sequence."""
        seen = [self._seen.get(place) for place in range(len(token_ids))]
        return [
            found if found is not None and found.token_id == token_id else TokenLogprob(token_id, 0)
            for token_id, found in zip(token_ids, seen, strict=True)
        ]


@dataclass(frozen=True)
class RowSampling:
    """What one row of logits is sampled with.

    Attributes:
        params: the sequence's parameters.
        seed: the sequence's seed.
        step: the token's place in its completion, from 0.
        history: tokens so far, prompt included, for the repetition penalty.
        constraint: the grammar's state, None for free text.
        logprobs: told how likely the token was; None where nobody asks.
    """

    params: SamplingParams
    seed: int
    step: int
    history: Sequence[int] = ()
    constraint: ConstraintState | None = None
    logprobs: Logprobs | None = None

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is simply taken."""
        penalised = self.params.repetition_penalty != 1 and bool(self.history)
        return self.params.greedy and self.constraint is None and not penalised


def uniform(seed: int, step: int) -> float:
    """The random number in [0, 1) of a sequence's token, with 53 bits."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


@torch.inference_mode()  # the logits were made in it
def sample(logits: torch.Tensor, rows: Sequence[RowSampling]) -> list[int | NonFiniteLogitsError]:
    """Choose a token for each row. Synchronises with the device once.

    Args:
        logits: `[R, vocabulary]` in any floating dtype.
        rows: what each row is sampled with.

    Returns:
        a token id for each row, or the error for a row without a single usable logit.
    """
    asked = [index for index, row in enumerate(rows) if row.logprobs is not None]
    logprobs = logits[asked].float().log_softmax(dim=-1) if asked else None
    # 1. The likeliest token is all that most rows want. The model's own failures show here too,
    #    before a grammar turns logits into minus infinity.
    best, tokens = likeliest(logits)
    broken = best.isfinite().logical_not_()

    # 2. The others are worked on in float32, and only they.
    special = [index for index, row in enumerate(rows) if not row.plain]
    if special:
        where = torch.tensor(special, device=logits.device)
        chosen = logits.index_select(0, where).float()
        ruled_out = _warp(chosen, [rows[index] for index in special], tokens, where)
        broken.index_copy_(0, where, broken.index_select(0, where) | ruled_out)

    # 3. One copy to the host.
    chosen_tokens, failures = torch.stack([tokens, broken.to(tokens.dtype)]).tolist()
    if logprobs is not None:
        for index, told in zip(asked, logprobs.cpu(), strict=True):
            sink = rows[index].logprobs
            if sink is not None and not failures[index]:
                sink.note(rows[index].step, chosen_tokens[index], told)
    return [
        NonFiniteLogitsError(
            "the model returned NaN or infinite logits, or none for what the grammar allows; try "
            "another dtype (float32 always works), or check the weights"
        )
        if failed
        else token
        for token, failed in zip(chosen_tokens, failures, strict=True)
    ]


def _warp(
    logits: torch.Tensor, rows: Sequence[RowSampling], tokens: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """Penalties, grammars, sampling: writes the chosen tokens into `tokens[where]`.

    Returns:
        bool `[R]`: rows for which the grammar leaves nothing.
    """
    for index, row in enumerate(rows):
        if row.params.repetition_penalty != 1 and row.history:
            penalty = RepetitionPenaltyLogitsProcessor(row.params.repetition_penalty)
            history = torch.tensor([list(row.history)], device=logits.device)
            logits[index] = penalty(history, logits[index : index + 1])[0]
    apply_constraints(logits, [row.constraint for row in rows])
    best, chosen = likeliest(logits)

    # Rows with equal parameters go through the warpers together.
    groups: dict[SamplingParams, list[int]] = {}
    for index, row in enumerate(rows):
        if not row.params.greedy:
            groups.setdefault(row.params, []).append(index)
    for params, members in groups.items():
        these = torch.tensor(members, device=logits.device)
        draws = [uniform(rows[index].seed, rows[index].step) for index in members]
        u = torch.tensor(draws, dtype=torch.float64).to(logits.device)
        warped = params.warpers()(_NO_IDS, logits.index_select(0, these))
        chosen.index_copy_(0, these, inverse_cdf(warped, u))
    tokens.index_copy_(0, where, chosen)
    return best.isneginf()


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's largest logit and its token, the first one of several: as `argmax`.

    On a CPU `argmax` over a vocabulary goes number by number (3 ms for 30 rows of 150,000), the
    maximum alone goes vector by vector. So the maxima of blocks are found first.

    Args:
        logits: `[R, vocabulary]` in any floating dtype.

    Returns:
        the logits `[R]` (NaN where the row holds one) and int64 `[R]`.
    """
    width = logits.shape[-1]
    if logits.device.type != "cpu" or width < 8 * _BLOCK:
        best, tokens = logits.max(dim=-1)
        return best, tokens
    whole = width // _BLOCK * _BLOCK
    maxima = logits[:, :whole].unflatten(-1, (-1, _BLOCK)).amax(dim=-1)
    if whole < width:  # the last block overlaps the one before it
        maxima = torch.cat([maxima, logits[:, -_BLOCK:].amax(dim=-1, keepdim=True)], dim=-1)
    best, block = maxima.max(dim=-1)
    start = (block * _BLOCK).clamp_(max=width - _BLOCK)
    inside = start[:, None] + torch.arange(_BLOCK)
    return best, start + logits.gather(1, inside).argmax(dim=-1)


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
