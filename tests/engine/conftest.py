"""Settings for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from langchain_pos.engine.forward.cuda_graphs import StepGraphs
from tests.support.recorder import Recorder

# Tiny models gain nothing from more, and a busy machine loses much.
torch.set_num_threads(1)


@pytest.fixture
def static_recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Passes of fixed shape are recorded with static buffers, as CUDA graphs have them."""
    recorder = Recorder()

    def record(self: StepGraphs, place: torch.Tensor, extent: int) -> Callable[[], torch.Tensor]:
        return recorder.record(self, place, extent)

    monkeypatch.setattr(StepGraphs, "_record", record)
    return recorder
