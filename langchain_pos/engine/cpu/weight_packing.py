"""Weights packed for the CPU: the same layers, read faster.

A decoding step reads every weight once, so `Linear` layers are rewritten in place when a model is
loaded for the CPU:

1. oneDNN reads weights in its own blocked layout faster than row-major ones: bfloat16 about 1.4
   times with AMX or AVX512-BF16, float32 about 1.6 to 2 times from 8 rows on.
2. Layers that read the same states (queries, keys and values; the gate of an MLP and its up
   projection) become one matrix, because each multiplication has an overhead.
3. The packed weights are put into huge pages, if the system has any: see `huge_pages.py`.

On request, they are rounded to eight bits on the way: see `matrices.py`.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any

import torch
from torch import nn

from langchain_pos.engine.cpu.huge_pages import move_to_huge_pages
from langchain_pos.engine.cpu.int8_kernel import kernel
from langchain_pos.engine.cpu.matrices import Int8Matrix, Matrix
from langchain_pos.errors import ModelLoadError, UnsupportedModelError

_MLP_ROWS = 256
"""Rows of an MLP at a time, so that its intermediate states stay in the processor's cache."""


QUANTIZATIONS = {"int8": Int8Matrix}


class PackedModelError(UnsupportedModelError):
    """A model fails with packed weights, because it uses them other than through its layers."""


def can_pack(model: nn.Module) -> bool:
    """Whether packing helps: on a CPU, in a dtype that oneDNN multiplies there."""
    weight = next(model.parameters(), None)
    return (
        weight is not None
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and _multiplies(weight.dtype)
    )


