"""Muon for the stacked matrices, AdamW for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

MATRICES = {"qkv": 3, "out": 1, "gate_up": 2, "down": 1}  # name: matrices side by side in one layer


def orthogonalize(update: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices of a stack `(N, rows, columns)`.

    Five Newton-Schulz steps in bf16, as in Muon.
    """
    x = update.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        poly = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, poly, x, beta=3.4445)
    return (x.transpose(1, 2) if tall else x).float()


class Optimizer:
    """One step over the nine stacked tensors of the model.

    Muon's update is scaled by `0.2 * sqrt(max(rows, columns))`, so that it has the size of an
    Adam update and one learning rate serves both.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float = 0.02) -> None:
        self.decay = decay
        self.first = {name: torch.zeros_like(w) for name, w in weights.items()}
        self.second = {
            name: torch.zeros_like(w) for name, w in weights.items() if name not in MATRICES
        }

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the state for a checkpoint."""
        return {"first": self.first, "second": self.second}

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore what `state` returned."""
        for mine, saved in ((self.first, state["first"]), (self.second, state["second"])):
            for name, tensor in mine.items():
                tensor.copy_(saved[name])

    @torch.no_grad()
    def step(
        self, weights: dict[str, Tensor], grads: dict[str, Tensor], rate: float, count: int
    ) -> float:
        """Update `weights` in place with learning rate `rate`; `count` is the step, from 1.

        Returns:
            The norm of the whole gradient, before it was clipped to 1.
        """
        wide = {name: grad.float() for name, grad in grads.items()}
        norm = float(torch.stack([g.norm() for g in wide.values()]).norm())
        clip = min(1.0, 1.0 / (norm + 1e-6))
        for name, weight in weights.items():
            grad = wide[name].mul_(clip)
            if name in MATRICES:
                momentum = self.first[name].lerp_(grad, 0.05)
                update = grad.lerp(momentum, 0.95)
                layers, rows, columns = update.shape
                parts = update.view(layers * MATRICES[name], rows // MATRICES[name], columns)
                scale = 0.2 * max(parts.shape[1:]) ** 0.5
                weight.mul_(1 - rate * self.decay)
                weight.add_(orthogonalize(parts).reshape(weight.shape), alpha=-rate * scale)
            else:
                first = self.first[name].lerp_(grad, 0.1)
                second = self.second[name].lerp_(grad.square(), 0.02)
                step = (first / (1 - 0.9**count)) / ((second / (1 - 0.98**count)).sqrt() + 1e-10)
                weight.add_(step, alpha=-rate)
        return norm
