"""The pool of slots: pages, and that no slot is lost or held twice."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_pos.engine.forest.slots import PAGE, Ledger, SlotPool

STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "take", "give"]), st.integers(0, 3), st.integers(0, 150)),
    max_size=60,
)


@given(
    steps=STEPS,
    capacity=st.integers(0, 300),
    most=st.integers(0, 700),
    spare=st.integers(0, 2),
    expected=st.lists(st.integers(0, 300), min_size=4, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_no_slot_is_lost_or_held_twice(
    steps: list[tuple[str, int, int]], capacity: int, most: int, spare: int, expected: list[int]
) -> None:
    """Against sets: whatever is taken and given back, in whichever order."""
    pool = SlotPool(capacity, most, spare)
    ledgers = [Ledger(expected=slots) for slots in expected]
    held: dict[int, list[int]] = {index: [] for index in range(4)}
    peaks = [0] * 4
    for action, who, count in steps:
        everything = {slot for slots in held.values() for slot in slots}
        free = set(range(spare, most)) - everything
        assert pool.free == len(free)
        if action == "take" and count > len(free):
            with pytest.raises(IndexError):
                pool.take(ledgers[who], count)
        elif action == "take":
            taken = pool.take(ledgers[who], count)
            assert len(set(taken)) == count
            assert set(taken) <= free
            held[who] += taken
        else:
            freed, held[who] = held[who][::2][:count], list(held[who])
            held[who] = [slot for slot in held[who] if slot not in set(freed)]
            pool.give_back(ledgers[who], freed)
        everything = {slot for slots in held.values() for slot in slots}
        assert pool.in_use == len(everything)
        assert pool.extent <= pool.capacity <= max(most, capacity)
        assert pool.extent == max(everything, default=-1) + 1
        for index, ledger in enumerate(ledgers):
            slots = held[index]
            peaks[index] = max(peaks[index], len(slots))
            assert (ledger.slots, ledger.peak_slots) == (len(slots), peaks[index])
            assert set(ledger.pages) == {slot // PAGE for slot in slots}
            covered = {s for begin, end in pool.spans(ledger.pages) for s in range(begin, end)}
            assert set(slots) <= covered
            assert max(covered, default=-1) < pool.extent


def test_each_lies_in_one_stretch() -> None:
    """Those that grow by turns do not lie between each other's slots, as far as was expected."""
    pool = SlotPool(PAGE, 64 * PAGE)
    mine, other, third = (Ledger(expected=3 * PAGE) for _ in range(3))
    for _ in range(2 * PAGE + 10):
        for ledger in (mine, other, third):
            pool.take(ledger, 1)
    assert [sorted(x.pages) for x in (mine, other, third)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    pool.give_back(other, list(range(3 * PAGE, 4 * PAGE)))
    assert min(pool.take(other, PAGE)) == 3 * PAGE, "its lowest free slots come first"
    pool.give_back(mine, list(range(2 * PAGE + 10)))
    late = Ledger(expected=PAGE)
    assert pool.take(late, 1) == [0], "what nobody holds any more is not marked either"


def test_who_needs_more_than_expected_goes_on_elsewhere() -> None:
    """A further stretch is as long as what is held so far, so that there are few of them."""
    pool, mine, other = SlotPool(PAGE, 64 * PAGE), Ledger(expected=PAGE), Ledger(expected=PAGE)
    for _ in range(6 * PAGE):
        pool.take(mine, 1)
        pool.take(other, 1)
    assert len(pool.spans(mine.pages)) <= 4
    assert len(pool.spans(other.pages)) <= 4


def test_behind_what_it_sees() -> None:
    """What stands on a shared prefix lies right behind it: one stretch for attention."""
    pool = SlotPool(PAGE, 64 * PAGE)
    prefix, stranger = Ledger(expected=4 * PAGE), Ledger(expected=2 * PAGE)
    child = Ledger(expected=2 * PAGE, sees={prefix})
    pool.take(prefix, PAGE + 5)
    pool.take(stranger, 3)
    pool.take(child, PAGE + 5)
    assert sorted(child.pages) == [2, 3]
    assert pool.spans([*prefix.pages, *child.pages]) == ((0, 4 * PAGE),)
    assert child.in_sight() == {child, prefix}


def test_the_last_slots_are_shared_pages() -> None:
    """When memory is short, marks count for nothing, and half-empty pages are filled by others."""
    pool = SlotPool(PAGE, 3 * PAGE)
    mine, other = Ledger(expected=3 * PAGE), Ledger(expected=3 * PAGE)
    pool.take(mine, PAGE + 1)
    assert pool.take(other, 1) == [2 * PAGE]
    rest = pool.take(other, 2 * PAGE - 2)
    assert sorted(rest) == [*range(PAGE + 1, 2 * PAGE), *range(2 * PAGE + 1, 3 * PAGE)]
    assert pool.free == 0
    assert set(mine.pages) & set(other.pages) == {1}
    pool.give_back(mine, list(range(PAGE + 1)))
    assert sorted(pool.take(mine, PAGE + 1)) == list(range(PAGE + 1))


def test_spans_leave_small_gaps_in() -> None:
    """Few long spans are better than many short ones; what lies far apart is cut."""
    pool = SlotPool(40 * PAGE, 40 * PAGE)
    pool.take(Ledger(), 40 * PAGE)
    assert pool.spans([]) == ()
    assert pool.spans([2, 0, 1]) == ((0, 3 * PAGE),)
    assert pool.spans([0, 1, 2, 3, 5]) == ((0, 6 * PAGE),)
    assert pool.spans([0, 9]) == ((0, PAGE), (9 * PAGE, 10 * PAGE))
