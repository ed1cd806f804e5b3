"""Accuracy, by teacher forcing, on problems with names and words that training never uses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.curriculum import BUCKETS
from training.model import Shape, Weights
from training.packing import APART, FINAL, KIND_NAMES, TITLE, VALUE, YES_NO, Batch, Packer

_SEED = 999_000_000
_CHECKED = (
    ("tiny",),
    ("short",),
    ("short", "middle"),
    ("middle", "full"),
    ("full", "long"),
    ("full", "roll"),
)


def score(batch: Batch, hits: np.ndarray) -> dict[str, list[bool]]:
    """Sort hits by token kind, and find the segments that are entirely correct.

    Args:
        batch: as given to the model.
        hits: `(B, F)` bool, which targets were the most likely token.
    """
    found: dict[str, list[bool]] = defaultdict(list)
    asked = batch.weights > 0
    for kind in (VALUE, YES_NO, TITLE, FINAL):
        found[f"{KIND_NAMES[kind]}_token"] = hits[asked & (batch.kinds == kind)].tolist()
    segments = batch.segments[:, batch.root :]
    for row in range(len(segments)):
        for index in range(1, segments[row].max() + 1):
            here = (segments[row] == index) & asked[row]
            if not here.any():
                continue
            kinds, right = batch.kinds[row][here], hits[row][here]
            parent = batch.parents[row][here][0]
            if FINAL in kinds:
                name = "sequential"
                found["conclusion"].append(bool(right[kinds == FINAL].all()))
            elif TITLE in kinds:
                name = "skeleton"
            elif parent == APART:
                name = "bare"
            elif YES_NO in kinds or VALUE in kinds:
                name = "branch"
                found["copied"].append(bool(right[kinds == VALUE].all()))
            else:
                name = "preamble"
            found[name].append(bool(right.all()))
    return found


class Validation:
    """Scores weights on a few fixed batches per stage of the curriculum."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        shape: Shape,
        run: Callable[..., tuple[Tensor, Tensor]],
        to_inputs: Callable[[Batch], tuple[Tensor | int, ...]],
    ) -> None:
        self._packer = Packer(tokenizer, held_out=True)
        self._shape, self._run, self._to_inputs = shape, run, to_inputs

    def __call__(self, weights: Weights, stage: int, batches: int = 3) -> dict[str, float]:
        """Return shares of correct tokens and segments, for the stage's hardest problems."""
        totals: dict[str, list[bool]] = defaultdict(list)
        for name in _CHECKED[stage]:
            for index in range(batches):
                batch = self._packer.batch(_SEED + index, BUCKETS[name])
                with torch.no_grad():
                    _, hits = self._run(weights, self._shape, *self._to_inputs(batch))
                for key, values in score(batch, hits.cpu().numpy()).items():
                    totals[key] += values
        return {key: round(sum(v) / len(v), 4) for key, v in sorted(totals.items()) if v}
