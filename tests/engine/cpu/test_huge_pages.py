"""Memory moved to huge pages: what it holds stays, and what cannot be moved is left."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest

from langchain_pos.engine.cpu import huge_pages
from langchain_pos.engine.cpu.huge_pages import move_to_huge_pages

MIB = 1 << 20


def anonymous(size: int) -> mmap.mmap:
    """Memory as an allocator gets it."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address_of(memory: mmap.mmap) -> int:
    """Where a mapping begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_what_the_memory_holds_stays() -> None:
    """Moved or not, every byte is where it was; never more is moved than was asked for."""
    memory = anonymous(9 * MIB)
    memory[:] = bytes(range(256)) * (9 * MIB // 256)
    moved = move_to_huge_pages([(address_of(memory), len(memory))])
    assert 0 <= moved <= 10 * MIB
    assert memory[:] == bytes(range(256)) * (9 * MIB // 256)


def test_pages_of_this_machine_are_really_huge() -> None:
    """As the kernel counts them, where it gives any."""
    if not sys.platform.startswith("linux") or not huge_pages._page_size():
        pytest.skip("this system has no huge pages")
    memory = anonymous(32 * MIB)
    memory[:] = b"x" * len(memory)
    begin = address_of(memory)
    moved = move_to_huge_pages([(begin, len(memory))])
    if not moved:
        pytest.skip("the kernel has no huge page to give")
    assert huge_kib(begin, begin + len(memory)) >= moved // 1024


def huge_kib(begin: int, end: int) -> int:
    """KiB in huge pages of the mappings that have a part of these addresses."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if mapping:
            first, last = (int(address, 16) for address in mapping.groups())
            counts = first < end and last > begin
        elif counts and line.startswith("AnonHugePages:"):
            total += int(line.split()[1])
    return total


def test_small_memory_is_left_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is worth moving from half of it on; neighbours count together."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(huge_pages, "_page_size", lambda: 1000)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda at, size, _: asked.append((at, 0)))
    move_to_huge_pages([(4000, 499), (6100, 300), (6500, 200), (8900, 1200), (0, 0)])
    assert sorted({at for at, _ in asked}) == [6000, 9000]


@pytest.mark.parametrize("enabled", ["always madvise [never]\n", None, "nonsense"])
def test_systems_without_are_left_alone(
    enabled: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The administrator's "never" counts, and so does a kernel that knows no huge pages."""
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    if enabled:
        (tmp_path / "enabled").write_text(enabled, encoding="ascii")
    if enabled != "nonsense":
        (tmp_path / "hpage_pmd_size").write_text("2097152\n", encoding="ascii")
    monkeypatch.setattr(huge_pages, "_madvise", lambda: pytest.fail)
    assert move_to_huge_pages([(1 << 30, 1 << 30)]) == 0


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no madvise with these numbers elsewhere."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages._madvise() is None
    assert move_to_huge_pages([(1 << 30, 1 << 30)]) == 0


def test_memory_that_is_not_there_is_refused_by_the_kernel_and_no_harm() -> None:
    """An address behind everything."""
    assert move_to_huge_pages([(1 << 62, 4 * MIB)]) == 0
