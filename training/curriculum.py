"""From one short record to thirty long ones, with batches prepared ahead in another process."""

from __future__ import annotations

import multiprocessing
import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from training.packing import Batch, Bucket, Packer

BUCKETS = {
    "tiny": Bucket(16, 160, 352, (1, 4), ("tiny",)),
    "short": Bucket(11, 256, 512, (2, 6), ("tiny", "short")),
    "middle": Bucket(7, 512, 704, (4, 12), ("short", "full", "full")),
    "full": Bucket(4, 1024, 1024, (8, 14), ("full", "full", "full", "short")),
    "many": Bucket(4, 1024, 1024, (12, 24), ("tiny", "short")),
    "long": Bucket(2, 2560, 1280, (20, 32), ("full", "full", "short"), 0.7),
    # Mostly skeletons: a record left out of a long list is the model's most common error.
    "list": Bucket(8, 704, 512, (16, 40), ("tiny",), 0.0, 1.0),
    "roll": Bucket(2, 3072, 640, (24, 40), ("full", "full", "short"), 0.0, 1.0),
}


@dataclass(frozen=True)
class Stage:
    """A mixture of buckets, and when it ends."""

    mixture: dict[str, float]
    gate: float  # share of correct validation branches and skeletons that ends the stage
    latest: float  # share of all steps at which it ends anyway
    bare: float = 0.13

    def next(self, index: int, progress: float, scores: dict[str, float]) -> int:
        """Return the index of the stage to continue with."""
        ready = min(scores.get("branch", 0.0), scores.get("skeleton", 0.0)) >= self.gate
        if index + 1 < len(STAGES) and (ready or progress >= self.latest):
            return index + 1
        return index


STAGES = (
    Stage({"tiny": 1.0}, 0.8, 0.14, 0.12),
    Stage({"tiny": 0.25, "short": 0.75}, 0.9, 0.28, 0.12),
    Stage({"short": 0.3, "middle": 0.7}, 0.93, 0.48),
    Stage({"short": 0.1, "middle": 0.4, "full": 0.4, "many": 0.1}, 0.97, 0.76),
    Stage({"short": 0.05, "middle": 0.3, "full": 0.45, "many": 0.1, "long": 0.1}, 0.97, 0.88),
    Stage({"middle": 0.15, "full": 0.2, "list": 0.3, "long": 0.15, "roll": 0.2}, 2.0, 1.0, 0.08),
)


def batch_for(packer: Packer, seed: int, step: int, stage: int) -> Batch:
    """Return the batch of a step; the same arguments give the same batch."""
    rng = random.Random(f"{seed}-{step}-{stage}")
    mixture = STAGES[stage].mixture
    name = rng.choices(list(mixture), list(mixture.values()))[0]
    return packer.batch(rng.getrandbits(48), BUCKETS[name], STAGES[stage].bare)


def _work(
    tokenizer: str, seed: int, wanted: multiprocessing.Queue, made: multiprocessing.Queue
) -> None:
    packer = Packer(Tokenizer.from_file(tokenizer))
    while True:
        order = wanted.get()
        made.put((order, batch_for(packer, seed, *order)))


class Supply:
    """Batches made one process ahead of the training."""

    def __init__(self, tokenizer: Path, seed: int, ahead: int = 3) -> None:
        context = multiprocessing.get_context("spawn")
        self._wanted: multiprocessing.Queue = context.Queue()
        self._made: multiprocessing.Queue = context.Queue()
        self._ahead = ahead
        self._pending: list[tuple[int, int]] = []
        self._process = context.Process(
            target=_work, args=(str(tokenizer), seed, self._wanted, self._made), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The process that makes the batches."""
        return self._process.pid or 0

    def get(self, step: int, stage: int) -> Batch:
        """Return the batch of a step (steps count up); a new stage begins a few steps late."""
        last = self._pending[-1][0] if self._pending else step - 1
        for later in range(last + 1, step + self._ahead + 1):
            self._pending.append((later, stage))
            self._wanted.put((later, stage))
        order, batch = self._made.get()
        if order != self._pending.pop(0):
            raise RuntimeError(f"Batches arrived out of order: {order}.")
        return batch

    def close(self) -> None:
        """End the process."""
        self._process.terminate()  # it may be waiting to hand over an unused batch
        self._process.join()
