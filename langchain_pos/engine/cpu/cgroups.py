"""Limits of the Linux container that we run in: memory and processors, from its cgroups.

The system's own figures are the whole machine's. Version 2 keeps all controllers in one tree,
version 1 one tree for each; an outer group's limits apply to the groups in it. See cgroups(7).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def memory_left() -> int | None:
    """Bytes until the tightest limit; None without a limit.

    The page cache counts as free.
    """
    left = []
    for folder in _folders("memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            left.append(max(limit - max(used - _files_in_memory(folder), 0), 0))
    return min(left, default=None)


def processors() -> float | None:
    """Processors' worth of time that the tightest quota gives; None without a quota."""
    quotas = []
    for folder in _folders("cpu"):
        words = _text(folder / "cpu.max").split()  # "200000 100000", or "max 100000"
        quota, period = words if len(words) == 2 else ("", "")
        quota = quota or _text(folder / "cpu.cfs_quota_us")  # "-1" without one
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(controller: str) -> Iterator[Path]:
    """The groups of this process, and the groups that contain them."""
    mounted = _ROOT / "sys/fs/cgroup"
    for line in _text(_ROOT / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mounted / controller if controllers else mounted
        group = base / path.lstrip("/")  # a path on the host, which may not exist here
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _files_in_memory(folder: Path) -> int:
    stat = dict(line.split(maxsplit=1) for line in _text(folder / "memory.stat").splitlines())
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
