"""The lean forward pass for training: Qwen2's arithmetic, without its overheads.

The weights are nine stacked tensors (one per kind, layers first), so that the optimiser works on a
few large tensors. A batch is laid out as `R` root slots followed by `F` fork slots: roots attend
causally among themselves (no mask needed), forks attend to everything their mask shows. Only the
fork part has labels, so the last layer and the output head skip the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from training.fast_attention import attention

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """The architecture; the defaults are those of the shipped model."""

    vocab: int = 2048
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    feed_forward: int = 640
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.hidden // self.heads


def init_weights(shape: Shape, generator: torch.Generator) -> Weights:
    """Return fresh fp32 weights; matrices that write into the residual stream start small."""
    d, ff, n = shape.hidden, shape.feed_forward, shape.layers

    def normal(*size: int, std: float) -> Tensor:
        return torch.randn(*size, generator=generator) * std

    return {
        "embed": normal(shape.vocab, d, std=0.02),
        "qkv": normal(n, 3 * d, d, std=d**-0.5),
        "qkv_bias": torch.zeros(n, 3 * d),
        "out": normal(n, d, d, std=d**-0.5 / math.sqrt(2 * n)),
        "gate_up": normal(n, 2 * ff, d, std=d**-0.5),
        "down": normal(n, d, ff, std=ff**-0.5 / math.sqrt(2 * n)),
        "norm_attn": torch.ones(n, d),
        "norm_mlp": torch.ones(n, d),
        "norm_final": torch.ones(d),
    }


def rope_tables(shape: Shape, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each `(B, 1, T, D/2)`, for `positions` `(B, T)` int64."""
    half = shape.head_dim // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = positions[..., None].float() * shape.rope_theta**-exponents
    return angles.cos()[:, None].to(dtype), angles.sin()[:, None].to(dtype)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def forward(
    weights: Weights,
    shape: Shape,
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    fork_mask: Tensor,
    root: int,
    fast: bool = False,
) -> Tensor:
    """Return the final hidden states of the fork part, `(B, F, hidden)`.

    Args:
        weights: the stacked weights, all of one dtype (norms and biases may be fp32).
        shape: the architecture.
        tokens: `(B, R + F)` int64, roots first.
        cos: `(B, 1, R + F, D/2)`, from `rope_tables`.
        sin: like `cos`.
        fork_mask: `(B, 1, F, R + F)` additive, of the weights' dtype.
        root: `R`, the number of root slots (may be 0).
        fast: use the compiled attention backward (see `fast_attention`).
    """
    batch, total = tokens.shape
    d, heads, dim = shape.hidden, shape.heads, shape.head_dim
    x = functional.embedding(tokens, weights["embed"])
    names = ("qkv", "qkv_bias", "out", "gate_up", "down", "norm_attn", "norm_mlp")
    stacks = [weights[name].unbind(0) for name in names]
    for index, (qkv, bias, out, gate_up, down, norm_attn, norm_mlp) in enumerate(
        zip(*stacks, strict=True)
    ):
        last = index == shape.layers - 1
        h = _norm(x, norm_attn, shape.norm_eps)
        q, k, v = (
            functional.linear(h, qkv, bias.to(h.dtype))
            .view(batch, total, 3, heads, dim)
            .permute(2, 0, 3, 1, 4)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        seen = attention(q[:, :, root:], k, v, fork_mask, fast)
        if last:
            x = x[:, root:]
        elif root:
            top = attention(q[:, :, :root], k[:, :, :root], v[:, :, :root], None, fast)
            seen = torch.cat((top, seen), dim=2)
        x = x + functional.linear(seen.transpose(1, 2).reshape(batch, -1, d), out)
        h = functional.linear(_norm(x, norm_mlp, shape.norm_eps), gate_up)
        gate, up = h.chunk(2, dim=-1)
        x = x + functional.linear(functional.silu(gate) * up, down)
    return _norm(x, weights["norm_final"], shape.norm_eps)


def loss_and_hits(
    weights: Weights,
    shape: Shape,
    tokens: Tensor,
    cos: Tensor,
    sin: Tensor,
    fork_mask: Tensor,
    root: int,
    targets: Tensor,
    target_weights: Tensor,
    fast: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the weighted mean cross-entropy (fp32) and which targets were hit, `(B, F)` bool.

    Args:
        weights: see `forward`.
        shape: see `forward`.
        tokens: see `forward`.
        cos: see `forward`.
        sin: see `forward`.
        fork_mask: see `forward`.
        root: see `forward`.
        targets: `(B, F)` int64, the token that follows each fork slot.
        target_weights: `(B, F)` fp32; zero for slots without a loss.
        fast: see `forward`.
    """
    hidden = forward(weights, shape, tokens, cos, sin, fork_mask, root, fast)
    logits = functional.linear(hidden, weights["embed"]).float()
    log_z = logits.logsumexp(-1)
    picked = logits.gather(-1, targets[..., None]).squeeze(-1)
    loss = ((log_z - picked) * target_weights).sum() / target_weights.sum()
    return loss, (picked >= logits.amax(-1)).detach()
