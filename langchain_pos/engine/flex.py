"""FlexAttention over the slots that some row sees: the third way to attend, for CUDA.

`torch.nn.attention.flex_attention` reads keys and values in blocks of 128 slots. What no row of
the pass sees is not read at all: slots of requests that take no part, free ones, and those that
only round the extent up to its bucket. Blocks that every row sees, which is what a prompt's mostly
are, are read without a mask.

There is no second mask rule. The kernel looks up the `seen` of `segments.visible`, bool
`[rows, slots]`, one byte for a row and a slot; and the lists of blocks are made from it by two
reductions on the device, once for a pass and a kind of layer. All that is part of the pass, so a
recorded CUDA graph makes it anew each time it is replayed.

Layout. FlexAttention's kernel for few queries ("flex decoding") splits the slots over the GPU, but
takes grouped heads only in powers of two, and would hold all rows of a group in one tile. So the
heads of a group lie side by side as a batch that shares its keys and values:

    query  [1, Hkv * G, Q, D]  →  [G, Hkv, P, D]        P: Q rounded up to 16, 32 or 64

All rows of a pass are one block of rows. Smaller ones would leave out other requests' slots, but
read the prompt once for each block of rows; a tile of a tensor core has 16 rows at least.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from langchain_pos.engine.attention import FOLDED, fold_mask, folded_attention_forward
from langchain_pos.engine.graphs import slots_bucket

FLEX = "langchain_pos_flex"
"""Name of the implementation in transformers' registry."""
BLOCK = 128
"""Slots that are read, or left out, together."""
_PADDED_ROWS = (16, 32, 64)
_SHAPES = 1024  # in a process, of all its models

logger = logging.getLogger(__name__)


class ForestBlockMask(BlockMask):
    """The forest's mask in the form of FlexAttention; transformers passes it on to the layers.

    Args:
        seen: which slots each row sees, bool `[Q, N]`, N a multiple of `BLOCK`.
        groups: query heads of a key/value head; the block lists are repeated for each.
        flex: who made it, and attends under it.

    Attributes:
        seen: as given, and nothing for rows Q to P: bool `[P, N]`.
        awake: whether the row sees anything, bool `[P]`.
        lists: how many partial blocks there are and which, and the same of full ones: int32
            `[G, 1, 1]` and `[G, 1, 1, N / BLOCK]`; see `block_lists`.
        rows: Q.
        groups: as given.
        flex: as given.
    """

    ndim = 4  # some models ask, before they pass it on

    def __init__(self, seen: torch.Tensor, groups: int, flex: FlexAttention) -> None:
        self.rows, self.groups, self.flex = len(seen), groups, flex
        padded = next(size for size in _PADDED_ROWS if size >= self.rows)
        self.seen = torch.nn.functional.pad(seen, (0, 0, 0, padded - self.rows))
        self.awake = self.seen.any(dim=1)
        counts, indices = block_lists(self.seen, self.awake)
        counts = counts[:, None, None, None].repeat(1, groups, 1, 1)  # [2, G, 1, 1]
        indices = indices[:, None, None, None].repeat(1, groups, 1, 1, 1)  # [2, G, 1, 1, N / 128]
        self.lists = counts[0], indices[0], counts[1], indices[1]
        super().__init__(**_lists(self.seen, *self.lists))

    def additive(self, dtype: torch.dtype) -> torch.Tensor:
        """The same as `folded_attention_forward` takes it: `[1, 1, G * Q, N]`."""
        hidden = ~(self.seen | ~self.awake[:, None])[: self.rows]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return fold_mask(mask.masked_fill_(hidden, float("-inf"))[None, None], self.groups)


