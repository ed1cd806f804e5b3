"""Grouped-query attention under the forest's mask, registered with transformers.

transformers' `sdpa` copies every key and value head G times (`repeat_kv`) when a mask is given.
Here the G query heads of a key/value head become rows of one matrix instead,

    query  [1, Hkv * G, Q, D]  →  [1, Hkv, G * Q, D]        key, value  [1, Hkv, N, D]

and only the mask is repeated, once for a pass (`fold_mask`), not once for a layer.

A pass may be planned in parts (`forest/parts.py`): of rows that look at the same slots. Then the
mask is a `carrier` of the parts' masks. What a row finds in several parts is merged by log-sum-exp:
a softmax over all slots is the parts' softmaxes, each weighted by its share of the exponentials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from langchain_pos.engine.forest.parts import Part
from langchain_pos.engine.forest.slots import PAGE

FOLDED = "langchain_pos_folded"
"""Name of the implementation in transformers' registry."""


@dataclass(frozen=True)
class MaskedPart:
    """A part and its mask.

    Attributes:
        part: rows and slots.
        mask: additive, `[1, 1, G * rows, slots]`; None where every row sees every slot. A row that
            sees nothing in the part sees all of it here: a softmax over nothing would be NaN.
        unseeing: 0, or minus infinity for a row that sees nothing in the part, float32 `[rows]`.
    """

    part: Part
    mask: torch.Tensor | None
    unseeing: torch.Tensor


@dataclass(frozen=True)
class MaskedBatch:
    """A batch of B blocks, padded to R rows and L slots each, and its mask.

    Attributes:
        rows: the row in each place of the batch, int64 `[B * R]`.
        places: where each of the pass's first rows, those that are in several parts, lies in the
            batch; int64 `[rows]`, anywhere for one that does not.
        pages: of all blocks, int64 `[B * L / PAGE]`.
        mask: additive, `[B, 1, G * R, L]`; as in `MaskedPart`.
        unseeing: as in `MaskedPart`.
        absent: which rows are not in the batch, bool `[rows]`; None where all are. What is found in
            their place is another row's, and may be NaN.
    """

    rows: torch.Tensor
    places: torch.Tensor
    pages: torch.Tensor
    mask: torch.Tensor
    unseeing: torch.Tensor
    absent: torch.Tensor | None


@dataclass(frozen=True)
class MaskedPlan:
    """A pass's plan and its masks.

    Attributes:
        together: the first so many rows are in several parts.
        shared: the parts of these rows.
        batch: what else these rows look at.
        alone: parts of the other rows.
    """

    together: int
    shared: tuple[MaskedPart, ...]
    batch: MaskedBatch | None
    alone: tuple[MaskedPart, ...]


def carrier(masks: MaskedPlan, empty: torch.Tensor) -> torch.Tensor:
    """The mask that a model is given of several parts: it carries the parts' masks.

    It has no elements, `[1, 1, Q, 0]`, so that a model which does more with its mask than to pass
    it on fails at once.
    """
    empty.plan = masks  # type: ignore[attr-defined]
    return empty


def fold_mask(mask: torch.Tensor, groups: int) -> torch.Tensor:
    """Repeat a mask `[B, 1, Q, N]` for the query heads of a group: `[B, 1, groups * Q, N]`."""
    return mask.repeat(1, 1, groups, 1) if groups > 1 else mask


