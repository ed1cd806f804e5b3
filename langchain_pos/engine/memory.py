"""Available memory, on each kind of device."""

from __future__ import annotations

import psutil
import torch

from langchain_pos.engine.cpu import cgroups


def available_memory(device: torch.device) -> int:
    """Bytes that can be used on a device without anything else being swapped out or killed.

    Args:
        device: a CPU's respects the container's limit; Apple's GPU shares the CPU's memory.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    allowed = cgroups.memory_left()
    if allowed is not None:
        free = min(free, allowed)
    if device.type == "mps":
        taken = torch.mps.driver_allocated_memory()
        free = min(free, max(torch.mps.recommended_max_memory() - taken, 0))
    return free
