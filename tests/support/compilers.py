"""Whether the product of eight-bit matrices can be compiled and run on this machine."""

from __future__ import annotations

from langchain_pos.engine.cpu.int8_kernel import kernel
from langchain_pos.errors import ModelLoadError


def compiles_here() -> bool:
    """By trying it."""
    try:
        kernel()
    except ModelLoadError:
        return False
    return True
