"""Which slots are free, dealt out in pages.

A request takes whole pages, and free ones behind them are marked for what it will probably still
need. So what it holds lies in one stretch however many requests run beside it, and attention can
read its slots alone, without copying them together (`SlotPool.spans`). Marks are a wish: before
anybody goes without, marked pages are taken, and in the end pages are shared. No slot is lost, and
the mask keeps requests apart all the same. One request by itself gets the lowest slots in order.

    pages      0        1        2        3        4
    slots      AAAAAAAA AAA····· ········ BBBBB··· ········    page 2 is free, marked for A
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_pos.engine.forest.segments import Segment

PAGE = 64
"""Slots of a page."""
ROOM = 1024
"""Slots that a request will probably need beside its prompt."""
_LOOSE = 1.25
"""A span may be so many times as long as the pages in it before it is cut in two."""


@dataclass(eq=False)
class Ledger:
    """What one request holds: its segments and how many slots, now and at most.

    Attributes:
        segments: alive.
        slots: held now.
        peak_slots: held at most.
        pages: those that its slots lie in, and how many of them in each.
        sees: ledgers of segments that its own were forked from.
        expected: slots that it will probably need, at most.
    """

    segments: set[Segment] = field(default_factory=set)
    slots: int = 0
    peak_slots: int = 0
    pages: Counter[int] = field(default_factory=Counter)
    sees: set[Ledger] = field(default_factory=set)
    expected: int = ROOM
    _free: list[int] = field(default_factory=list)  # heap: of the pages that are its own
    _marked: list[range] = field(default_factory=list)  # stretches of pages, the latest last

    def in_sight(self) -> set[Ledger]:
        """Itself and all that it sees, and what these see."""
        found = {self}
        new = self.sees
        while new:
            found |= new
            new = {further for ledger in new for further in ledger.sees} - found
        return found


class SlotPool:
    """The slots that exist, and whose they are.

    Args:
        capacity: slots to begin with.
        max_slots: slots that may ever exist.
        spare: the first so many are never dealt out.

    Attributes:
        capacity: slots that exist now.
        max_slots: slots that may ever exist.
        in_use: slots that are held.
        extent: all slots that are held lie below this one.
    """

    def __init__(self, capacity: int, max_slots: int, spare: int = 0) -> None:
        self.capacity = 0
        self.max_slots = max_slots
        self.in_use = 0
        self.extent = 0
        self._spare = spare
        self._used: list[bool] = []
        self._count: list[int] = []  # slots held of each page
        self._owner: list[Ledger | None] = []  # of each page, while any of its slots are held
        self._mark: list[Ledger | None] = []  # who will probably want the page
        self._grow(min(capacity, max_slots))

    @property
    def free(self) -> int:
        """Slots that nobody holds, of those that may ever exist."""
        return max(self.max_slots - self._spare, 0) - self.in_use

    def _grow(self, capacity: int) -> None:
        before, self.capacity = self.capacity, capacity
        self._used += [False] * (capacity - before)
        last = before // PAGE  # it may have been cut short
        owner = self._owner[last] if before % PAGE else None
        if owner is not None:
            for slot in range(before, min((last + 1) * PAGE, capacity)):
                heapq.heappush(owner._free, slot)
        more = -(-capacity // PAGE) - len(self._owner)
        self._owner += [None] * more
        self._mark += [None] * more
        self._count += [0] * more

    def take(self, ledger: Ledger, count: int) -> list[int]:
        """Hand out `count` of the free slots, more of which may be made.

        Raises:
            IndexError: there are fewer; nothing has been taken.
        """
        if count > self.free:
            raise IndexError(f"{count} slots of {self.free}")
        taken = []
        for _ in range(count):
            while not ledger._free:
                self._take_page(ledger)
            slot = heapq.heappop(ledger._free)
            self._used[slot] = True
            self._count[slot // PAGE] += 1
            ledger.pages[slot // PAGE] += 1
            taken.append(slot)
        if taken:
            self.extent = max(self.extent, max(taken) + 1)
        self.in_use += count
        ledger.slots += count
        ledger.peak_slots = max(ledger.peak_slots, ledger.slots)
        return taken

    def _take_page(self, ledger: Ledger) -> None:
        page = self._marked_page(ledger)
        while page is None:
            page = self._new_stretch(ledger)
            if page is None and self.capacity < self.max_slots:
                self._grow(min(max(2 * self.capacity, PAGE), self.max_slots))
                if ledger._free:  # the page that had been cut short is longer now
                    return
            elif page is None:
                page = self._last_resort()
        self._disown(page)
        self._owner[page] = ledger
        for slot in self._slots(page):
            if not self._used[slot]:
                heapq.heappush(ledger._free, slot)

    def _marked_page(self, ledger: Ledger) -> int | None:
        """The lowest free page marked for it, or behind what is held by one that it sees."""
        for stretch in ledger._marked:
            for page in stretch:
                if self._mark[page] is ledger and self._owner[page] is None:
                    return page
        for other in ledger.sees:
            for stretch in other._marked:
                behind = max((page for page in other.pages if page in stretch), default=-1) + 1
                for page in range(max(behind, stretch.start), stretch.stop):
                    if self._mark[page] is other and self._owner[page] is None:
                        return page
        return None

    def _new_stretch(self, ledger: Ledger) -> int | None:
        """Mark the first stretch of free pages that is long enough; its first page, or None."""
        wanted = max(-(-ledger.expected // PAGE), 1)
        if ledger._marked:  # it has turned out to need more than was expected
            wanted = max(len(ledger.pages), 1)
        if self.capacity == self.max_slots:
            wanted = min(wanted, self._longest_gap())
        begin = 0
        for page in range(len(self._owner)):
            if self._owner[page] is not None or self._mark[page] is not None:
                begin = page + 1
            elif page + 1 - begin >= wanted > 0 and self._size(begin):
                ledger._marked.append(range(begin, page + 1))
                self._mark[begin : page + 1] = [ledger] * (page + 1 - begin)
                return begin
        return None

    def _longest_gap(self) -> int:
        pairs = zip(self._owner, self._mark, strict=True)
        free = groupby(owner is None and mark is None for owner, mark in pairs)
        return max((len(list(gap)) for is_free, gap in free if is_free), default=0)

    def _last_resort(self) -> int:
        """A free page that is marked for another, or what is left of the emptiest page."""
        unowned = (p for p in reversed(range(len(self._owner))) if self._owner[p] is None)
        page = next((p for p in unowned if self._size(p)), None)
        if page is None:
            page = min(range(len(self._owner)), key=lambda p: self._count[p] - self._size(p))
        self._mark[page] = None
        return page

    def give_back(self, ledger: Ledger, slots: Sequence[int]) -> None:
        """Slots that `ledger` holds are free again."""
        for page, group in groupby(slots, key=lambda slot: slot // PAGE):
            freed = list(group)
            for slot in freed:
                self._used[slot] = False
            self._count[page] -= len(freed)
            ledger.pages[page] -= len(freed)
            if not ledger.pages[page]:
                del ledger.pages[page]
            owner = self._owner[page]
            if not self._count[page]:
                self._disown(page)
            elif owner is not None:
                for slot in freed:
                    heapq.heappush(owner._free, slot)
        self.in_use -= len(slots)
        ledger.slots -= len(slots)
        if not ledger.slots:
            for stretch in ledger._marked:
                for page in stretch:
                    if self._mark[page] is ledger:
                        self._mark[page] = None
            ledger._marked = []
        while self.extent and not self._used[self.extent - 1]:
            self.extent -= 1

    def _disown(self, page: int) -> None:
        owner, self._owner[page] = self._owner[page], None
        if owner is not None:
            owner._free = [slot for slot in owner._free if slot // PAGE != page]
            heapq.heapify(owner._free)

    def _slots(self, page: int) -> range:
        return range(max(page * PAGE, self._spare), min((page + 1) * PAGE, self.capacity))

    def _size(self, page: int) -> int:
        return len(self._slots(page))

    def spans(self, pages: Iterable[int]) -> tuple[tuple[int, int], ...]:
        """Stretches of slots that cover `pages`, in order: first slot, and the one behind the last.

        A span may hold a few pages of others, where that saves a cut.
        """
        found: list[list[int]] = []
        for page in sorted(pages):
            begin, end = page * PAGE, min((page + 1) * PAGE, self.extent)
            if found and end - found[-1][0] <= _LOOSE * (found[-1][2] + end - begin):
                found[-1][1:] = [end, found[-1][2] + end - begin]
            else:
                found.append([begin, end, end - begin])
        return tuple((begin, end) for begin, end, _ in found)
