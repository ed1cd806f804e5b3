"""Threads by a container's share of the processors."""

from __future__ import annotations

import pytest
import torch

from langchain_pos.engine.cpu import cgroups
from langchain_pos.engine.cpu.threads import limit_threads


@pytest.mark.parametrize(
    ("share", "explicit", "threads"),
    [
        (2.0, None, 2),
        (2.9, None, 2),
        (0.5, None, 1),
        (200.0, None, 64),  # never more than before
        (None, None, 64),
        (2.0, "64", 64),  # whoever has set it knows better
    ],
)
def test_as_many_threads_as_the_quota_has_processors(
    monkeypatch: pytest.MonkeyPatch, share: float | None, explicit: str | None, threads: int
) -> None:
    """A machine of 64 cores, on which a container may use fewer."""
    used = [64]
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(cgroups, "processors", lambda: share)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if explicit is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", explicit)
    assert limit_threads() == threads
    assert used[-1] == threads
