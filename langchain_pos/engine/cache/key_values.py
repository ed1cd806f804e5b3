"""Preallocated keys and values behind transformers' Cache interface.

transformers' attention layers call `cache.update(keys, values, layer_idx)` and attend to what it
returns. Here `update` writes the pass's tokens into their slots and returns a view of all slots
below the extent: nothing is concatenated, nothing is copied.

Attention multiplies what a query must not see by a weight of 0, and 0 * NaN is NaN: one request's
NaN would reach all others through the mask. So nothing that is not finite is ever written; the
tokens that it came from are reported instead (`SlotCache.broken`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from langchain_pos.engine.cache.states import PassStates

_FEWEST_SLOTS = 1024
_FEW_ROWS = 64
"""Up to so many rows, one check at the end of a pass is cheaper than one in every layer."""


class _Pass:
    """Where the tokens of the current forward pass go; shared by all layers."""

    slots: torch.Tensor  # int64 [Q]
    health: torch.Tensor  # float32 [Q]: no longer finite once a key or value is not
    unchecked: list[torch.Tensor]  # keys and values as they came, [1, kv_heads, Q, head_dim]
    extent: int = 0
    capacity: int = 0

    def check(self, states: torch.Tensor) -> None:
        """Take note of a layer's keys or values."""
        if len(self.slots) <= _FEW_ROWS:
            self.unchecked.append(states)
        else:  # many rows would hold much memory until the end
            total = states.sum(dim=(0, 1, 3), dtype=torch.float32)
            self.health += total.to(self.health.device)

    def settle(self) -> None:
        """Add what was put off to the health, all layers of one shape at once."""
        by_shape: dict[tuple[torch.Size, torch.device], list[torch.Tensor]] = {}
        for states in self.unchecked:
            by_shape.setdefault((states.shape, states.device), []).append(states)
        for same in by_shape.values():
            total = torch.cat(same).sum(dim=(0, 1, 3), dtype=torch.float32)
            self.health += total.to(self.health.device)
        self.unchecked = []


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, `[1, kv_heads, capacity, head_dim]` each."""

    keys: torch.Tensor
    values: torch.Tensor
    is_sliding = False  # every slot is kept; a sliding window is a matter of the mask

    def __init__(self, current: _Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pass = current

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for the shapes, dtype and device of this layer's first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.is_initialized = True

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = states.shape
        # Zeros, not garbage, which might be NaN.
        return states.new_zeros(1, heads, self._pass.capacity, dim)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `[1, kv_heads, Q, head_dim]` into the pass's slots.

        Returns:
            keys and values of all slots below the extent, `[1, kv_heads, extent, head_dim]`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.grow()
        slots = self._pass.slots.to(self.device)  # a model spread over devices has several
        for kept, states in ((self.keys, key_states), (self.values, value_states)):
            self._pass.check(states)
            kept.index_copy_(2, slots, states.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        return self.keys[:, :, : self._pass.extent], self.values[:, :, : self._pass.extent]

    def grow(self) -> None:
        """Make room for the pass's capacity."""
        if self.keys.shape[2] < self._pass.capacity:
            self.keys = self._grown(self.keys)
            self.values = self._grown(self.values)

    def _grown(self, states: torch.Tensor) -> torch.Tensor:
        grown = self._allocate(states)
        grown[:, :, : states.shape[2]] = states
        return grown

    def get_seq_length(self) -> int:
        """Slots that a query may see; models ask it only for masks and positions that we give."""
        return self._pass.extent

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        return self._pass.extent, 0

    def get_max_length(self) -> int:
        """No maximum: the layer grows with the forest."""
        return -1


class SlotCache(Cache):
    """One `SlotLayer` for every attention layer, made as the model first asks for it."""

    def __init__(self) -> None:
        self.states: PassStates | None = None  # of the current pass, where the model keeps any
        self._least = _FEWEST_SLOTS
        self._pass = _Pass()
        super().__init__(layers=[])

    def allocate(self, slots: int) -> None:
        """Have room for so many slots from the next pass on, so that nothing moves up to there."""
        self._least = max(self._least, slots)

    def begin(self, slots: torch.Tensor, *, extent: int, max_slots: int) -> None:
        """Set where the next forward pass writes.

        Args:
            slots: int64 `[Q]`, one slot for each of the pass's tokens.
            extent: slots that attention reads, from 0.
            max_slots: slots that may ever be needed.
        """
        self._pass.slots, self._pass.extent = slots, extent
        self._pass.health = torch.zeros(len(slots), device=slots.device)
        self._pass.unchecked = []
        self._pass.capacity = self._capacity(extent, max_slots)

    def _capacity(self, extent: int, max_slots: int) -> int:
        """Room for twice as many as before, so that growing is rare.

        It follows from the extent alone: when memory runs out and a request ends, the next pass
        asks for less.
        """
        doubled = min(max(self._least, 1 << max(extent - 1, 0).bit_length()), max_slots)
        return max(doubled, extent)  # which is in whole pages

    def make_room(self, extent: int, max_slots: int) -> None:
        """Grow all layers that a pass with this extent would grow; see `begin`."""
        self._pass.capacity = self._capacity(extent, max_slots)
        for layer in self.layers:
            if isinstance(layer, SlotLayer) and layer.is_initialized:
                layer.grow()

    def addresses(self) -> tuple[int, ...]:
        """Where the keys and values lie."""
        return tuple(states.data_ptr() for states in self._states())

    def broken(self) -> torch.Tensor:
        """Which of the pass's tokens had a key or value that is not finite: bool `[Q]`."""
        self._pass.settle()
        return ~self._pass.health.isfinite()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `SlotLayer.update`."""
        while len(self.layers) <= layer_idx:
            self.layers.append(SlotLayer(self._pass))
        layer = self.layers[layer_idx]
        if not isinstance(layer, SlotLayer):
            raise TypeError(f"layer {layer_idx} of the cache is a {type(layer).__name__}")
        return layer.update(key_states, value_states)

    @torch.inference_mode()
    def overwrite(self, slots: list[int], value: float) -> None:
        """Set keys and values of `slots` in every layer: how tests and the probe look for leaks."""
        for states in self._states():
            states.index_fill_(2, torch.tensor(slots, device=states.device), value)

    def copy_out(self, slots: Sequence[int]) -> list[torch.Tensor]:
        """Copies of the keys and values in `slots`: for each layer, in the order of `copy_in`."""
        where = torch.tensor(slots, dtype=torch.int64)
        return [states.index_select(2, where.to(states.device)) for states in self._states()]

    def copy_in(
        self, slots: Sequence[int], copies: Sequence[torch.Tensor], *, extent: int, max_slots: int
    ) -> None:
        """Write keys and values that were copied out into other slots; see `begin`."""
        self.make_room(extent, max_slots)
        where = torch.tensor(slots, dtype=torch.int64)
        for states, copy in zip(self._states(), copies, strict=True):
            states.index_copy_(2, where.to(states.device), copy)

    @property
    def slot_bytes(self) -> int:
        """Bytes that the keys and values of one slot take, in all layers."""
        return sum(states[:, :, :1].nbytes for states in self._states())

    def _states(self) -> Iterator[torch.Tensor]:
        for layer in self.layers:
            if isinstance(layer, SlotLayer) and layer.is_initialized:
                yield layer.keys
                yield layer.values
