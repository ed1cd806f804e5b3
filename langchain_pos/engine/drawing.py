"""One token from many logits: the most likely one, or the one that a random number selects.

With 150,000 tokens in a vocabulary and 30 rows in a pass, scalar loops, sorting and running sums
take longer than the model. So each function first looks at blocks of logits, then into one block.
"""

from __future__ import annotations

import hashlib

import torch

_BLOCK = 128  # logits
_BINS = 4096
_BINS_PER_NAT = 128.0  # the last bin holds all tokens 32 nats or more below the most likely


def uniform(seed: int, step: int) -> float:
    """The random number in [0, 1) of a sequence's token, with 53 bits."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's largest logit and the first token that has it, like `argmax`.

    On a CPU, `argmax` over a vocabulary is scalar (3 ms for 30 rows of 150,000), while the maximum
    alone is vectorised. So the maxima of blocks are found first.

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


def inverse_cdf(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Draw tokens by inverting the cumulative distribution, in the order of the tokens.

    The sums of blocks show which block the draw falls into; only that block is summed token by
    token. A token of weight 0 is never drawn, unless the whole row is 0.

    Args:
        weights: float32 `[R, vocabulary]`: probabilities, up to a factor of each row.
        u: `[R]` in [0, 1), in a dtype that the device supports: see `precise_dtype`.

    Returns:
        int64 `[R]`: the first token whose cumulative probability exceeds `u`.
    """
    rows, width = weights.shape
    whole = width // _BLOCK
    sums = weights[:, : whole * _BLOCK].reshape(rows, whole, _BLOCK).sum(dim=-1)
    if width > whole * _BLOCK:
        rest = weights[:, whole * _BLOCK :].sum(dim=-1, keepdim=True)
        sums = torch.cat([sums, rest], dim=-1)
    dtype = precise_dtype(weights.device)
    block, share = _first_beyond(sums.to(dtype), u.to(dtype))
    places = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(1, places.clamp(max=width - 1)).masked_fill_(places >= width, 0)
    place, _ = _first_beyond(inside.to(dtype), share)
    return (block * _BLOCK + place).clamp_(max=width - 1)


def precise_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums over a vocabulary: float64; Apple's GPUs support only float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def _first_beyond(weights: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the cumulative sum first exceeds a share of the total, and how far into that weight.

    Args:
        weights: `[R, N]`.
        share: `[R]` in [0, 1].

    Returns:
        int64 `[R]`, and the share `[R]` in [0, 1] of that weight which lies before the draw.
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # At most just below the sum, so that the first place exceeding it has a weight.
    target = torch.minimum(share[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True).clamp_(max=weights.shape[-1] - 1)
    weight = weights.gather(1, place)
    before = cumulative.gather(1, place) - weight
    return place[:, 0], ((target - before) / weight).clamp_(0, 1)[:, 0]


def top_k_of(logits: torch.Tensor, k: int) -> torch.Tensor:
    """The k most likely tokens of `[vocabulary]` logits, in the order of the tokens.

    Like transformers' `TopKLogitsWarper`, keeps all tokens as likely as the last one.
    """
    if k >= len(logits):
        return torch.arange(len(logits), device=logits.device)
    return (logits >= logits.topk(k, sorted=False).values.min()).nonzero()[:, 0]


def drop_all_but_top_p(weights: torch.Tensor, p: float) -> None:
    """Set the weights of the least likely tokens to 0, in place; the rest add up to at least p.

    Like transformers' `TopPLogitsWarper`, drops the first of equally likely tokens first; but only
    the tokens around the threshold are sorted. Bins of likelihood, each with the sum of its
    tokens, show where that is.

    Args:
        weights: float32 `[vocabulary]` on the CPU; the largest is 1.
        p: above 0 and below 1.
    """
    bins = weights.log().mul_(-_BINS_PER_NAT).clamp_(max=_BINS - 1).int()
    masses = torch.bincount(bins, weights=weights.double(), minlength=_BINS)
    # A token is kept if the more likely ones add up to less than p.
    until = masses.cumsum(dim=0)
    before, limit = torch.cat([until.new_zeros(1), until[:-1]]), p * until[-1]
    line = int((before < limit).sum()) - 1
    weights.masked_fill_(bins > line, 0)
    places = (bins == line).nonzero()[:, 0]
    found, order = weights[places].sort(stable=True)
    likelier = before[line] + found.double().flip(0).cumsum(0).flip(0) - found
    weights[places[order[likelier >= limit]]] = 0
