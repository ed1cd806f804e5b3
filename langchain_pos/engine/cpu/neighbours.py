"""What other processes take of the processor while something is measured."""

from __future__ import annotations

import time

import psutil
import torch

NOTICED = 0.25
"""Cores that others may use unmentioned: an idle system needs some, too."""


class Neighbours:
    """Counts the others' processor time from when it is made.

    A virtual machine's time that its host gave to other machines ("steal") counts as theirs.

    Args:
        device: where the model computes. A CPU's pass takes all threads of PyTorch, a GPU's one.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._threads = torch.get_num_threads() if device == "cpu" else 1
        self._began = self._times()

    def cores(self) -> float:
        """Cores that other processes used since, on average."""
        now, all_busy, own = (
            after - before for after, before in zip(self._times(), self._began, strict=True)
        )
        return max(0.0, all_busy - own) / now if now > 0 else 0.0

    def warning(self) -> str | None:
        """What to say of the figures; None if others left a core for each of our threads."""
        count, used = psutil.cpu_count() or 1, self.cores()
        if used < NOTICED or used + self._threads <= count:
            return None
        return (
            f"Meanwhile other processes used {used:.1f} of {count} cores. Each pass waits for its "
            "slowest thread, so measure again when the machine is idle."
        )

    @staticmethod
    def _times() -> tuple[float, float, float]:
        """Seconds on the clock, of all processors' work, and of this process and its children."""
        times = psutil.cpu_times()._asdict()
        # On Linux guests' time is part of `user` and `nice`.
        resting = ("idle", "iowait", "guest", "guest_nice")
        busy = sum(seconds for name, seconds in times.items() if name not in resting)
        this = psutil.Process()
        own = sum(this.cpu_times()[:4])  # with children that have ended
        for child in this.children(recursive=True):
            try:
                own += sum(child.cpu_times()[:4])
            except psutil.NoSuchProcess:  # it ended just now
                continue
        return time.perf_counter(), busy, own
