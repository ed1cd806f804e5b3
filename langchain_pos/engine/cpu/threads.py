"""The number of threads of a forward pass."""

from __future__ import annotations

import os

import torch

from langchain_pos.engine.cpu import cgroups


def limit_threads() -> int:
    """Compute with no more threads than a container's share of the processors.

    PyTorch uses one thread per core of the machine. In a container that may use two of 64, the 64
    threads use up its quota in a moment, and all then wait for the next period. `OMP_NUM_THREADS`
    is respected if set, and the number of threads is never raised.

    Returns:
        the number of threads now in use.
    """
    share, threads = cgroups.processors(), torch.get_num_threads()
    if share is not None and "OMP_NUM_THREADS" not in os.environ:
        fewer = max(int(share), 1)
        if fewer < threads:
            torch.set_num_threads(fewer)
            return fewer
    return threads
