"""The masks of a pass, made from the forest's labels once for all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from langchain_pos.engine.attention import (
    MaskedBatch,
    MaskedPart,
    MaskedPlan,
    carrier,
    fold_mask,
    of_spans,
)
from langchain_pos.engine.forest.parts import Batch, Part, Plan
from langchain_pos.engine.forest.segments import NOBODY, SegmentForest, within
from langchain_pos.engine.forest.slots import PAGE

Pick = Callable[[torch.Tensor], torch.Tensor]
"""Chooses a part's slots `[..., slots]` from a tensor of all slots."""


class PassMasks:
    """What each row of a pass sees, part by part.

    Args:
        plan: the rows and the parts.
        forest: with its labels on the device.
        owner: segment of each row, int32 `[Q]`.
        position: of each row, int32 `[Q]`.
        batch: of the plan's batch, as `Batch.layout` gives it, int64; empty where there is none.
        extent: slots that attention reads, from 0.
        groups: query heads to a key/value head that a mask is folded for; 1 does not fold.
        dtype: of the model.
    """

    def __init__(
        self,
        plan: Plan,
        forest: SegmentForest,
        owner: torch.Tensor,
        position: torch.Tensor,
        batch: Sequence[torch.Tensor],
        *,
        extent: int,
        groups: int,
        dtype: torch.dtype,
    ) -> None:
        self._plan = plan
        self._forest = forest
        self._owner = owner
        self._position = position
        self._extent = extent
        self._groups = groups
        self._dtype = dtype
        parts = (*plan.shared, *plan.alone)
        self._seen = {part: self._part_seen(part) for part in parts}
        self._batch = batch if plan.batch is not None else ()
        if plan.batch is not None:
            self._batch_seen = self._see_batch(plan.batch.shape)

    def broken(self) -> torch.Tensor:
        """Which rows see a token whose keys or values were not finite: bool `[Q]`."""
        found = torch.zeros_like(self._owner, dtype=torch.bool)
        for part, seen in self._seen.items():
            slots = of_spans(self._forest.slot_broken, part.spans, 0)
            found[part.rows[0] : part.rows[1]] |= (seen & slots).any(dim=-1)
        if self._plan.batch is not None:
            _, places, _, _ = self._batch
            slots = self._of_pages(self._forest.slot_broken)
            some = (self._batch_seen & slots[:, None]).any(dim=-1).flatten()
            found[: self._plan.together] |= some[places.clamp(min=0)] & (places >= 0)
        return found

    def mask(self, window: int | None) -> torch.Tensor:
        """The mask that a layer is given, with a sliding window of this width in positions.

        Returns:
            0 where a row sees a slot, minus infinity elsewhere: `[1, 1, (G *) rows, slots]`, or a
            `carrier` of several. `eager` adds its mask, and `sdpa` would turn a bool mask into
            this one in every layer.
        """
        plan = self._plan
        parts = {part: self._masked(part, window) for part in self._seen}
        if plan.parts == 1 and plan.alone and plan.alone[0].spans == ((0, self._extent),):
            only = parts[plan.alone[0]].mask
            if only is not None:
                return only
        masked = MaskedPlan(
            plan.together,
            tuple(parts[part] for part in plan.shared),
            None if plan.batch is None else self._masked_batch(plan.batch, window),
            tuple(parts[part] for part in plan.alone),
        )
        return carrier(masked, self._owner.new_empty(1, 1, len(self._owner), 0, dtype=self._dtype))

    def _part_seen(self, part: Part) -> torch.Tensor:
        begin, end = part.rows
        return self._forest.mask(
            self._owner[begin:end],
            self._position[begin:end],
            of_spans(self._forest.slot_segment, part.spans, 0),
            of_spans(self._forest.slot_position, part.spans, 0),
        )

    def _masked(self, part: Part, window: int | None) -> MaskedPart:
        begin, end = part.rows
        seen = self._seen[part]
        if window:
            slots = of_spans(self._forest.slot_position, part.spans, 0)
            seen = seen & within(window, self._position[begin:end], slots)
        if part in self._plan.shared and seen.device.type == "cpu" and bool(seen.all()):
            # Prefixes are: a kernel without a mask is faster. On a GPU, to ask would be to wait.
            return MaskedPart(part, None, torch.zeros(end - begin))
        # A row that only fills a fixed shape up sees nothing as well.
        nothing = ~seen.any(dim=-1)
        return MaskedPart(part, self._additive((seen | nothing[:, None])[None]), _minus(nothing))

    def _of_pages(self, slots: torch.Tensor) -> torch.Tensor:
        """The batch's slots, `[B, L]`."""
        _, _, pages, lengths = self._batch
        paged: torch.Tensor = slots.unflatten(0, (-1, PAGE))
        return paged.index_select(0, pages).reshape(len(lengths), -1)

    def _see_batch(self, shape: tuple[int, int, int]) -> torch.Tensor:
        """Bool `[B, R, L]`."""
        rows, _, _, lengths = self._batch
        size, _, longest = shape
        segments = self._of_pages(self._forest.slot_segment)
        number = torch.arange(longest * PAGE, device=segments.device)
        filler = number[None] >= PAGE * lengths[:, None]
        return self._forest.mask(
            self._owner[rows].unflatten(0, (size, -1)),
            self._position[rows].unflatten(0, (size, -1)),
            segments.masked_fill(filler, NOBODY),
            self._of_pages(self._forest.slot_position),
        )

    def _masked_batch(self, batch: Batch, window: int | None) -> MaskedBatch:
        rows, places, pages, lengths = self._batch
        seen = self._batch_seen
        if window:
            position = self._position[rows].unflatten(0, (len(lengths), -1))
            slots = self._of_pages(self._forest.slot_position)
            seen = seen & within(window, position, slots)
        nothing = ~seen.any(dim=-1)
        where = places.clamp(min=0)
        return MaskedBatch(
            rows,
            where,
            pages,
            self._additive(seen | nothing[..., None]),
            _minus(nothing.flatten()[where]),
            places < 0 if batch.present < self._plan.together else None,
        )

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        """Bool `[B, rows, slots]` to a mask `[B, 1, (G *) rows, slots]`."""
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=seen.device)
        return fold_mask(mask.masked_fill_(~seen, float("-inf"))[:, None], self._groups)


def _minus(nothing: torch.Tensor) -> torch.Tensor:
    """Minus infinity where true, else 0."""
    zeros = torch.zeros_like(nothing, dtype=torch.float32)
    return zeros.masked_fill_(nothing, float("-inf"))