def of_spans(states: torch.Tensor, spans: tuple[tuple[int, int], ...], dim: int) -> torch.Tensor:
    """Some slots of a tensor that has all slots along `dim`; a view of one span."""
    parts = [states.narrow(dim, begin, end - begin) for begin, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def of_pages(states: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """The slots of some pages, copied: `[H, P * PAGE, D]` of `states` `[H, N, D]`.

    Args:
        states: a view of the first N slots of a longer tensor.
        pages: int64 `[P]`.
    """
    heads, slots, width = states.shape
    page = PAGE * width
    stride = states.stride(0) // page
    if states.device.type == "cpu" and states.stride() == (stride * page, width, 1):
        # `index_select` of a view with gaps, as between these heads, first copies all of it.
        flat = states.as_strided(((heads - 1) * stride + slots // PAGE, page), (page, 1))
        places = pages + torch.arange(heads)[:, None] * stride
        return flat.index_select(0, places.flatten()).view(heads, -1, width)
    paged: torch.Tensor = states.unflatten(1, (-1, PAGE))
    return paged.index_select(1, pages).flatten(1, 2)


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
        attention_mask: additive, `[1, 1, G * Q, N]`, from `fold_mask`, or a `carrier`. Any other
            shape comes from a caller other than our engine and is served by transformers' own
            `sdpa`.
        dropout: 0 in inference.
        scaling: of the scores; None for one over the square root of D.
        kwargs: what else transformers passes along.

    Returns:
        `[1, Q, Hkv * G, Dv]`, and None for the attention weights.

    Raises:
        ValueError: the layer needs more than a mask (attention sinks, soft-capped scores).
    """
    for extra in ("s_aux", "softcap", "position_bias"):
        if kwargs.get(extra) is not None:
            raise ValueError(f"{FOLDED} attention does not support `{extra}`")
    _, heads, rows, _ = query.shape
    plan: MaskedPlan | None = getattr(attention_mask, "plan", None)
    if plan is not None:
        output = query.new_empty(1, rows, heads, value.shape[-1])
        for masked in plan.alone:
            begin, end = masked.part.rows
            output[:, begin:end] = _dense(
                query[:, :, begin:end],
                of_spans(key, masked.part.spans, 2),
                of_spans(value, masked.part.spans, 2),
                masked.mask,
                scaling,
            )
        if plan.together:
            _merge(query, key, value, plan, scaling, output[0, : plan.together])
        return output, None
    groups = heads // key.shape[1]
    if attention_mask is None or attention_mask.shape[-2] != groups * rows:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return _dense(query, key, value, attention_mask, scaling, dropout), None


def _dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """All rows of `query` with all slots of `key`: `[1, Q, Hkv * G, Dv]`."""
    _, heads, rows, dim = query.shape
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(1, key.shape[1], -1, dim),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return output.reshape(1, heads, rows, value.shape[-1]).transpose(1, 2).contiguous()


def _merge(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: MaskedPlan,
    scaling: float | None,
    output: torch.Tensor,
) -> None:
    """Attention of the rows that are in several parts, written to `output` `[Q, H, Dv]`."""
    found = list(_each_part(query, key, value, plan, scaling))
    heads = query.shape[1]
    sums = query.new_full((len(found), heads, plan.together), float("-inf"), dtype=torch.float32)
    for (begin, end, _, lse), share in zip(found, sums, strict=True):
        share[:, begin:end] = lse
    weights = torch.softmax(sums, dim=0)  # every row sees something in one of the parts: itself
    total = query.new_zeros(heads, plan.together, value.shape[-1], dtype=torch.float32)
    for (begin, end, states, _), weight in zip(found, weights, strict=True):
        total[:, begin:end].addcmul_(states.float(), weight[:, begin:end, None])
    output.copy_(total.transpose(0, 1))


def _each_part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: MaskedPlan,
    scaling: float | None,
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """For each part its rows, its softmax `[H, rows, Dv]`, and its log-sum-exp `[H, rows]`."""
    _, heads, _, dim = query.shape
    kv_heads, wide = key.shape[1], value.shape[-1]
    for masked in plan.shared:
        begin, end = masked.part.rows
        states, lse = _attend(
            query[:, :, begin:end].reshape(1, kv_heads, -1, dim),
            of_spans(key, masked.part.spans, 2),
            of_spans(value, masked.part.spans, 2),
            masked.mask,
            scaling,
        )
        lse = lse.reshape(heads, end - begin) + masked.unseeing
        yield begin, end, states.reshape(heads, end - begin, wide), lse
    batch = plan.batch
    if batch is not None:
        size = batch.mask.shape[0]
        own = query[0].index_select(1, batch.rows).unflatten(1, (size, -1)).transpose(0, 1)
        states, lse = _attend(
            own.reshape(size, kv_heads, -1, dim),
            of_pages(key[0], batch.pages).unflatten(1, (size, -1)).transpose(0, 1),
            of_pages(value[0], batch.pages).unflatten(1, (size, -1)).transpose(0, 1),
            batch.mask,
            scaling,
        )
        states = states.reshape(size, heads, -1, wide).transpose(0, 1).flatten(1, 2)
        lse = lse.reshape(size, heads, -1).transpose(0, 1).flatten(1, 2)
        states = states.index_select(1, batch.places)
        lse = lse.index_select(1, batch.places) + batch.unseeing
        if batch.absent is not None:
            states = states.masked_fill_(batch.absent[:, None], 0.0)
            lse = lse.masked_fill_(batch.absent, float("-inf"))
        yield 0, plan.together, states, lse


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that gives its log-sum-exp: `[B, H, Q, Dv]` and float32 `[B, H, Q]`."""
    if query.device.type == "cuda":
        states, lse, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query,
            key,
            value,
            None if mask is None else mask.expand(-1, key.shape[1], -1, -1),
            True,
            scale=scaling,
        )
        return states, lse[..., : query.shape[2]]
    if query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
        states, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scaling
        )
        return states, lse
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1).to(value.dtype) @ value, scores.logsumexp(dim=-1)


def register() -> None:
    """Make `FOLDED` known to transformers. Safe to call again."""
    AttentionInterface.register(FOLDED, folded_attention_forward)
    AttentionMaskInterface.register(FOLDED, sdpa_mask)
