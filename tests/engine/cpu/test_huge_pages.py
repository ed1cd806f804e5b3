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


class Kernel:
    """madvise that takes notes, and has huge pages for all but some addresses."""

    def __init__(self, refused: dict[int, int] | None = None) -> None:
        self.refused = refused or {}
        self.asked: list[tuple[int, int, int]] = []

    def __call__(self, address: int, length: int, advice: int) -> int:
        """-1 for the advice that is refused at this address."""
        self.asked.append((address, length, advice))
        return -1 if self.refused.get(address) == advice else 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A system with huge pages of 1000 bytes."""
    kernel = Kernel()
    monkeypatch.setattr(huge_pages, "_page_size", lambda: 1000)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: kernel)
    return kernel


def test_each_page_is_asked_for_and_then_moved(kernel: Kernel) -> None:
    """In that order, with the numbers of madvise(2); what is moved is counted."""
    assert move_to_huge_pages([(4000, 2000)]) == 2000
    assert kernel.asked == [(4000, 1000, 14), (4000, 1000, 25), (5000, 1000, 14), (5000, 1000, 25)]


def test_pages_that_the_kernel_refuses_do_not_count(kernel: Kernel) -> None:
    """The others are moved all the same; what may not become huge is not moved."""
    kernel.refused = {4000: 14, 5000: 25}
    assert move_to_huge_pages([(4000, 3000)]) == 1000
    assert (4000, 1000, 25) not in kernel.asked
    assert (6000, 1000, 25) in kernel.asked


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise(2) is Linux's")
def test_what_the_memory_holds_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real kernel is asked, and moved or not, every byte is where it was."""
    asked: list[int] = []
    real = huge_pages._madvise()
    assert real is not None

    def madvise(address: int, length: int, advice: int) -> int:
        asked.append(real(address, length, advice))
        return 0  # so that both kinds of advice are given, whatever this kernel has

    monkeypatch.setattr(huge_pages, "_page_size", lambda: 2 * MIB)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: madvise)
    memory = anonymous(9 * MIB)
    memory[:] = bytes(range(256)) * (9 * MIB // 256)
    assert move_to_huge_pages([(address_of(memory), len(memory))]) >= 6 * MIB
    assert len(asked) >= 6
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


def test_small_memory_is_left_where_it_is(kernel: Kernel) -> None:
    """A page is worth moving from half of it on; neighbours count together."""
    memory = [(4000, 499), (6100, 300), (6500, 200), (8900, 1200), (0, 0)]
    assert move_to_huge_pages(memory) == 2000
    assert sorted({address for address, _, _ in kernel.asked}) == [6000, 9000]


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
    kernel = Kernel()
    monkeypatch.setattr(huge_pages, "_madvise", lambda: kernel)
    assert move_to_huge_pages([(1 << 30, 1 << 30)]) == 0
    assert not kernel.asked


def test_a_system_that_gives_them_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size that it names, to those who ask or to all."""
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    (tmp_path / "hpage_pmd_size").write_text("2097152\n", encoding="ascii")
    for enabled in ("always [madvise] never\n", "[always] madvise never\n"):
        (tmp_path / "enabled").write_text(enabled, encoding="ascii")
        kernel = Kernel()
        monkeypatch.setattr(huge_pages, "_madvise", lambda kernel=kernel: kernel)
        assert move_to_huge_pages([(1 << 30, 4 * MIB)]) == 4 * MIB
        assert len(kernel.asked) == 4


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no madvise with these numbers elsewhere, even where a file says otherwise."""
    monkeypatch.setattr(huge_pages, "_page_size", lambda: 2 * MIB)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages._madvise() is None
    assert move_to_huge_pages([(1 << 30, 1 << 30)]) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="madvise(2) is Linux's")
def test_memory_that_is_not_there_is_refused_by_the_kernel_and_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An address beyond everything: the kernel is asked, says no, and nothing counts as moved."""
    monkeypatch.setattr(huge_pages, "_page_size", lambda: 2 * MIB)
    assert move_to_huge_pages([(1 << 62, 4 * MIB)]) == 0