def _multiplies(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def check_quantization(name: str) -> None:
    """Refuse names other than those of `QUANTIZATIONS`.

    Raises:
        ModelLoadError: with the names that are allowed.
    """
    if name not in QUANTIZATIONS:
        allowed = ", ".join(map(repr, QUANTIZATIONS))
        raise ModelLoadError(
            f"quantization={name!r} is unknown; allowed are {allowed} and None. For others, give "
            "model_kwargs={'quantization_config': …}"
        )


def require_quantization(name: str, model: nn.Module) -> None:
    """Refuse to round weights to eight bits where that is impossible.

    Raises:
        ModelLoadError: the reason, and what to do.
    """
    check_quantization(name)
    weight = next(model.parameters(), None)
    device = "no device" if weight is None else weight.device.type
    if device != "cpu":
        raise ModelLoadError(
            f"quantization={name!r} is for CPUs, and the model is on {device}; give "
            "model_kwargs={'quantization_config': …} there, or device='cpu'"
        )
    kernel()
    if not any(map(_is_plain, model.modules())):
        found = "no parameters" if weight is None else f"weights in {weight.dtype}"
        raise ModelLoadError(
            f"quantization={name!r} rounds linear layers in float32 or bfloat16, and the model has "
            f"none ({found}); load it without, or with dtype='float32' if it is not quantised "
            "already"
        )


def pack(model: nn.Module, quantization: str | None = None) -> int:
    """Pack the linear layers of a model on the CPU, in place.

    The model can then neither be saved nor moved: its original weights are freed, so that it takes
    no more memory than before (except for output layers tied to the input embeddings, which keep
    both).

    Args:
        model: one for which `can_pack` or, with a quantization, `require_quantization` allows it.
        quantization: round the weights, as `require_quantization` says; None keeps them as they
            are.

    Returns:
        the number of packed layers.
    """
    kind = Matrix if quantization is None else QUANTIZATIONS[quantization]
    readers = _readers_of_the_same(model)
    count = 0
    packed: list[Matrix] = []
    with torch.inference_mode():
        for parent in list(model.modules()):
            is_gated = _is_gated_mlp(parent)
            plain = {name for name, layer in parent.named_children() if _is_plain(layer)}
            together = [("gate_proj", "up_proj")] if is_gated else readers.get(parent, [])
            alone = plain.difference(*together)
            for names in [*together, *((name,) for name in sorted(alone))]:
                matrix = kind([getattr(parent, name) for name in names])
                for index, name in enumerate(names):
                    setattr(parent, name, PackedLinear(getattr(parent, name), matrix, index))
                count += len(names)
                packed.append(matrix)
            if is_gated:
                _fuse(parent)
    move_to_huge_pages(matrix.memory() for matrix in packed)
    return count


def coarsest_dtype(model: nn.Module) -> torch.dtype:
    """The dtype in which a model rounds what its layers yield: its own, or its packed layers'."""
    for layer in model.modules():
        if isinstance(layer, PackedLinear) and layer.matrix.rounds_to is not None:
            return layer.matrix.rounds_to
    return next(model.parameters()).dtype


def _is_plain(layer: nn.Module | None) -> bool:
    """Whether it is a plain layer: subclasses of it or of its weight's tensor behave differently.

    Quantised layers are such subclasses, and may report bfloat16.
    """
    return (
        type(layer) is nn.Linear
        and type(layer.weight.data) is torch.Tensor
        and layer.weight.dtype in (torch.bfloat16, torch.float32)
    )


class PackedLinear(nn.Module):
    """A linear layer whose weight is part of a packed matrix.

    Attributes:
        in_features: as in `nn.Linear`.
        out_features: as in `nn.Linear`.
        bias: `[out_features]` or None.
        matrix: the weights of this layer, and of others that read the same states.
    """

    def __init__(self, linear: nn.Linear, matrix: Matrix, index: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias: torch.Tensor | None = linear.bias
        self.bias = None if bias is None else bias.detach()
        self.matrix = matrix
        self._index = index

    @property
    def weight(self) -> torch.Tensor:
        """The whole matrix, opaque except for dtype and device."""
        weight: torch.Tensor = self.matrix.weight
        return weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """`states @ weight.T + bias`: `[..., in_features]` to `[..., out_features]`."""
        return self.matrix.of(self._index, states)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "the weights of this model are packed for the CPU and cannot be saved; load it again "
            "with pack_weights=False, and without quantization"
        )

    def extra_repr(self) -> str:
        """See `nn.Linear`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def _readers_of_the_same(model: nn.Module) -> dict[nn.Module, list[tuple[str, ...]]]:
    """Which layers of a module are called with the same tensor, one after another.

    Found by running two tokens through the model, because names of layers vary.

    Returns:
        the names of such layers by module, grouped.
    """
    parents = {
        layer: (parent, name)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if _is_plain(layer)
    }
    # The tensors are kept alive, so that none reuses the id of another.
    calls: list[tuple[nn.Module, torch.Tensor, int]] = []

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        # The version shows whether the tensor was written to between two calls.
        calls.append((layer, args[0], args[0]._version))

    hooks = [layer.register_forward_pre_hook(note) for layer in parents]
    try:
        with torch.inference_mode(False), torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except Exception:  # noqa: BLE001  the probe finds out whether the model works at all
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    called = Counter(layer for layer, _, _ in calls)
    groups: dict[nn.Module, list[tuple[str, ...]]] = {}
    for (parent, _, _), same in groupby(
        (call for call in calls if called[call[0]] == 1),
        key=lambda call: (parents[call[0]][0], id(call[1]), call[2]),
    ):
        names = tuple(parents[layer][1] for layer, _, _ in same)
        if len(names) > 1:
            groups.setdefault(parent, []).append(names)
    return groups


def _is_gated_mlp(module: nn.Module) -> bool:
    """Whether it computes `down(act(gate(x)) * up(x))`: by its parts, and by trying it."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    activation = getattr(module, "act_fn", None)
    if not all(map(_is_plain, parts)) or not callable(activation):
        return False
    if len(list(module.parameters(recurse=False))) or len(list(module.children())) > 4:
        return False
    gate, up, down = parts
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(1, 4, gate.in_features, generator=generator).to(gate.weight.dtype)  # type: ignore[union-attr]
    try:
        expected = down(activation(gate(states)) * up(states))  # type: ignore[misc]
        return torch.equal(module(states), expected)
    except (RuntimeError, TypeError):  # it computes something else
        return False


def _fuse(module: nn.Module) -> None:
    class Fused(type(module)):  # type: ignore[misc]
        """The same module, with its forward fused."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            done = []
            for block in states.split(_MLP_ROWS, dim=-2):
                gate, up = self.gate_proj.matrix.of_all(block)
                done.append(self.down_proj(self.act_fn(gate).mul_(up)))
            return torch.cat(done, dim=-2) if len(done) > 1 else done[0]

    Fused.__name__ = Fused.__qualname__ = f"Packed{type(module).__name__}"
    module.__class__ = Fused
