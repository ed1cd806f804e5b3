"""Weights of linear layers: as they are, in oneDNN's layout, or in eight bits.

**Eight bits.** Weights and states become whole numbers from -127 to 127, with a scale of each 64
features of a channel or row, so a pass reads half of what it reads in bfloat16. A scale of a whole
row would be too coarse beside the few states that are a hundred times as large as the others. A
row's result depends on no other row, to the last bit: see `int8.c`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from langchain_pos.engine.cpu.int8_kernel import GROUP, PANEL, kernel

_ROWS_HINT = 16
"""Rows for which the blocked layout is chosen; measured to be good from 1 to 1024 rows."""
_MOST = 127
"""The largest whole number of eight bits that is used."""
_PANELS = 64
"""Panels that are quantised at a time, which takes a few times their size in float32."""


class Matrix:
    """The weights of layers that read the same states, stacked, in oneDNN's layout.

    Args:
        linears: in float32 or bfloat16.

    Attributes:
        weight: `[sum of out_features, in_features]`, opaque except for shape, dtype and device.
            Not a parameter: an opaque tensor can be neither moved nor saved.
        bias: `[sum of out_features]` or None.
        rounds_to: the dtype to which states are rounded; None for their own.
    """

    rounds_to: torch.dtype | None = None

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._sizes = [linear.out_features for linear in linears]
        self.bias = _stacked_bias(linears)
        self.weight = self._pack([linear.weight.detach() for linear in linears])
        self._latest: tuple[torch.Tensor | None, tuple[torch.Tensor, ...]] = (None, ())

    def of_all(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """For each layer `states @ weight.T + bias`, `[..., out_features]`: views of one tensor."""
        out = self._multiply(states)
        return out.split(self._sizes, dim=-1) if len(self._sizes) > 1 else (out,)

    def of(self, index: int, states: torch.Tensor) -> torch.Tensor:
        """The same for one layer; the others' are kept until requested for the same states."""
        asked, parts = self._latest
        if asked is not states:
            parts = self.of_all(states)
        is_last = index == len(self._sizes) - 1
        self._latest = (None, ()) if is_last else (states, parts)
        found: torch.Tensor = parts[index]
        return found

    def memory(self) -> tuple[int, int]:
        """Address and bytes of the weight."""
        return _memory(self.weight)

    def _pack(self, weights: list[torch.Tensor]) -> torch.Tensor:
        """The weights, stacked and packed, as `weight` has them."""
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        return packed

    def _multiply(self, states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, "none", [], ""
        )
        return out


class Int8Matrix(Matrix):
    """The same in eight bits; `weight` has only its shape, dtype and device."""

    rounds_to = torch.bfloat16  # which is about as coarse

    def memory(self) -> tuple[int, int]:
        """See `Matrix`."""
        return self._whole.data_ptr(), self._whole.nbytes

    def _pack(self, weights: list[torch.Tensor]) -> torch.Tensor:
        self._kernel = kernel()
        shape = (sum(map(len, weights)), weights[0].shape[1])
        self._missing = -shape[1] % GROUP
        panels, features = -(-shape[0] // PANEL), shape[1] + self._missing
        new = weights[0].new_empty
        self._whole = new(panels, features // 4, PANEL, 4, dtype=torch.int8)
        self._scales = new(panels, features // GROUP, PANEL, dtype=torch.float32)
        if self.bias is not None:
            self.bias = self.bias.float()
        stacked = torch.cat(weights) if len(weights) > 1 else weights[0]
        for at, some in enumerate(stacked.split(PANEL * _PANELS)):
            whole, scales = quantise(nn.functional.pad(some, (0, self._missing)))
            here = slice(at * _PANELS, (at + 1) * _PANELS)
            below = (0, 0, 0, -len(some) % PANEL)
            whole = nn.functional.pad(whole, below).view(-1, PANEL, features // 4, 4)
            self._whole[here] = whole.transpose(1, 2)
            scales = nn.functional.pad(scales, below).view(-1, PANEL, features // GROUP)
            self._scales[here] = scales.transpose(1, 2)
        return Missing(shape, weights[0].dtype)

    def _multiply(self, states: torch.Tensor) -> torch.Tensor:
        rows = states.reshape(-1, states.shape[-1])
        if self._missing:
            rows = nn.functional.pad(rows, (0, self._missing))
        channels = self.weight.shape[0]
        out = self._kernel(rows.contiguous(), self._whole, self._scales, self.bias, channels)
        return out.view(*states.shape[:-1], channels)


class Missing(torch.Tensor):
    """Stands for a tensor that is not there: with its shape, dtype and device, and nothing else."""

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype) -> Missing:
        """Of this shape and dtype, on the CPU."""
        made: Missing = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: object, *_: object, **__: object
    ) -> None:
        """Refuse any operation."""
        raise RuntimeError(f"{operation} needs weights that are kept in eight bits only")


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers and scales whose product is a weight, to half a scale.

    Args:
        weight: `[out_features, in_features]`; the latter a multiple of 64.

    Returns:
        `[out_features, in_features]` int8, and `[out_features, in_features / 64]` float32.
    """
    groups = weight.float().unflatten(-1, (-1, GROUP))
    scales = groups.abs().amax(dim=-1).div_(_MOST)
    each = scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    whole = (groups / each).round_().clamp_(-_MOST, _MOST)
    return whole.to(torch.int8).flatten(-2), scales


def _stacked_bias(linears: Sequence[nn.Linear]) -> torch.Tensor | None:
    biases: list[torch.Tensor | None] = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            linear.weight.new_zeros(linear.out_features) if bias is None else bias.detach()
            for bias, linear in zip(biases, linears, strict=True)
        ]
    )


def _memory(packed: torch.Tensor) -> tuple[int, int]:
    """Address and bytes of a packed tensor."""
    ops = torch.ops.mkldnn
    # An operator of newer PyTorch versions; huge pages are not worth requiring one.
    address = int(ops.data_ptr(packed)) if hasattr(ops, "data_ptr") else 0
    return (address, int(ops._nbytes(packed))) if address else (0, 0)
