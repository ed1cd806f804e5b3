"""Logits to token ids, every row with its own parameters and seed.

The distribution is that of transformers' warpers. Randomness is one number in [0, 1) per token,
derived only from the row's seed and the token's place, and turned into a token by inverting the
cumulative distribution. So a branch draws the same tokens whatever runs beside it, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from langchain_pos.engine.completion import TokenLogprob
from langchain_pos.engine.constraints import ConstraintState, apply_constraints
from langchain_pos.engine.drawing import (
    drop_all_but_top_p,
    inverse_cdf,
    likeliest,
    precise_dtype,
    top_k_of,
    uniform,
)
from langchain_pos.engine.repetition import PenaltyHistory, penalise
from langchain_pos.engine.seeds import derive_seed as derive_seed
from langchain_pos.errors import InvalidRequestError, NonFiniteLogitsError

_NO_IDS = torch.LongTensor()  # the warpers do not look at tokens


@dataclass(frozen=True)
class SamplingParams:
    """How a sequence's tokens are chosen.

    Attributes:
        temperature: 0 is greedy; higher is more random.
        top_k: keep the k most likely tokens; None keeps all.
        top_p: keep the most likely tokens whose probabilities add up to p.
        min_p: drop tokens less likely than this share of the most likely one; None drops none.
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
                    f"{name}={getattr(self, name)} is out of range: it must be {allowed}"
                )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken: below 1e-5 float32 would overflow."""
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

    def note(self, step: int, token_id: int, logprobs: torch.Tensor, allowed: float = 0.0) -> None:
        """Record the token sampled at a place.

        A place sampled again, after a rejected draft, is overwritten.

        Args:
            step: the place.
            token_id: the token.
            logprobs: `[vocabulary]`, the model's own.
            allowed: see `TokenLogprob`.
        """
        values, ids = logprobs.topk(min(self.top, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        self._seen[step] = TokenLogprob(token_id, float(logprobs[token_id]), top, allowed)

    def forget(self, steps: Iterable[int]) -> None:
        """Drop what was recorded for these places."""
        for step in steps:
            self._seen.pop(step, None)

    def sampled(self, token_ids: Sequence[int]) -> list[TokenLogprob]:
        """One entry for each token of a finished sequence that was sampled."""
        seen = [self._seen.get(place) for place in range(len(token_ids))]
        return [
            found
            for token_id, found in zip(token_ids, seen, strict=True)
            if found is not None and found.token_id == token_id
        ]

    def of(self, token_ids: Sequence[int]) -> list[TokenLogprob]:
        """One entry for each token of a finished sequence."""
        seen = [self._seen.get(place) for place in range(len(token_ids))]
        return [
            found if found is not None and found.token_id == token_id else TokenLogprob(token_id, 0)
            for token_id, found in zip(token_ids, seen, strict=True)
        ]


@dataclass(frozen=True)
class RowSampling:
    """How one row of logits is sampled.

    Attributes:
        params: the sequence's parameters.
        seed: the sequence's seed.
        step: the token's place in its completion, from 0.
        history: tokens so far, prompt included, for the repetition penalty; None without one.
        ahead: a draft's tokens before this row, which the penalty includes.
        constraint: the grammar's state, None for free text.
        logprobs: records how likely the token was; None if not requested.
    """

    params: SamplingParams
    seed: int
    step: int
    history: PenaltyHistory | None = None
    ahead: Sequence[int] = ()
    constraint: ConstraintState | None = None
    logprobs: Logprobs | None = None

    @property
    def plain(self) -> bool:
        """Whether the most likely token is taken as it is."""
        return self.params.greedy and self.constraint is None and not self.penalised

    @property
    def penalised(self) -> bool:
        """Whether a repetition penalty applies to any tokens."""
        return self.params.repetition_penalty != 1 and bool(self.history or self.ahead)


@torch.inference_mode()  # the logits were made in it
def sample(logits: torch.Tensor, rows: Sequence[RowSampling]) -> list[int | NonFiniteLogitsError]:
    """Choose a token for each row. Synchronises with the device once.

    Args:
        logits: `[R, vocabulary]` in any floating dtype.
        rows: how each row is sampled.

    Returns:
        a token id for each row, or the error for a row without a single usable logit.
    """
    asked = [index for index, row in enumerate(rows) if row.logprobs is not None]
    logprobs = logits[asked].float().log_softmax(dim=-1) if asked else None
    # 1. Most rows need only the most likely token. The model's own failures show here too, before
    #    a grammar turns logits into minus infinity.
    best, tokens = likeliest(logits)
    broken = best.isfinite().logical_not_()

    # 2. Only the others are processed, in float32.
    special = [index for index, row in enumerate(rows) if not row.plain]
    if special:
        where = torch.tensor(special, device=logits.device)
        chosen = _rows_of(logits, where).to(torch.float32, copy=len(special) == len(rows))
        ruled_out = _warp(chosen, [rows[index] for index in special], tokens, where)
        broken.index_copy_(0, where, broken.index_select(0, where) | ruled_out)

    # 3. One copy to the host.
    chosen_tokens, failures = torch.stack([tokens, broken.to(tokens.dtype)]).tolist()
    if logprobs is not None:
        allowed = _allowed(logprobs, [rows[index].constraint for index in asked])
        told = zip(asked, logprobs.cpu(), allowed.tolist(), strict=True)
        for index, row_logprobs, mass in told:
            sink = rows[index].logprobs
            if sink is not None and not failures[index]:
                sink.note(rows[index].step, chosen_tokens[index], row_logprobs, mass)
    return [
        NonFiniteLogitsError(
            "the model returned NaN or infinite logits, or none that the grammar allows; try "
            "another dtype (float32 always works), or check the weights"
        )
        if failed
        else token
        for token, failed in zip(chosen_tokens, failures, strict=True)
    ]


def _allowed(logprobs: torch.Tensor, constraints: Sequence[ConstraintState | None]) -> torch.Tensor:
    """`[R]`: logarithm of the probability of all tokens that each row's grammar allows."""
    if all(constraint is None for constraint in constraints):
        return torch.zeros(len(constraints))
    kept = logprobs.clone()
    apply_constraints(kept, constraints)
    return kept.logsumexp(dim=-1)


