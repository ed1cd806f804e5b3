"""Weights packed for the CPU's matrix units: the same layers, read faster.

A step of decoding reads every weight once. oneDNN reads a weight that lies in its own blocked
order faster than a row-major one (about 1.4 times on a CPU with AMX, measured by
`benchmarks/roofline`), so bfloat16 `Linear` layers are packed when a model is loaded for the CPU,
and the packed weight takes the place of the ordinary one. Gated MLPs are fused along the way: the
activation and the product ride on the matrix multiplications.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from langchain_pos.errors import UnsupportedModelError

_ROWS_HINT = 16
"""Rows that the blocked order is chosen for; measured good from 1 to 1024 rows."""


class PackedModelError(UnsupportedModelError):
    """A model does not work once its weights are packed: it uses them other than by its layers."""


def can_pack(model: nn.Module) -> bool:
    """Whether packing gains anything: a bfloat16 model on a CPU that multiplies bfloat16."""
    weight = next(model.parameters(), None)
    return (
        weight is not None
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


@torch.inference_mode()
def pack(model: nn.Module) -> int:
    """Pack the linear layers of a bfloat16 model on the CPU, in place.

    The model can then neither be saved nor moved: its ordinary weights are gone, so that it takes
    no more memory than before (but for output layers that share their weight with the input
    embeddings: these keep both).

    Returns:
        how many layers are packed.
    """
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            # Subclasses, of the layer or of its weight's tensor, mean something else: quantised
            # ones are such, and may call themselves bfloat16.
            if type(layer) is nn.Linear and _is_plain(layer.weight):
                setattr(parent, name, PackedLinear(layer))
                count += 1
        if _is_gated_mlp(parent):
            _fuse(parent)
    return count


def _is_plain(weight: torch.Tensor) -> bool:
    return type(weight.data) is torch.Tensor and weight.dtype == torch.bfloat16


class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's order.

    Attributes:
        weight: `[out_features, in_features]`, opaque; shape, dtype and device can be asked for.
        bias: `[out_features]` or None.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # Not a parameter: an opaque tensor can be neither moved nor saved.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_HINT)
        bias: torch.Tensor | None = linear.bias
        self.bias = None if bias is None else bias.detach()

    def forward(self, states: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """`activation(states @ weight.T + bias)`: `[..., in_features]` to `[..., out_features]`."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.weight, self.bias, activation, [], ""
        )
        return out

    def times(self, states: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """`(states @ weight.T + bias) * factor`, in one kernel."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            states, factor, self.weight, self.bias, "mul"
        )
        return out

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "the weights of this model are packed for the CPU and cannot be saved; load it again "
            "with pack_weights=False"
        )

    def extra_repr(self) -> str:
        """As `nn.Linear`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether it computes `down(silu(gate(x)) * up(x))`: by its parts, and by trying it."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = getattr(module, "act_fn", None)
    if not all(isinstance(part, PackedLinear) for part in parts) or activation is None:
        return False
    if len(list(module.parameters(recurse=False))) or len(list(module.children())) > 4:
        return False
    gate: PackedLinear = parts[0]  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(1, 4, gate.in_features, generator=generator).to(torch.bfloat16)
    points = torch.linspace(-4, 4, 33)
    if not torch.allclose(activation(points), nn.functional.silu(points)):
        return False
    try:
        expected = module(states).float()
    except RuntimeError:  # it does something else; whether it works at all, the probe finds out
        return False
    fused = _gated(module, states).float()
    return bool((expected - fused).norm() < 0.02 * expected.norm() + 1e-6)


def _gated(module: Any, states: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = module.down_proj(
        module.up_proj.times(states, module.gate_proj(states, "swish"))
    )
    return out


def _fuse(module: nn.Module) -> None:
    class Fused(type(module)):  # type: ignore[misc]
        """The same module, with its forward fused."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return _gated(self, states)

    Fused.__name__ = Fused.__qualname__ = f"Packed{type(module).__name__}"
    module.__class__ = Fused
