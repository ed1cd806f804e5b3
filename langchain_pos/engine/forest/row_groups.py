"""Rows of different requests see nothing of each other, so they need not look at each other.

One mask over all rows and all slots is the least work for a single request. For R requests that run
together it is R times as much as they need, and it grows with the square of their number. Then the
rows are attended to group by group, each with the slots of its own request alone. The mask rule is
the same, within the group: which slots are looked at is a matter of time, not of correctness. A
long prompt is cut into groups as well, for its first rows do not see its last ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from langchain_pos.engine.forest.slots import PAGE, Ledger

if TYPE_CHECKING:
    from langchain_pos.engine.forest.segments import Segment, SegmentForest

LEAST_SAVED = {"cpu": 16384, "cuda": 1 << 18}
"""Pairs of a row and a slot that each group must save: a further group costs about as much.

Estimates, not measured: on a CPU from the time of an attention call, on CUDA from the kernels that
a group launches."""

BLOCK = 128
"""Rows of a long prompt that are attended to together."""


@dataclass(frozen=True)
class RowGroup:
    """Rows of a pass that look at the same slots, and at no others.

    Attributes:
        rows: first row, and the one behind the last.
        spans: of slots, each from its first one to the one behind its last.
    """

    rows: tuple[int, int]
    spans: tuple[tuple[int, int], ...]

    @property
    def pairs(self) -> int:
        """Pairs of a row and a slot."""
        return (self.rows[1] - self.rows[0]) * sum(end - begin for begin, end in self.spans)

    def of(self, states: torch.Tensor, dim: int) -> torch.Tensor:
        """The group's slots of a tensor that has all slots along `dim`."""
        parts = [states.narrow(dim, begin, end - begin) for begin, end in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def whole(rows: int, extent: int) -> list[RowGroup]:
    """All rows with all slots."""
    return [RowGroup((0, rows), ((0, extent),))]


def row_groups(
    feeds: Sequence[tuple[Segment, Sequence[int]]],
    slots: Sequence[int],
    forest: SegmentForest,
    least_saved: int,
) -> list[RowGroup]:
    """The rows of a pass by what they may see; in one group where more would save too little.

    Args:
        feeds: segments and their new tokens.
        slots: of all new tokens, in order.
        forest: of the segments.
        least_saved: pairs of a row and a slot that each group must save.
    """
    everything = whole(len(slots), forest.extent)
    held_by: dict[Ledger, Counter[int]] = {}  # a request has a feed for each of its branches
    found: list[tuple[int, int, set[int]]] = []
    closed = True  # nothing may join the last group
    begin = 0
    for index, (segment, new) in enumerate(feeds):
        if segment.owner not in held_by:
            held_by[segment.owner] = Counter[int]()
            for ledger in segment.owner.in_sight():
                held_by[segment.owner].update(ledger.pages)
        held = held_by[segment.owner]
        last = begin + len(new)
        for end in [*range(begin + BLOCK, last - BLOCK + 1, BLOCK), last]:
            later = Counter[int]()
            if end < last:  # rows of a long prompt do not see what comes after them
                later.update(slot // PAGE for slot in slots[end:last])
                for other, tokens in feeds[index + 1 :]:
                    if tokens and other.end - len(tokens) >= segment.end - (last - end):
                        later.update(slot // PAGE for slot in other.slots[-len(tokens) :])
            seen = {page for page, count in held.items() if count > later[page]}
            if not closed and (seen <= found[-1][2] or seen >= found[-1][2]):  # or one's prefix
                found[-1] = (found[-1][0], end, seen | found[-1][2])
            else:
                found.append((begin, end, seen))
            closed = end < last
            begin = end
    groups = [RowGroup((b, e), forest.pool.spans(pages)) for b, e, pages in found if e > b]
    saved = everything[0].pairs - sum(group.pairs for group in groups)
    return groups if saved >= least_saved * len(groups) else everything


def grouped_mask(
    groups: Sequence[RowGroup], masks: Sequence[torch.Tensor], extent: int
) -> torch.Tensor:
    """The mask that a model is given: of the whole pass its own, of groups a carrier of all masks.

    A carrier has no elements, so that a model which does more with its mask than to pass it on
    fails at once.

    Args:
        groups: all rows, in order.
        masks: of each group, additive, `[1, 1, (G *) rows, slots]`.
        extent: slots that there are keys of.
    """
    first = masks[0]
    if list(groups) == whole(groups[-1].rows[1], extent):
        return first
    carrier = first.new_empty(1, 1, groups[-1].rows[1], 0)
    carrier.row_groups = list(zip(groups, masks, strict=True))  # type: ignore[attr-defined]
    return carrier
