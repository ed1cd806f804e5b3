"""Huge pages for memory that is read as a whole, repeatedly.

Linux allocates memory in pages of 4 KiB, and a processor caches the addresses of a few thousand of
them: reading a gigabyte of weights, it looks up a quarter of a million. With pages of 2 MiB these
are five hundred. Most systems use such pages only on request ("madvise" in
`/sys/kernel/mm/transparent_hugepage/enabled`). Memory already in use is moved by MADV_COLLAPSE,
since Linux 6.1; before that, MADV_HUGEPAGE alone lets the kernel do so in the background, which
may take minutes. See madvise(2).
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage")
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25


def move_to_huge_pages(memory: Iterable[tuple[int, int]]) -> int:
    """Request huge pages for memory in use; its contents do not change.

    Takes about a third of a second per gigabyte. Has no effect on systems other than Linux, if the
    administrator has set "never", or if the kernel has no huge page left.

    Args:
        memory: addresses and bytes. A page is moved if half of it or more is among them.

    Returns:
        bytes in huge pages now, including those that already were.
    """
    size, advise = _page_size(), _madvise()
    if not size or advise is None:
        return 0
    used: Counter[int] = Counter()
    for address, length in memory:
        for page in range(address // size, -(-(address + length) // size)):
            begin, end = max(address, page * size), min(address + length, (page + 1) * size)
            used[page] += end - begin
    moved = 0
    for page in sorted(page for page, taken in used.items() if 2 * taken >= size):
        # One by one: a page that reaches into unmapped memory is refused, the others are not.
        if advise(page * size, size, _MADV_HUGEPAGE) == 0:
            moved += advise(page * size, size, _MADV_COLLAPSE) == 0
    return moved * size


def _page_size() -> int:
    """Bytes of a huge page; 0 if the system has none."""
    try:
        enabled = (_SYSTEM / "enabled").read_text(encoding="ascii")
        size = int((_SYSTEM / "hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return 0 if "[never]" in enabled else size


def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
