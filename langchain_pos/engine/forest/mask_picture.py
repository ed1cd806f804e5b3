"""The mask of stage 2 as a table, made by the forest and its own rule; for pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from langchain_pos.engine.forest.segments import Ledger, SegmentForest


@dataclass(frozen=True)
class MaskPicture:
    """Who sees whom.

    Attributes:
        owners: for each slot, the segment in it: 0 the trunk, then the branches from 1.
        positions: for each slot, the position that RoPE sees.
        seen: for each slot's token, which slots it sees; `seen[query][slot]`.
    """

    owners: tuple[int, ...]
    positions: tuple[int, ...]
    seen: tuple[tuple[bool, ...], ...]


def belt(trunk: int, branches: Sequence[int], *, first_seen: bool = False) -> MaskPicture:
    """The mask over a trunk and branches that are decoded together, a token of each in a pass.

    Args:
        trunk: tokens of the trunk.
        branches: tokens of each branch; one that is shorter drops out earlier.
        first_seen: the first branch comes before the others, which see it.

    Example:
        >>> [[int(sees) for sees in row] for row in belt(1, [2, 1]).seen]
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    ledger = Ledger()
    slots = trunk + sum(branches)
    forest = SegmentForest(torch.device("cpu"), capacity=max(slots, 1))
    root = forest.root(ledger)
    ahead = branches[0] if first_seen and branches else 0
    forks = [forest.fork(root, at=trunk) for _ in branches[:1]]
    parent = forks[0] if ahead else root
    forks += [forest.fork(parent, at=trunk + ahead) for _ in branches[1:]]
    # In the order in which they are fed: the trunk, then step after step one token of each branch.
    lengths = [length - ahead * (place == 0) for place, length in enumerate(branches)]
    steps = zip_longest(*([fork] * length for fork, length in zip(forks, lengths, strict=True)))
    fed = [root] * trunk + forks[:1] * ahead
    fed += [fork for step in steps for fork in step if fork is not None]
    positions = []
    for segment in fed:
        positions.append(segment.end)
        forest.extend(segment, 1)
    ids = torch.tensor([segment.id for segment in fed], dtype=torch.int32)
    where = torch.tensor(positions, dtype=torch.int32)
    forest.label(torch.arange(slots), ids, where)
    seen = forest.mask(ids, where, forest.slot_segment[:slots], forest.slot_position[:slots])
    place = {segment: number for number, segment in enumerate([root, *forks])}
    return MaskPicture(
        owners=tuple(place[segment] for segment in fed),
        positions=tuple(positions),
        seen=tuple(tuple(row) for row in seen.tolist()),
    )