def block_lists(seen: torch.Tensor, awake: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of slots that are read under the mask, and those that are read without it.

    Rows that see nothing have no say in which blocks the others see fully.

    Args:
        seen: bool `[P, N]`, N a multiple of `BLOCK`.
        awake: whether a row sees anything, bool `[P]`.

    Returns:
        how many partial and how many full blocks there are, int32 `[2]`; and their indices,
        int32 `[2, N / BLOCK]`, of which only so many count.
    """
    blocks = seen.unflatten(1, (-1, BLOCK))
    some = blocks.any(dim=2).any(dim=0)
    full = some & (blocks.all(dim=2) | ~awake[:, None]).all(dim=0)
    kinds = torch.stack([some & ~full, full]).int()
    indices = kinds.argsort(dim=1, descending=True, stable=True)
    return kinds.sum(dim=1, dtype=torch.int32), indices.int()


def _lists(
    seen: torch.Tensor,
    partial_counts: torch.Tensor,
    partial: torch.Tensor,
    full_counts: torch.Tensor,
    full: torch.Tensor,
) -> dict[str, Any]:
    """What a `BlockMask` is made of, without the transposed lists of the backward pass."""

    def mask_mod(
        batch: torch.Tensor, head: torch.Tensor, row: torch.Tensor, slot: torch.Tensor
    ) -> torch.Tensor:
        return seen[row, slot]

    return {
        "seq_lengths": (seen.shape[0], seen.shape[1]),
        "kv_num_blocks": partial_counts,
        "kv_indices": partial,
        "full_kv_num_blocks": full_counts,
        "full_kv_indices": full,
        **dict.fromkeys(("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")),
        "BLOCK_SIZE": (seen.shape[0], BLOCK),
        "mask_mod": mask_mod,
    }


class FlexAttention:
    """FlexAttention on one device; given up for good, and said so, where it does not compile.

    Each of the three numbers of rows is compiled for each bucket of slots when it is first needed.

    Args:
        device: of the model. Compiled by inductor on CUDA; elsewhere traced alike and run as torch
            has it, for tests.

    Attributes:
        failed: why it was given up; empty while it works.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = ""
        self._attend = torch.compile(
            _attend,
            backend="inductor" if device.type == "cuda" else "eager",
            fullgraph=True,
            dynamic=False,
        )

    def mask(self, seen: torch.Tensor, groups: int) -> ForestBlockMask | None:
        """The mask of a pass of a fixed shape; None for one that is not for FlexAttention.

        Args:
            seen: which slots each row sees, bool `[Q, N]`.
            groups: query heads of a key/value head.
        """
        rows, slots = seen.shape
        if self.failed or rows > _PADDED_ROWS[-1] or slots != slots_bucket(slots):
            return None
        return ForestBlockMask(seen, groups, self)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: ForestBlockMask,
        scaling: float | None,
    ) -> torch.Tensor | None:
        """Attention under a mask of `mask`.

        Args:
            query: `[1, Hkv * G, Q, D]`.
            key: `[1, Hkv, N, D]`.
            value: `[1, Hkv, N, Dv]`.
            mask: of these rows and slots.
            scaling: of the scores; None for the square root of D.

        Returns:
            `[1, Q, Hkv * G, Dv]`, zeros for a row that sees nothing; None where it has failed.
        """
        arguments = query, key, value, mask.seen, mask.awake, *mask.lists, scaling
        if torch.compiler.is_compiling():  # the whole model is: this becomes a part of it
            return _attend(*arguments)
        if self.failed:
            return None
        try:
            # As many shapes as there are buckets, and not the few that torch has in mind.
            with torch._dynamo.config.patch(
                recompile_limit=_SHAPES, accumulated_recompile_limit=_SHAPES
            ):
                output: torch.Tensor = self._attend(*arguments)
                return output
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  dynamo, inductor and triton raise dozens
            lines = str(error).strip().splitlines()
            self.failed = ": ".join([type(error).__name__, *lines[:1]])
            logger.warning(
                "FlexAttention does not run here (%s); %s takes its place", self.failed, FOLDED
            )
            return None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    awake: torch.Tensor,
    partial_counts: torch.Tensor,
    partial: torch.Tensor,
    full_counts: torch.Tensor,
    full: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """What is compiled. It takes tensors only, so that it is the same function for every pass."""
    _, heads, rows, _ = query.shape
    kv_heads = key.shape[1]
    # 1. [1, Hkv * G, Q, D] → [G, Hkv, P, D]; keys and values are shared along the first.
    batch = query[0].unflatten(0, (kv_heads, heads // kv_heads)).transpose(0, 1)
    batch = torch.nn.functional.pad(batch, (0, 0, 0, seen.shape[0] - rows))
    # 2. Blocks that no row sees are not read.
    block_mask = BlockMask(**_lists(seen, partial_counts, partial, full_counts, full))
    output = flex_attention(batch, key, value, block_mask=block_mask, scale=scaling)
    # 3. A row that sees nothing was given the full blocks, which nobody asked it about.
    output = output.masked_fill(~awake[:, None], 0.0)[:, :, :rows]
    return output.permute(2, 1, 0, 3).reshape(1, rows, heads, value.shape[-1])


def flex_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | ForestBlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As `folded_attention_forward`, under a `ForestBlockMask`.

    Passes outside the fixed shapes, such as a prefill, come with an additive mask and are folded.

    Raises:
        ValueError: the layer wants more than a mask (attention sinks, soft-capped scores).
    """
    if isinstance(attention_mask, ForestBlockMask):
        for wish in ("s_aux", "softcap", "position_bias"):
            if kwargs.get(wish) is not None:
                raise ValueError(f"{FLEX} attention knows no `{wish}`")
        if query.shape[1] != attention_mask.groups * key.shape[1]:
            raise ValueError(
                f"{FLEX} attention was made for {attention_mask.groups} query heads to each of "
                f"the keys' and values', not for {query.shape[1]} to {key.shape[1]}"
            )
        output = attention_mask.flex.attend(query, key, value, attention_mask, scaling)
        if output is not None:
            return output, None
        attention_mask = attention_mask.additive(query.dtype)
    return folded_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


def register() -> None:
    """Make `FLEX` known to transformers. Safe to call again."""
    AttentionInterface.register(FLEX, flex_attention_forward)
    AttentionMaskInterface.register(FLEX, sdpa_mask)
