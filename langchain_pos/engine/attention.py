"""Grouped-query attention under the forest's mask, registered with transformers.

transformers' `sdpa` copies every key and value head G times (`repeat_kv`) when a mask is given.
Here the G query heads of a key/value head become rows of one matrix instead,

    query  [1, Hkv * G, Q, D]  →  [1, Hkv, G * Q, D]        key, value  [1, Hkv, N, D]

and only the mask is repeated, once for a pass (`fold_mask`), not once for a layer.

Rows of different requests see nothing of each other. When many requests run together, their rows
are attended to group by group, each with the slots of its own request, where that is less work than
to let the mask hide the others' slots; see `engine/grouping.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FOLDED = "langchain_pos_folded"
"""Name of the implementation in transformers' registry."""


def fold_mask(mask: torch.Tensor, groups: int) -> torch.Tensor:
    """Repeat a mask `[1, 1, Q, N]` for the query heads of a group: `[1, 1, groups * Q, N]`."""
    return mask.repeat(1, 1, groups, 1) if groups > 1 else mask


def folded_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' calling convention.

    Args:
        module: the attention layer that calls.
        query: `[1, Hkv * G, Q, D]`.
        key: `[1, Hkv, N, D]`.
        value: `[1, Hkv, N, Dv]`.
        attention_mask: additive, `[1, 1, G * Q, N]`, from `fold_mask`. Any other shape comes from
            a caller other than our engine and is served by transformers' own `sdpa`.
        dropout: 0 in inference.
        scaling: of the scores; None for the square root of D.
        kwargs: what else transformers passes along.

    Returns:
        `[1, Q, Hkv * G, Dv]`, and None for the attention weights.

    Raises:
        ValueError: the layer wants more than a mask (attention sinks, soft-capped scores).
    """
    for wish in ("s_aux", "softcap", "position_bias"):
        if kwargs.get(wish) is not None:
            raise ValueError(f"{FOLDED} attention knows no `{wish}`")
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    row_groups = getattr(attention_mask, "row_groups", None)
    if row_groups is not None:
        output = query.new_empty(batch, queries, heads, value.shape[-1])
        for group, mask in row_groups:
            begin, end = group.rows
            output[:, begin:end] = folded_attention_forward(
                module,
                query[:, :, begin:end],
                group.of(key, 2),
                group.of(value, 2),
                mask,
                dropout=dropout,
                scaling=scaling,
            )[0]
        return output, None
    groups = heads // kv_heads
    if attention_mask is None or attention_mask.shape[-2] != groups * queries:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, kv_heads, groups * queries, dim),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
    )
    output = output.reshape(batch, heads, queries, value.shape[-1])
    return output.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `FOLDED` known to transformers. Safe to call again."""
    AttentionInterface.register(FOLDED, folded_attention_forward)
    AttentionMaskInterface.register(FOLDED, sdpa_mask)
