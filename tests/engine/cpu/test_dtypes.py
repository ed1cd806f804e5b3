"""The dtype of a checkpoint on processors that are faked."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import pytest
import torch

from langchain_pos.engine.cpu.dtypes import computes_in_bfloat16, dtype_on_a_cpu


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "mkldnn", "computes"),
    [
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),
        ("x86_64", False, False, True, False),  # oneDNN imitates it with AVX-512
        ("aarch64", False, False, True, True),
        ("arm64", False, False, False, False),
    ],
)
def test_bfloat16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    avx512_bf16: bool,
    amx: bool,
    mkldnn: bool,
    computes: bool,
) -> None:
    """Elsewhere a bfloat16 checkpoint is computed in float32; others stay what they are."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    flag = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: mkldnn)
    monkeypatch.setattr(torch.ops, "mkldnn", flag)
    assert computes_in_bfloat16() is computes
    assert dtype_on_a_cpu(torch.bfloat16) == ("auto" if computes else "float32")
    assert dtype_on_a_cpu(torch.float32) == dtype_on_a_cpu(torch.float16) == "auto"
    assert dtype_on_a_cpu(None) == "auto"
