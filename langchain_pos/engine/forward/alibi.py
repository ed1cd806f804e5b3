"""ALiBi by positions, where transformers counts the tokens in the cache.

ALiBi adds a slope times the key's position to every score; what depends on the query alone, a
softmax does not see. A model that does so has a method that makes the biases of keys 0, 1, 2, …
In its place stands a `SlotBiases`, which has them made for as many positions as there are, and
gives each slot that of its position.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_METHOD = re.compile(r"build_\w*alibi_tensor")


class SlotBiases:
    """Stands in the place of such a method. Outside `by_positions`, it is the method.

    Args:
        own: the model's method; returns `[heads, 1, keys]`.

    Attributes:
        positions: of the slots, int32 `[N]`.
        count: positions that a query may see.
    """

    def __init__(self, own: Any) -> None:
        self._own = own
        self._signature = inspect.signature(own)
        self.positions: torch.Tensor | None = None
        self.count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The biases of the slots, `[heads, 1, N]`."""
        if self.positions is None:
            return self._own(*args, **kwargs)  # type: ignore[no-any-return]
        given = self._signature.bind(*args, **kwargs)
        if "sequence_length" in given.arguments:
            known = int(given.arguments["sequence_length"])
            given.arguments["sequence_length"] = max(known, self.count)
        else:  # a mask of tokens, which it counts
            ones = torch.ones(1, self.count, dtype=torch.int64, device=self.positions.device)
            given.arguments["attention_mask"] = ones
        biases: torch.Tensor = self._own(*given.args, **given.kwargs)
        # A stranger's slot may have a later position; the mask hides it.
        where = self.positions.clamp(max=biases.shape[-1] - 1)
        return biases.index_select(-1, where.to(biases.device))


def place_biases(model: torch.nn.Module) -> list[SlotBiases]:
    """Put a `SlotBiases` in the place of each such method of a model. Safe to call again."""
    found = []
    kinds = {type(module) for module in model.modules()}
    names = {kind: [name for name in dir(kind) if _METHOD.fullmatch(name)] for kind in kinds}
    for module in model.modules():
        for name in names[type(module)]:
            if not isinstance(getattr(module, name), SlotBiases):
                setattr(module, name, SlotBiases(getattr(module, name)))
            found.append(getattr(module, name))
    return found


@contextmanager
def by_positions(
    biases: Sequence[SlotBiases], positions: torch.Tensor, count: int
) -> Iterator[None]:
    """Context in which biases are those of slots at `positions`; see `SlotBiases`."""
    for each in biases:
        each.positions, each.count = positions, count
    try:
        yield
    finally:
        for each in biases:
            each.positions = None
