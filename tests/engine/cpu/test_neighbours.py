"""What other processes take of the processor, and when it is mentioned."""

from __future__ import annotations

from collections import namedtuple

import psutil
import pytest
import torch

from langchain_pos.engine.cpu import neighbours
from langchain_pos.engine.cpu.neighbours import Neighbours

Linux = namedtuple("Linux", "user nice system idle iowait steal guest guest_nice")
Own = namedtuple("Own", "user system children_user children_system iowait")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine of two cores: `clock`, and seconds of work of `own` and of `others`."""
    seconds = {"clock": 100.0, "own": 50.0, "others": 20.0, "steal": 0.0}

    class Process:
        def cpu_times(self) -> Own:
            return Own(seconds["own"] - 4, 2, 1, 1, 999)

        def children(self, recursive: bool) -> list[Process]:
            return []

    def all_times() -> Linux:
        busy = seconds["own"] + seconds["others"]
        return Linux(busy - 3, 1, 2, 5555, 777, seconds["steal"], 0.5, 0.5)

    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(psutil, "cpu_times", all_times)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(neighbours.time, "perf_counter", lambda: seconds["clock"])
    return seconds


def later(machine: dict[str, float], **more: float) -> None:
    """Time goes by, and work is done."""
    for name, value in more.items():
        machine[name] += value


def test_the_others_share_is_what_is_not_ours(machine: dict[str, float]) -> None:
    """All work less our own, over the time; waiting and guests' time are no work."""
    watch = Neighbours()
    later(machine, clock=10, own=15, others=4, steal=1)
    assert watch.cores() == pytest.approx(0.5)


def test_an_idle_machine_is_not_mentioned(machine: dict[str, float]) -> None:
    """What any system needs is not worth a sentence."""
    watch = Neighbours()
    later(machine, clock=10, own=18, others=2)
    assert watch.warning() is None


def test_a_busy_machine_is_mentioned(machine: dict[str, float]) -> None:
    """With the cores that others used, and what to do."""
    watch = Neighbours()
    later(machine, clock=10, own=10, others=8)
    said = watch.warning()
    assert said is not None
    assert said.startswith("Meanwhile other processes used 0.8 of 2 cores.")
    assert "measure again" in said


def test_free_cores_are_enough(machine: dict[str, float]) -> None:
    """Others on a core that our threads do not use take nothing away: a GPU needs one of two."""
    watch = Neighbours("cuda")
    later(machine, clock=10, own=10, others=8)
    assert watch.warning() is None


def test_more_of_ours_than_of_all_is_nothing(machine: dict[str, float]) -> None:
    """Clocks of different grain cannot yield a negative share; nor can no time at all."""
    watch = Neighbours()
    assert watch.cores() == 0.0
    later(machine, clock=10, own=5, others=-1)
    assert watch.cores() == 0.0


def test_on_this_machine() -> None:
    """The system's own figures can be read."""
    assert Neighbours().cores() >= 0.0
