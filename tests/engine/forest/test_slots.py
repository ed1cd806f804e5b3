"""The pool of slots: pages, and that no slot is lost or held twice."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_pos.engine.forest.slots import PAGE, Holder, Region, SlotPool, whole_pages

STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "take", "cut"]), st.integers(0, 3), st.integers(0, 150)),
    max_size=60,
)


@given(
    steps=STEPS,
    capacity=st.integers(0, 300),
    most=st.integers(0, 700),
    spare=st.integers(0, 2),
    expected=st.lists(st.integers(0, 300), min_size=2, max_size=2),
)
@settings(max_examples=150, deadline=None)
def test_no_slot_is_lost_or_held_twice(
    steps: list[tuple[str, int, int]], capacity: int, most: int, spare: int, expected: list[int]
) -> None:
    """Against lists: whatever is taken and given back, by two holders of each of two regions."""
    pool = SlotPool(capacity, most, spare)
    regions = [Region(expected=slots) for slots in expected]
    holders = [Holder() for _ in range(4)]
    held: list[list[int]] = [[] for _ in holders]
    peaks = [0, 0]
    for action, who, count in steps:
        free = set(range(spare, most)) - {slot for slots in held for slot in slots}
        region, holder = regions[who // 2], holders[who]
        assert pool.free == len(free)
        if action == "take" and count > len(free):
            with pytest.raises(IndexError):
                pool.take(region, holder, count)
        elif action == "take":
            taken = pool.take(region, holder, count)
            assert len(set(taken)) == count
            assert set(taken) <= free
            held[who] += taken
        else:
            freed = pool.cut(region, holder, count)
            assert freed == held[who][count:]
            del held[who][count:]
        everything = {slot for slots in held for slot in slots}
        assert pool.in_use == len(everything)
        assert pool.extent <= pool.capacity <= max(most, 0)
        assert pool.extent == max(everything, default=-1) + 1
        for index, region in enumerate(regions):
            slots = len(held[2 * index]) + len(held[2 * index + 1])
            peaks[index] = max(peaks[index], slots)
            assert (region.slots, region.peak_slots) == (slots, peaks[index])
        for holder, slots in zip(holders, held, strict=True):
            assert holder.slots == slots
            assert set(holder.pages) == {slot // PAGE for slot in slots}
            for few in (0, 1, PAGE, len(slots) // 2):
                pages = holder.pages_of(few)
                assert set(pages) == {slot // PAGE for slot in slots[:few]}
                assert list(holder.pages)[: len(pages)] == pages, "the list's beginning"


@given(steps=STEPS, most=st.integers(0, 3000), size=st.integers(1, 90))
@settings(max_examples=80, deadline=None)
def test_states_take_slots_away(steps: list[tuple[str, int, int]], most: int, size: int) -> None:
    """Each holder of tokens holds three states, and one more every 512 tokens up to eight."""
    pool, region = SlotPool(0, most, 0, state_slots=size), Region()
    holders = [Holder() for _ in range(4)]

    def states(tokens: int) -> int:
        return size * (3 + min(tokens // 512, 8)) if tokens else 0

    peak = (0, 0)
    for action, who, count in steps:
        count, holder = 5 * count, holders[who]
        held = len(holder.slots)
        cost = count + states(held + count) - states(held)
        assert pool.cost(held, count) == cost
        if action == "take" and cost > pool.free:
            with pytest.raises(IndexError):
                pool.take(region, holder, count)
        elif action == "take":
            pool.take(region, holder, count)
        else:
            pool.cut(region, holder, count)
        taken = sum(states(len(each.slots)) for each in holders)
        tokens = sum(len(each.slots) for each in holders)
        assert (region.slots, region.states) == (tokens, taken)
        assert pool.free == most - tokens - taken
        peak = max(peak[0], tokens + taken), max(peak[1], taken)
        assert (region.peak_slots, region.peak_states) == peak
    for number in (1, 3):
        room = pool.room(number)
        assert room + pool.states(room, number) <= most
        assert room + 1 + pool.states(room + 1, number) > most


def test_holders_have_pages_of_their_own() -> None:
    """Branches that grow by turns share no page; the pages of their request lie in one region."""
    pool, mine, other = SlotPool(PAGE, 64 * PAGE), Region(expected=8 * PAGE), Region()
    stranger, *branches = (Holder() for _ in range(4))
    pool.take(mine, branches[0], 1)
    pool.take(other, stranger, 3)
    for _ in range(2 * PAGE):
        for branch in branches[1:]:
            pool.take(mine, branch, 1)
    pages = [set(branch.pages) for branch in branches]
    assert [len(some) for some in pages] == [1, 2, 2]
    assert set.union(*pages) == set(range(5)), "and no page twice"
    assert set(stranger.pages) == {8}, "what is marked for others stays theirs"


def test_each_region_lies_in_one_stretch() -> None:
    """Those that grow by turns do not lie between each other's slots, as far as was expected."""
    pool = SlotPool(PAGE, 64 * PAGE)
    regions = [Region(expected=3 * PAGE) for _ in range(3)]
    holders = [Holder() for _ in regions]
    for _ in range(2 * PAGE + 10):
        for region, holder in zip(regions, holders, strict=True):
            pool.take(region, holder, 1)
    assert [sorted(x.pages) for x in holders] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    pool.cut(regions[0], holders[0], 0)
    late = Region(expected=PAGE)
    assert pool.take(late, Holder(), 1) == [0], "what nobody holds any more is not marked either"