def _rows_of(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The given rows; for all of them, the logits themselves, without a copy."""
    return logits if len(rows) == len(logits) else logits.index_select(0, rows)


def _warp(
    logits: torch.Tensor, rows: Sequence[RowSampling], tokens: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """Apply penalties and grammars, sample, and write the chosen tokens into `tokens[where]`.

    Returns:
        bool `[R]`: rows for which the grammar allows no token.
    """
    for index, row in enumerate(rows):
        if row.penalised:
            history = row.history or PenaltyHistory()
            seen = history.ids(logits.device, row.ahead)
            penalise(logits[index], seen, row.params.repetition_penalty)
    apply_constraints(logits, [row.constraint for row in rows])
    best, chosen = likeliest(logits)

    drawn = [index for index, row in enumerate(rows) if not row.params.greedy]
    if drawn:
        these = torch.tensor(drawn, device=logits.device)
        asked = [rows[index] for index in drawn]
        dtype = precise_dtype(logits.device)
        u = torch.tensor([uniform(row.seed, row.step) for row in asked], dtype=dtype)
        params = [row.params for row in asked]
        weights = probabilities(_rows_of(logits, these), params)
        chosen.index_copy_(0, these, inverse_cdf(weights, u.to(logits.device)))
    tokens.index_copy_(0, where, chosen)
    return best.isneginf()


def probabilities(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """The distribution of each row's token: transformers' warpers, then a softmax.

    Args:
        logits: float32 `[R, vocabulary]`; may be written to.
        params: of each row; none is greedy.

    Returns:
        float32 `[R, vocabulary]`: probabilities, on a CPU up to a factor of each row.
    """
    if logits.device.type == "cpu":
        for row, its in zip(logits, params, strict=True):
            if row.amax().isfinite():  # else there is nothing to draw, and the caller raises
                _weigh(row, its)
        return logits
    return _warp_groups(logits, params)


def _warp_groups(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """The same with the warpers themselves: a GPU sorts a vocabulary quickly.

    Rows with equal parameters are processed together, without waiting for the device.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, its in enumerate(params):
        groups.setdefault((its.temperature, its.top_k, its.top_p, its.min_p), []).append(index)
    for members in groups.values():
        these = torch.tensor(members, device=logits.device)
        warped = params[members[0]].warpers()(_NO_IDS, logits.index_select(0, these))
        logits.index_copy_(0, these, warped.softmax(dim=-1))
    return logits


def _weigh(row: torch.Tensor, params: SamplingParams) -> None:
    """Turn logits `[vocabulary]` on a CPU into weights, in place; the largest becomes 1.

    Equivalent to the warpers in order, row by row: a row fits into the processor's cache.
    """
    if params.top_k is not None:
        some = top_k_of(row, params.top_k)
        few = row[some]
        _weigh(few, replace(params, top_k=None))
        row.zero_()[some] = few
        return
    row.sub_(row.amax()).div_(params.temperature).exp_()
    if params.top_p < 1:
        drop_all_but_top_p(row, params.top_p)
    if params.min_p is not None:
        row.masked_fill_(row < params.min_p, 0)
