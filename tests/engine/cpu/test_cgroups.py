"""Containers: what their cgroups allow, read from files that are faked."""

from __future__ import annotations

from pathlib import Path

import pytest

from langchain_pos.engine.cpu import cgroups

UNLIMITED = "9223372036854771712\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty system."""
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    """Files by their path from the root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


def test_version_2_in_a_container(root: Path) -> None:
    """The container sees its own group as the root; cached files count as free."""
    write(
        root,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "700\n",
            "sys/fs/cgroup/memory.stat": "anon 500\ninactive_file 150\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
        },
    )
    assert cgroups.memory_left() == 450
    assert cgroups.processors() == 2.5


def test_version_2_of_a_service(root: Path) -> None:
    """The tightest of the groups around it counts; "max" is no limit."""
    write(
        root,
        {
            "proc/self/cgroup": "0::/system.slice/our.service\n",
            "sys/fs/cgroup/system.slice/our.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/our.service/memory.current": "300\n",
            "sys/fs/cgroup/system.slice/our.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/memory.max": "900\n",
            "sys/fs/cgroup/system.slice/memory.current": "400\n",
            "sys/fs/cgroup/system.slice/cpu.max": "100000 50000\n",
        },
    )
    assert cgroups.memory_left() == 500
    assert cgroups.processors() == 2


def test_version_1_in_a_container(root: Path) -> None:
    """Its path is the host's, which does not exist in it: the root of the tree is its group."""
    write(
        root,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:x:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "2500\n",
            "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 800\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cgroups.memory_left() == 300
    assert cgroups.processors() == 4


def test_version_1_without_limits(root: Path) -> None:
    """They are written as numbers that say nothing."""
    write(
        root,
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (cgroups.memory_left() or 0) > 1 << 60
    assert cgroups.processors() is None


@pytest.mark.parametrize("listed", [None, "", "0::/\n", "nonsense::\n"])
def test_elsewhere_there_are_none(root: Path, listed: str | None) -> None:
    """On macOS and Windows, and on Linux outside of any group."""
    if listed is not None:
        write(root, {"proc/self/cgroup": listed, "sys/fs/cgroup/cpu.max": "a b\n"})
    assert cgroups.memory_left() is None
    assert cgroups.processors() is None


def test_this_machine_can_be_asked() -> None:
    """Whatever it says, it is a number or nothing."""
    assert (cgroups.memory_left() or 1) >= 0
    assert (cgroups.processors() or 1) > 0
