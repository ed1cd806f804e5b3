"""How many threads a forward pass computes with."""

from __future__ import annotations

import os

import torch

from langchain_pos.engine.cpu import cgroups


def limit_threads() -> int:
    """Compute with no more threads than a container's share of the processors.

    PyTorch takes one thread for each core of the machine. In a container that may use two of 64,
    these 64 use up its time in a moment, and all of them then wait for the next period. Whoever
    has set `OMP_NUM_THREADS` is not overruled, and more threads than before are never taken.

    Returns:
        the threads that are used now.
    """
    share, threads = cgroups.processors(), torch.get_num_threads()
    if share is not None and "OMP_NUM_THREADS" not in os.environ:
        fewer = max(int(share), 1)
        if fewer < threads:
            torch.set_num_threads(fewer)
            return fewer
    return threads
