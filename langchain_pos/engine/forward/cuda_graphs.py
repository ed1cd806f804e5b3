"""Passes of fixed shape, recorded once as CUDA graphs and replayed.

Launching a model's kernels one by one from Python takes longer than a GPU needs to run them. A
CUDA graph launches all of them at once, but only with the shapes and the addresses it was recorded
with. So the rows of a pass, and the slots that attention reads, are rounded up to buckets; a
bucket is recorded when it is first needed, or by `ForwardPass.warm_up`. Rows that only fill up
write to slot 0, which is nobody's, and belong to nobody. All rows look at all slots of the bucket
under the mask, in one part: the parts of `forest/parts.py` have as many shapes as passes.

    rows      1 2 4 8 12 16 24 32 48 64 96 128 192 256 384      more (a prefill): not recorded
    slots     256 512 768 1024 1536 2048 3072 4096 …

So a chunk of a prompt that is fed while others decode (256 tokens at most) leaves their rows in a
recorded pass. A bucket that cannot be recorded runs as it comes from then on.

On another device nothing is recorded: the same shapes and the same padding run as they are, which
is how tests look at them without a GPU.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch

from langchain_pos.engine.forest.segments import NOBODY

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
MOST_SAMPLED = 128
"""Rows whose logits a recorded pass can give: they are kept for every bucket, and wide."""
_FEWEST_SLOTS = 256

_log = logging.getLogger(__name__)

Step = Callable[[torch.Tensor, int], torch.Tensor]
"""A pass on the device: int64 `[5, rows]` (token ids, positions, slots, segments, sampled rows) and
the extent to logits `[rows, vocabulary]`, `MOST_SAMPLED` rows of them at most."""


def slots_bucket(extent: int) -> int:
    """The extent rounded up: to a power of two or one and a half times one, a multiple of 256."""
    upper = max(_FEWEST_SLOTS, 1 << max(extent - 1, 0).bit_length())
    middle = upper // 4 * 3
    return middle if extent <= middle and middle % _FEWEST_SLOTS == 0 else upper


Bucket = tuple[torch.Tensor, Callable[[], torch.Tensor]]
"""Where a recorded pass reads its layout, and what replays it."""


class StepGraphs:
    """Recorded passes of one model.

    Args:
        step: what is recorded. It must not wait for the host, and must be repeatable.
        device: of the model.
        signature: addresses of everything that `step` reads and writes besides its arguments; when
            they change, what was recorded is void.

    Attributes:
        recorded: buckets recorded so far, over all signatures.
        refused: why the last bucket that could not be recorded could not; empty if all could.
    """

    def __init__(
        self, step: Step, device: torch.device, signature: Callable[[], tuple[int, ...]]
    ) -> None:
        self.recorded = 0
        self.refused = ""
        self._step = step
        self._device = device
        self._signature = signature
        self._known: tuple[int, ...] = ()
        self._buckets: dict[tuple[int, int], Bucket | None] = {}  # None: cannot be recorded
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @staticmethod
    def takes(rows: int, sampled: int) -> bool:
        """Whether a pass of so many rows, `sampled` of them sampled from, has a recorded shape."""
        return 0 < rows <= ROWS[-1] and sampled <= MOST_SAMPLED

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        segments: Sequence[int],
        sampled: Sequence[int],
        extent: int,
    ) -> torch.Tensor | None:
        """Run a pass.

        Args:
            tokens: token ids; these and the following three have one entry for each row.
            positions: what RoPE sees.
            slots: where the tokens lie.
            segments: whose they are.
            sampled: rows whose logits are needed, `MOST_SAMPLED` at most.
            extent: a `slots_bucket`.

        Returns:
            logits, the sampled rows first, valid until the next pass; None where this shape cannot
            be recorded.
        """
        rows = ROWS[bisect_left(ROWS, len(tokens))]
        bucket = self._bucket(rows, extent)
        if bucket is None:
            return None
        place, replay = bucket
        columns = [(tokens, 0), (positions, 0), (slots, 0), (segments, NOBODY), (sampled, 0)]
        layout = torch.tensor(
            [[*values, *[filler] * (rows - len(values))] for values, filler in columns],
            dtype=torch.int64,
            pin_memory=self._device.type == "cuda",
        )
        place.copy_(layout, non_blocking=True)
        return replay()

    def prepare(self, rows: int, extent: int) -> bool:
        """Record a bucket unless that is done; whether it could be."""
        return self._bucket(rows, extent) is not None

    def _bucket(self, rows: int, extent: int) -> Bucket | None:
        if self._signature() != self._known:
            self._buckets.clear()
            self._known = self._signature()
        if (rows, extent) not in self._buckets:
            # Rows that are nobody's, all in slot 0: to record is to run once, on nobody's data.
            place = torch.zeros(5, rows, dtype=torch.int64, device=self._device)
            try:
                self._buckets[rows, extent] = place, self._record(place, extent)
                self.recorded += 1
            except RuntimeError as error:  # of memory too
                self._buckets[rows, extent] = None
                self.refused = (str(error) or type(error).__name__).splitlines()[0]
                _log.warning(
                    "a pass of %d rows and %d slots cannot be recorded as a CUDA graph and runs "
                    "as it comes from now on, which is slower: %s",
                    rows,
                    extent,
                    self.refused,
                )
        return self._buckets[rows, extent]

    def _record(self, place: torch.Tensor, extent: int) -> Callable[[], torch.Tensor]:
        if self._device.type != "cuda":
            return lambda: self._step(place, extent)
        # Recording takes the current device's stream, whichever device the model lies on.
        with torch.cuda.device(self._device):
            # Once outside: libraries set themselves up, which cannot be recorded.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._step(place, extent)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = self._step(place, extent)

        def replay() -> torch.Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return logits

        return replay
