"""Which dtype this processor computes in."""

from __future__ import annotations

import platform

import torch


def computes_in_bfloat16() -> bool:
    """Whether matrices are multiplied in bfloat16, without conversion to float32 in each step.

    One core with AVX512-BF16, 1, 10 and 30 rows by a packed 896 x 4864 matrix: bfloat16 0.7, 0.9
    and 1.7 ms, float32 1.5, 1.6 and 3.1 ms. Without such instructions float32 is faster.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def dtype_on_a_cpu(stored: torch.dtype | None) -> str:
    """The meaning of "auto" for a checkpoint: its dtype, if the processor computes in it.

    Args:
        stored: the checkpoint's dtype; None if it specifies none.

    Returns:
        a dtype's name, or "auto" for the checkpoint's own.
    """
    return "float32" if stored == torch.bfloat16 and not computes_in_bfloat16() else "auto"
