"""Grouped-query attention under the forest's mask, registered with transformers.

transformers' `sdpa` copies every key and value head G times (`repeat_kv`) when a mask is given.
Here the G query heads of a key/value head become rows of one matrix instead,

    query  [1, Hkv * G, Q, D]  →  [1, Hkv, G * Q, D]        key, value  [1, Hkv, N, D]

and only the mask is repeated, once for a pass (`fold_mask`), not once for a layer.

A GPU that has few heads and few rows to work on stays mostly idle so. There the slots can be split
into chunks that are attended to side by side, as if they were a batch, and merged by their
log-sum-exp ("flash decoding"): `SPLIT`. A third way is in `engine/flex.py`. Which one is the
fastest is measured when a model is loaded onto a GPU (`engine/choosing.py`).

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


SPLIT = "langchain_pos_split"
"""Name of the implementation that splits the slots."""
_CHUNK = 64
_MOST_CHUNKS = 16


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


def split_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As `folded_attention_forward`, with the slots in chunks side by side.

    Passes whose slots do not divide into chunks, such as a prefill outside the fixed shapes, are
    not split.
    """
    batch, heads, queries, dim = query.shape
    kv_heads, slots = key.shape[1:3]
    groups = heads // kv_heads
    chunks = 1 if hasattr(attention_mask, "row_groups") else chunks_for(groups * queries, slots)
    if attention_mask is None or attention_mask.shape[-2] != groups * queries or chunks == 1:
        return folded_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    for wish in ("s_aux", "softcap", "position_bias"):
        if kwargs.get(wish) is not None:
            raise ValueError(f"{SPLIT} attention knows no `{wish}`")
    rows = groups * queries
    # 1. Chunks become the batch: [chunks, Hkv, slots / chunks, D], views without a copy.
    q = query.reshape(1, kv_heads, rows, dim).expand(chunks, -1, -1, -1)
    k, v = (x[0].unflatten(1, (chunks, -1)).transpose(0, 1) for x in (key, value))
    mask = attention_mask[0, 0].unflatten(1, (chunks, -1)).transpose(0, 1)[:, None]
    part, lse = _attend(q, k, v, mask.expand(-1, kv_heads, -1, -1), scaling)
    # 2. Where a row sees nothing of a chunk, kernels say NaN, or whatever they like.
    blind = mask.amax(dim=-1).isneginf()
    lse = lse.float().masked_fill(blind, float("-inf"))
    part = part.float().masked_fill(blind[..., None], 0.0)
    # 3. Merge: every chunk counts by its share of the whole row's sum of exponentials.
    output = (part * torch.softmax(lse, dim=0)[..., None]).sum(dim=0, keepdim=True)
    output = output.to(query.dtype)
    output = output.reshape(batch, heads, queries, value.shape[-1])
    return output.transpose(1, 2).contiguous(), None


def chunks_for(rows: int, slots: int) -> int:
    """Chunks for `rows` query rows of a head: many for few rows, each of 64 slots or more."""
    chunks = 1
    while (
        chunks < _MOST_CHUNKS
        and slots % (2 * chunks * _CHUNK) == 0
        and 2 * chunks * max(rows, _CHUNK) <= _MOST_CHUNKS * 4 * _CHUNK
    ):
        chunks *= 2
    return chunks


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that tells its log-sum-exp: `[C, H, Q, Dv]` and `[C, H, Q]`."""
    if query.device.type == "cuda":
        output, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, True, scale=scaling
        )
        return output, lse[..., : query.shape[2]]
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=mask, scale=scaling
    )
    return output, lse


def register() -> None:
    """Make `FOLDED` and `SPLIT` known to transformers. Safe to call again."""
    for name, attend in ((FOLDED, folded_attention_forward), (SPLIT, split_attention_forward)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, sdpa_mask)
