"""What stands in for CUDA graphs where there is no GPU: the same memory, again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from langchain_pos.engine.forward.cuda_graphs import StepGraphs


class Recorder:
    """Records a step as a graph would.

    A replay reads its input where it lay, and writes its logits where they lay the last time.
    Between replays there is garbage in them.

    Attributes:
        recorded: shapes recorded so far.
        replays: replays so far.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.replays = 0
        self._written: list[torch.Tensor] = []

    def record(
        self, graphs: StepGraphs, place: torch.Tensor, extent: int
    ) -> Callable[[], torch.Tensor]:
        """Takes the place of `StepGraphs._record`."""
        logits = graphs._step(place, extent).clone()
        logits.fill_(float("nan"))
        self._written.append(logits)
        self.recorded += 1

        def replay() -> torch.Tensor:
            self.replays += 1
            for others in self._written:  # graphs share their memory: a replay spoils the others'
                others.fill_(float("nan"))
            logits.copy_(graphs._step(place, extent))
            return logits

        return replay