def test_who_needs_more_than_expected_goes_on_elsewhere() -> None:
    """A further stretch is as long as what is held so far, so that there are few of them."""
    pool = SlotPool(PAGE, 64 * PAGE)
    regions, holders = [Region(expected=PAGE) for _ in range(2)], [Holder(), Holder()]
    for _ in range(12 * PAGE):
        for region, holder in zip(regions, holders, strict=True):
            pool.take(region, holder, 1)
    for holder in holders:
        pages = sorted(holder.pages)
        cuts = sum(after != page + 1 for page, after in pairwise(pages))
        assert cuts <= 4


def test_behind_what_it_sees() -> None:
    """What stands on a shared prefix lies right after it: one stretch for attention."""
    pool = SlotPool(PAGE, 64 * PAGE)
    prefix, stranger = Region(expected=4 * PAGE), Region(expected=2 * PAGE)
    shared, child = Holder(), Holder()
    pool.take(prefix, shared, PAGE + 5)
    pool.take(stranger, Holder(), 3)
    pool.take(Region(expected=2 * PAGE, sees={prefix}), child, PAGE + 5)
    assert (sorted(shared.pages), sorted(child.pages)) == ([0, 1], [2, 3])


def test_the_last_slots_are_shared_pages() -> None:
    """When memory is short, marks count for nothing, and half-empty pages are filled by others."""
    pool = SlotPool(PAGE, 3 * PAGE)
    mine, other = Region(expected=3 * PAGE), Region(expected=3 * PAGE)
    first, second = Holder(), Holder()
    pool.take(mine, first, PAGE + 1)
    assert pool.take(other, second, 1) == [2 * PAGE]
    rest = pool.take(other, second, 2 * PAGE - 2)
    assert sorted(rest) == [*range(PAGE + 1, 2 * PAGE), *range(2 * PAGE + 1, 3 * PAGE)]
    assert pool.free == 0
    assert set(first.pages) & set(second.pages) == {1}
    pool.cut(mine, first, 0)
    assert sorted(pool.take(mine, first, PAGE + 1)) == list(range(PAGE + 1))


def test_a_limit_inside_a_page_is_kept() -> None:
    """Capacity is in whole pages, but no slot beyond the limit is ever dealt out."""
    pool = SlotPool(1, 2 * PAGE + 3)
    assert pool.capacity == PAGE
    assert sorted(pool.take(Region(), Holder(), 2 * PAGE + 3)) == list(range(2 * PAGE + 3))
    assert (pool.capacity, pool.free) == (2 * PAGE + 3, 0)
    assert whole_pages(pool.extent) == 3 * PAGE
