"""Which slots are free, dealt out in pages.

A holder (the forest's segments) takes whole pages, so that attention can read its slots alone. The
pages of holders that belong together (a request's segments) lie in one region as far as possible:
free pages after those in use are marked for what the region will probably still need. Marks are a
wish: before anybody goes without, marked pages are taken, and in the end pages are shared. No slot
is lost, and the mask keeps holders apart all the same.

    pages      0        1        2        3        4        5
    slots      AAAAAAAA AAA····· bbb····· ········ CCCCC··· ········
    region     1        1        1        1        2        2          page 3 is marked for region 1
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import groupby

from langchain_pos.engine.forest.state import states_held

PAGE = 16
"""Slots of a page. Half a page is lost for each segment on average. To copy 30 times 200 slots
together takes as long in pages of 16 as in pages of 64, within the noise of the measurement."""
ROOM = 1024
"""Slots that a request will probably need beside its prompt."""


def whole_pages(slots: int) -> int:
    """So many slots, rounded up to pages."""
    return -(-slots // PAGE) * PAGE


@dataclass(eq=False, kw_only=True)
class Region:
    """Holders that belong together: how many slots they hold, and where.

    Attributes:
        slots: held now.
        states: slots that the states of its holders count as now.
        peak_slots: of both together, at most.
        peak_states: of the states alone, at most.
        sees: regions whose slots are read along with its own; it lies after them if it can.
        expected: slots that it will probably need, at most.
    """

    slots: int = 0
    states: int = 0
    peak_slots: int = 0
    peak_states: int = 0
    sees: set[Region] = field(default_factory=set)
    expected: int = ROOM
    _marked: list[range] = field(default_factory=list)  # stretches of pages, the latest last

    @property
    def held(self) -> int:
        """Slots now, those that states count as included."""
        return self.slots + self.states


@dataclass(eq=False, kw_only=True)
class Holder:
    """Who holds slots, and in which pages.

    Attributes:
        slots: in the order in which they were taken.
        pages: those that the slots lie in, and how many of them in each.
    """

    slots: list[int] = field(default_factory=list)
    pages: dict[int, int] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)  # heap: of the pages that are its own

    def pages_of(self, count: int) -> list[int]:
        """The pages of its first `count` slots; the list begins with the pages of fewer."""
        if count >= len(self.slots):
            return list(self.pages)
        return list(dict.fromkeys(slot // PAGE for slot in self.slots[:count]))


class SlotPool:
    """The slots that exist, and whose they are.

    Args:
        capacity: slots to begin with; rounded up to whole pages.
        max_slots: slots that may ever be held.
        spare: the first so many are never dealt out.
        state_slots: slots that take as much memory as one state. What states take is counted in
            slots too, of which there are fewer then.

    Attributes:
        capacity: slots that can be dealt out without making more.
        max_slots: slots that may ever be held.
        in_use: slots that are held.
        for_states: slots that states count as.
        state_slots: slots that one state counts as.
        extent: all slots that are held lie below this one.
    """

    def __init__(self, capacity: int, max_slots: int, spare: int = 0, state_slots: int = 0) -> None:
        self.capacity = 0
        self.max_slots = max_slots
        self.in_use = 0
        self.for_states = 0
        self.extent = 0
        self._spare = spare
        self.state_slots = state_slots
        self._used: list[bool] = []
        self._count: list[int] = []  # slots held of each page
        self._owner: list[Holder | None] = []  # of each page, while any of its slots are held
        self._mark: list[Region | None] = []  # who will probably need the page
        self._grow(capacity)

    @property
    def free(self) -> int:
        """Slots that nobody holds, of those that may ever be held."""
        return self.total - self.in_use - self.for_states

    @property
    def total(self) -> int:
        """Slots for tokens and states together."""
        return max(self.max_slots - self._spare, 0)

    def states(self, tokens: int, holders: int = 1) -> int:
        """Slots that the states of holders count as, with so many tokens in all of them."""
        return self.state_slots * states_held(tokens, holders)

    def cost(self, tokens: int, more: int = 0) -> int:
        """Slots that `more` tokens, and the states with them, take of a holder of `tokens`."""
        return more + self.states(tokens + more) - self.states(tokens)

    def room(self, holders: int) -> int:
        """Tokens that so many holders can have together when nobody else holds any."""
        low, high = 0, self.total
        while low < high:  # the largest that fits; a binary search
            middle = (low + high + 1) // 2
            if middle + self.states(middle, holders) <= self.total:
                low = middle
            else:
                high = middle - 1
        return low

    def _grow(self, capacity: int) -> None:
        """Whole pages; only the last one that may ever exist can be cut short."""
        self.capacity = min(whole_pages(capacity), self.max_slots)
        self._used += [False] * (self.capacity - len(self._used))
        more = whole_pages(self.capacity) // PAGE - len(self._owner)
        self._owner += [None] * more
        self._mark += [None] * more
        self._count += [0] * more

    def take(self, region: Region, holder: Holder, count: int) -> list[int]:
        """Give `holder` `count` of the free slots, more of which may be made.

        Returns:
            the new slots.

        Raises:
            IndexError: there are fewer; nothing has been taken.
        """
        before = len(holder.slots)
        if self.cost(before, count) > self.free:
            raise IndexError(f"{self.cost(before, count)} slots of {self.free}")
        taken = []
        for _ in range(count):
            while not holder._free:
                self._take_page(region, holder)
            slot = heapq.heappop(holder._free)
            page = slot // PAGE
            self._used[slot] = True
            self._count[page] += 1
            holder.pages[page] = holder.pages.get(page, 0) + 1
            taken.append(slot)
        if taken:
            self.extent = max(self.extent, max(taken) + 1)
        holder.slots += taken
        self.in_use += count
        region.slots += count
        self._count_states(region, before, before + count)
        return taken

    def _count_states(self, region: Region, before: int, after: int) -> None:
        """A holder in the region had `before` tokens, and has `after`."""
        more = self.states(after) - self.states(before)
        self.for_states += more
        region.states += more
        region.peak_states = max(region.peak_states, region.states)
        region.peak_slots = max(region.peak_slots, region.slots + region.states)

    def _take_page(self, region: Region, holder: Holder) -> None:
        page = self._marked_page(region)
        while page is None:
            page = self._new_stretch(region)
            if page is None and self.capacity < self.max_slots:
                self._grow(max(2 * self.capacity, PAGE))
            elif page is None:
                page = self._last_resort()
        self._disown(page)
        self._owner[page] = holder
        for slot in self._slots(page):
            if not self._used[slot]:
                heapq.heappush(holder._free, slot)

    def _marked_page(self, region: Region) -> int | None:
        """The lowest free page marked for it, or after what is held of one that it sees."""
        for stretch in region._marked:
            for page in stretch:
                if self._mark[page] is region and self._owner[page] is None:
                    return page
        for other in region.sees:
            for stretch in other._marked:
                free = None
                for page in reversed(stretch):
                    if self._owner[page] is not None:
                        break
                    if self._mark[page] is other:
                        free = page
                if free is not None:
                    return free
        return None

    def _new_stretch(self, region: Region) -> int | None:
        """Mark the first stretch of free pages that is long enough; its first page, or None."""
        needed = max(-(-region.expected // PAGE), 1)
        if region._marked:  # it has turned out to need more than was expected
            needed = region.slots // PAGE + 1
        if self.capacity == self.max_slots:
            needed = min(needed, self._longest_gap())
        begin = 0
        for page in range(len(self._owner)):
            if self._owner[page] is not None or self._mark[page] is not None:
                begin = page + 1
            elif page + 1 - begin >= needed > 0 and self._slots(begin):
                region._marked.append(range(begin, page + 1))
                self._mark[begin : page + 1] = [region] * (page + 1 - begin)
                return begin
        return None

    def _longest_gap(self) -> int:
        pairs = zip(self._owner, self._mark, strict=True)
        free = groupby(owner is None and mark is None for owner, mark in pairs)
        return max((len(list(gap)) for is_free, gap in free if is_free), default=0)

    def _last_resort(self) -> int:
        """A free page that is marked for another, or what is left of the emptiest page."""
        unowned = (p for p in reversed(range(len(self._owner))) if self._owner[p] is None)
        page = next((p for p in unowned if self._slots(p)), None)
        if page is None:
            page = min(range(len(self._owner)), key=lambda p: self._count[p] - len(self._slots(p)))
        self._mark[page] = None
        return page

    def cut(self, region: Region, holder: Holder, keep: int) -> list[int]:
        """Take all slots of `holder` back but its first `keep`; the slots that are free again."""
        freed = holder.slots[keep:]
        before = len(holder.slots)
        del holder.slots[keep:]
        for slot in freed:
            page = slot // PAGE
            self._used[slot] = False
            self._count[page] -= 1
            holder.pages[page] -= 1
            if not holder.pages[page]:
                del holder.pages[page]
            owner = self._owner[page]
            if not self._count[page]:
                self._disown(page)
            elif owner is not None:
                heapq.heappush(owner._free, slot)
        self.in_use -= len(freed)
        region.slots -= len(freed)
        self._count_states(region, before, before - len(freed))
        if not region.slots:
            for stretch in region._marked:
                for page in stretch:
                    if self._mark[page] is region:
                        self._mark[page] = None
            region._marked = []
        while self.extent and not self._used[self.extent - 1]:
            self.extent -= 1
        return freed

    def _disown(self, page: int) -> None:
        owner, self._owner[page] = self._owner[page], None
        if owner is not None:
            owner._free = [slot for slot in owner._free if slot // PAGE != page]
            heapq.heapify(owner._free)

    def _slots(self, page: int) -> range:
        return range(max(page * PAGE, self._spare), min((page + 1) * PAGE, self.capacity))
