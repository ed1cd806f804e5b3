"""Weights of linear layers in oneDNN's layout: as they are, or in eight bits.

**Eight bits.** A weight becomes a whole number from -127 to 127 times a scale of its output
channel, so a pass reads half of what it reads in bfloat16. A state becomes a whole number of
fifteen bits times a scale of its row, and its upper and lower bits are two rows of eight bits: a
scale of eight bits would be too coarse beside the few states of a row that are a hundred times as
large as the others. Sums of such products are exact, so what a row yields depends on no other row,
nor on how many there are, to the last bit.

**Eight bits in weights alone**, for processors that have no instructions for integers: states are
rounded to bfloat16, and PyTorch's kernel widens the weights while it multiplies. It reads little
and computes much, so it is fast for few rows; for many, weights are widened once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_ROWS_HINT = 16
"""Rows for which the blocked layout is chosen; measured to be good from 1 to 1024 rows."""
_MOST = 127
"""The largest whole number of eight bits that is used."""
_ZERO = 128
"""What is added to a state's bits, as the fast kernels take unsigned states."""
_UPPER = 128
"""What one unit of a state's upper bits counts."""
_WIDENED_ROWS = 40
"""Rows up to which the kernel that widens weights is faster than to widen them beforehand."""
_STEP = 32
"""The kernel reads so many features at a time, and beyond the end of a row that is no multiple."""
_ALIGNED = 64
"""Bytes whose multiples the kernel expects states to begin at."""
_BLOCK = 1024
"""Channels that are widened at a time, so that they stay in the processor's cache."""


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

    def memory(self) -> tuple[int, int]:
        """See `Matrix`."""
        return _memory(self._packed)

    def _pack(self, weights: list[torch.Tensor]) -> torch.Tensor:
        rounded, scales = zip(*map(quantise, weights), strict=True)
        whole = torch.cat(rounded)
        self._scales = torch.cat(scales)
        self._zeros = torch.zeros(len(whole), dtype=torch.int32)
        self._packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
        return Missing(whole.shape, weights[0].dtype)

    def _multiply(self, states: torch.Tensor) -> torch.Tensor:
        rows = states.reshape(-1, states.shape[-1])
        halves, scales = split(rows)
        weight = self._packed, self._scales, self._zeros
        both: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            halves, 1.0, _ZERO, *weight, None, 1.0, 0, torch.float32, "none", [], ""
        )
        upper, lower = both.chunk(2)
        # Multiplied and added in operations of their own, which round alike in every row.
        out = lower.add_(upper, alpha=_UPPER).mul_(scales)
        if self.bias is not None:
            out.add_(self.bias)
        return out.to(states.dtype).view(*states.shape[:-1], -1)


class WidenedInt8Matrix(Matrix):
    """The same in eight bits, which are widened for a multiplication with states in bfloat16.

    Scales are bfloat16, as the kernel wants them, and weights are rounded by these.
    """

    rounds_to = torch.bfloat16

    def memory(self) -> tuple[int, int]:
        """See `Matrix`."""
        return self._rounded.data_ptr(), self._rounded.nbytes

    def _pack(self, weights: list[torch.Tensor]) -> torch.Tensor:
        rounded, scales = zip(
            *(quantise(weight, torch.bfloat16) for weight in weights), strict=True
        )
        self._rounded, self._scales = torch.cat(rounded), torch.cat(scales).bfloat16()
        return Missing(self._rounded.shape, weights[0].dtype)

    def _multiply(self, states: torch.Tensor) -> torch.Tensor:
        rows = states.reshape(-1, states.shape[-1]).bfloat16().contiguous()
        if rows.data_ptr() % _ALIGNED:  # a view; the kernel would crash
            rows = rows.clone()
        if len(rows) <= _WIDENED_ROWS and rows.shape[-1] % _STEP == 0:
            few: torch.Tensor = torch.ops.aten._weight_int8pack_mm(
                rows, self._rounded, self._scales
            )
            out = few.float()
        else:
            exact = rows.float()
            some = [
                torch.nn.functional.linear(exact, block.float())
                for block in self._rounded.split(_BLOCK)
            ]
            out = torch.cat(some, dim=-1).mul_(self._scales).bfloat16().float()
        if self.bias is not None:
            out.add_(self.bias)
        return out.to(states.dtype).view(*states.shape[:-1], -1)


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


def quantise(
    weight: torch.Tensor, precision: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers and scales whose product is a weight, to half a scale.

    Args:
        weight: `[out_features, in_features]`.
        precision: in which the scales can be written without loss.

    Returns:
        `[out_features, in_features]` int8, and `[out_features]` float32.
    """
    exact = weight.float()
    scales = exact.abs().amax(dim=-1).div_(_MOST).clamp_(min=torch.finfo(torch.float32).tiny)
    scales = scales.to(precision).float()
    whole = (exact / scales[:, None]).round_().clamp_(-_MOST, _MOST)
    return whole.to(torch.int8), scales


def split(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper and lower bits of states, and scales: (128 upper + lower) scale is nearly a state.

    Args:
        states: `[rows, features]`.

    Returns:
        `[2 rows, features]` uint8, the upper bits before the lower ones, 128 added to each, and
        `[rows, 1]` float32.
        Where a state is not finite, its row's scale is not finite either.
    """
    exact = states.float()
    scales = exact.abs().amax(dim=-1, keepdim=True).div_(_MOST * _UPPER)
    whole = (exact / scales.clamp(min=torch.finfo(torch.float32).tiny)).round_()
    upper = (whole / _UPPER).round_()
    halves = torch.cat((upper, whole.sub_(upper, alpha=_UPPER)))
    return halves.add_(_ZERO).to(torch.uint8), scales


def sums_exactly() -> bool:
    """Whether the largest products of eight bits are summed without overflow; by trying it."""
    features, channels, largest = 32, 16, 2 * _ZERO - 1
    weight = torch.full((channels, features), _MOST, dtype=torch.int8)
    states = torch.full((1, features), largest, dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    ones, zeros = torch.ones(channels), torch.zeros(channels, dtype=torch.int32)
    found: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        states, 1.0, 0, packed, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return bool((found == features * largest * _MOST).all())


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
