"""Passes of fixed shape, recorded once as CUDA graphs and replayed.

Launching a model's kernels one by one from Python takes longer than a GPU needs to run them. A
CUDA graph launches all of them at once, but only with the shapes and the addresses it was recorded
with. So the rows of a pass, and the slots that attention reads, are rounded up to buckets; a
bucket is recorded when it is first needed. Rows that only fill up write to slot 0, which is
nobody's, and belong to nobody.

    rows      1 2 4 8 12 16 24 32 48 64 96 128        more (a prefill): not recorded
    slots     256 512 768 1024 1536 2048 3072 4096 …

On another device nothing is recorded: the same shapes and the same padding run as they are, which
is how tests look at them without a GPU.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch

from langchain_pos.engine.forest.segments import NOBODY

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_FEWEST_SLOTS = 256

Step = Callable[[torch.Tensor, int], torch.Tensor]
"""A pass on the device: int64 `[5, rows]` (token ids, positions, slots, segments, wanted rows) and
the extent to logits `[rows, vocabulary]`."""


def slots_bucket(extent: int) -> int:
    """The extent rounded up: to a power of two or one and a half times one, a multiple of 256."""
    upper = max(_FEWEST_SLOTS, 1 << max(extent - 1, 0).bit_length())
    middle = upper // 4 * 3
    return middle if extent <= middle and middle % _FEWEST_SLOTS == 0 else upper


class StepGraphs:
    """Recorded passes of one model.

    Args:
        step: what is recorded. It must not wait for the host, and must be repeatable.
        device: of the model.
        signature: addresses of everything that `step` reads and writes besides its arguments; when
            they change, what was recorded is void.

    Attributes:
        recorded: buckets recorded so far, over all signatures.
    """

    def __init__(
        self, step: Step, device: torch.device, signature: Callable[[], tuple[int, ...]]
    ) -> None:
        self.recorded = 0
        self._step = step
        self._device = device
        self._signature = signature
        self._known: tuple[int, ...] = ()
        self._replays: dict[tuple[int, int], tuple[torch.Tensor, Callable[[], torch.Tensor]]] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @staticmethod
    def takes(rows: int) -> bool:
        """Whether a pass of so many rows is recorded."""
        return 0 < rows <= ROWS[-1]

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        segments: Sequence[int],
        wanted: Sequence[int],
        extent: int,
    ) -> torch.Tensor:
        """Run a pass.

        Args:
            tokens: token ids; these and the following three have one entry for each row.
            positions: what RoPE sees.
            slots: where the tokens lie.
            segments: whose they are.
            wanted: rows whose logits are wanted, as many as there are rows at most.
            extent: a `slots_bucket`.

        Returns:
            logits, the wanted rows first; valid until the next pass.

        Raises:
            RuntimeError: the model cannot be recorded.
        """
        if self._signature() != self._known:
            self._replays.clear()
            self._known = self._signature()
        rows = ROWS[bisect_left(ROWS, len(tokens))]
        columns = [(tokens, 0), (positions, 0), (slots, 0), (segments, NOBODY), (wanted, 0)]
        layout = torch.tensor(
            [[*values, *[filler] * (rows - len(values))] for values, filler in columns],
            dtype=torch.int64,
            pin_memory=self._device.type == "cuda",
        )
        if (rows, extent) not in self._replays:
            place = layout.to(self._device)
            self._replays[rows, extent] = place, self._record(place, extent)
            self.recorded += 1
        place, replay = self._replays[rows, extent]
        place.copy_(layout, non_blocking=True)
        return replay()

    def _record(self, place: torch.Tensor, extent: int) -> Callable[[], torch.Tensor]:
        if self._device.type != "cuda":
            return lambda: self._step(place, extent)
        # Once outside: libraries set themselves up, which cannot be recorded.
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            self._step(place, extent)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._step(place, extent)

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay
