"""Preallocated keys and values behind transformers' Cache interface.

transformers' attention layers call `cache.update(keys, values, layer_idx)` and attend to what it
returns. Here `update` writes the pass's tokens into their slots and returns a view of all slots
below the extent: nothing is concatenated, nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Pass:
    """Where the tokens of the current forward pass go; shared by all layers."""

    slots: torch.Tensor  # int64 [Q]
    extent: int = 0
    capacity: int = 0


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, `[1, kv_heads, capacity, head_dim]` each."""

    is_sliding = False  # every slot is kept; a sliding window is a matter of the mask

    def __init__(self, current: _Pass) -> None:
        super().__init__()
        self._pass = current

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for the shapes, dtype and device of this layer's first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self._allocate(key_states)
        self.values = self._allocate(value_states)
        self.is_initialized = True

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = states.shape
        # Zeros, not garbage: a masked slot is multiplied by a weight of 0, and 0 * NaN is NaN.
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
        assert self.keys is not None and self.values is not None
        if self.keys.shape[2] < self._pass.capacity:
            self.keys = self._grown(self.keys)
            self.values = self._grown(self.values)
        slots = self._pass.slots.to(self.device)  # a model spread over devices has several
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        return self.keys[:, :, : self._pass.extent], self.values[:, :, : self._pass.extent]

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
        self._pass = _Pass()
        super().__init__(layers=[])

    def begin(self, slots: torch.Tensor, *, extent: int, capacity: int) -> None:
        """Set where the next forward pass writes.

        Args:
            slots: int64 `[Q]`, one slot for each of the pass's tokens.
            extent: slots that attention reads, from 0.
            capacity: slots to keep room for.
        """
        self._pass.slots, self._pass.extent, self._pass.capacity = slots, extent, capacity

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
        assert isinstance(layer, SlotLayer)
        return layer.update(key_states, value_states)

    @torch.inference_mode()
    def overwrite(self, slots: list[int], value: float) -> None:
        """Set keys and values of `slots` in every layer: how tests and the probe look for leaks."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer) and layer.is_initialized:
                assert layer.keys is not None and layer.values is not None
                where = torch.tensor(slots, device=layer.device)
                layer.keys.index_fill_(2, where, value)
                layer.values.index_fill_(2, where, value)

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values of all slots take."""
        return sum(
            tensor.nbytes
            for layer in self.layers
            if isinstance(layer, SlotLayer) and layer.is_initialized
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        )
