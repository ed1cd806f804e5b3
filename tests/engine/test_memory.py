"""Memory that can still be used, on systems that are faked."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from langchain_pos.engine.cpu import cgroups
from langchain_pos.engine.memory import available_memory

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GiB can be used, though only one of them is empty; there is no container."""
    memory = SimpleNamespace(available=8 * GIB, free=1 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(cgroups, "memory_left", lambda: None)


def test_what_only_caches_files_counts_as_available() -> None:
    """On Linux, macOS and Windows alike."""
    assert available_memory(torch.device("cpu")) == 8 * GIB


def test_a_container_may_have_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """And never more than the machine has."""
    monkeypatch.setattr(cgroups, "memory_left", lambda: 3 * GIB)
    assert available_memory(torch.device("cpu")) == 3 * GIB
    monkeypatch.setattr(cgroups, "memory_left", lambda: 1 << 60)
    assert available_memory(torch.device("cpu")) == 8 * GIB


def test_a_graphics_card_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA says is free on that very card."""
    asked = []

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return 40 * GIB, 80 * GIB

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    assert available_memory(torch.device("cuda:1")) == 40 * GIB
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(("taken", "left"), [(1, 5), (7, 0), (0, 6)])
def test_apples_gpu_shares_the_machines(
    monkeypatch: pytest.MonkeyPatch, taken: int, left: int
) -> None:
    """Up to what Metal recommends, and to what is available at all."""
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 6 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: taken * GIB)
    assert available_memory(torch.device("mps")) == left * GIB
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 20 * GIB)
    assert available_memory(torch.device("mps")) == 8 * GIB
