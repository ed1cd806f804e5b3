"""Shares a small machine: one thread while another program keeps a core busy.

Two threads that meet at barriers run at the pace of the slower one; next to a busy process of the
same or a higher priority, a two-core machine trains faster with one thread than with two. Linux
only; no effect elsewhere.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch


def _busy_seconds() -> float:
    """CPU seconds used on the whole machine since it was started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _wait, irq, soft = (int(x) for x in fields[:7])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _own_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


class CoreWatch:
    """Sets torch's threads according to other programs' use since the last check."""

    def __init__(self, pids: list[int], threads: int) -> None:
        self._pids, self._threads = [os.getpid(), *pids], threads
        self._works = threads == 2 and Path("/proc/stat").exists()
        self._last = self._look() if self._works else (0.0, 0.0)

    def _look(self) -> tuple[float, float]:
        return time.monotonic(), _busy_seconds() - _own_seconds(self._pids)

    def adapt(self) -> int:
        """Choose the number of threads for the next steps and return it."""
        if not self._works:
            return self._threads
        now, others = self._look()
        share = (others - self._last[1]) / max(now - self._last[0], 1e-3)
        self._last = (now, others)
        first = os.getpriority(os.PRIO_PROCESS, 0) < 0  # others hardly slow two threads then
        threads = 1 if 0.45 <= share < 1.35 and not first else 2
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return threads
