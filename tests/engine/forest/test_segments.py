"""The forest: labels, the mask rule, slots and their accounting."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_pos.engine.forest.parts import Feeds, Plan, plan
from langchain_pos.engine.forest.segments import (
    NOBODY,
    UNBOUNDED,
    Ledger,
    Segment,
    SegmentForest,
    visible,
)
from langchain_pos.engine.forest.slots import PAGE, whole_pages
from langchain_pos.errors import OutOfSlotsError

CPU = torch.device("cpu")


@dataclass(eq=False)
class Obvious:
    """A segment as plain lists: its tokens' places, and what it inherits."""

    real: Segment
    start: int
    inherited: set[tuple[int, int]]  # (tag of a token, position) seen through the fork
    lineage: list[tuple[Obvious, int]]  # ancestors, and the position up to which they are seen
    tags: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.tags)


class ObviousForest:
    """The forest beside a model of it that knows no slots and no reach, only tokens with tags."""

    def __init__(self, max_slots: int = 1 << 20, capacity: int = 4) -> None:
        self.forest = SegmentForest(CPU, capacity=capacity, max_slots=max_slots)
        self.ledger = Ledger()
        self.live: list[Obvious] = []
        self.tag_at: dict[int, int] = {}  # slot → tag of the token that lies there
        self.next_tag = 0

    def root(self) -> None:
        self.live.append(Obvious(self.forest.root(self.ledger), 0, set(), []))

    def fork(self, parent: Obvious, at: int) -> None:
        lineage = [(a, min(upto, at)) for a, upto in parent.lineage] + [(parent, at)]
        self.live.append(Obvious(self.forest.fork(parent.real, at), at, set(), lineage))

    def join(self, parents: list[Obvious], at: int) -> None:
        upto: dict[int, tuple[Obvious, int]] = {}
        for parent in parents:
            for ancestor, limit in [*parent.lineage, (parent, at)]:
                known = upto.get(id(ancestor), (ancestor, 0))[1]
                upto[id(ancestor)] = ancestor, max(known, min(limit, at))
        real = self.forest.join([parent.real for parent in parents], at)
        self.live.append(Obvious(real, at, set(), list(upto.values())))

    def extend(self, segment: Obvious, count: int) -> None:
        start = segment.end
        slots = self.forest.extend(segment.real, count)
        self.forest.unlabel(torch.tensor(self.forest.freed, dtype=torch.int64))
        for slot in slots:
            self.tag_at[slot] = self.next_tag
            segment.tags.append(self.next_tag)
            self.next_tag += 1
        self.forest.label(
            torch.tensor(slots, dtype=torch.int64),
            torch.full((count,), segment.real.id, dtype=torch.int32),
            torch.arange(start, start + count, dtype=torch.int32),
        )

    def truncate(self, segment: Obvious, end: int) -> None:
        self.forest.truncate(segment.real, end)
        del segment.tags[max(end - segment.start, 0) :]

    def release(self, segment: Obvious) -> None:
        self.forest.release(segment.real)
        self.live.remove(segment)
        segment.tags = []

    def seen(self, segment: Obvious, position: int, window: int | None) -> set[int]:
        """Tags that a query of `segment` at `position` sees, token by token."""
        found = set()
        for owner, upto in [*segment.lineage, (segment, UNBOUNDED)]:
            for offset, tag in enumerate(owner.tags):
                at = owner.start + offset
                near = window is None or position - at < window
                if at < upto and at <= position and near:
                    found.add(tag)
        return found

    def check(self, window: int | None) -> None:
        """Every live segment's mask, at several positions, is what the plain lists say."""
        forest = self.forest
        # An empty pass: freed slots are relabelled, as at the beginning of any pass.
        forest.unlabel(torch.tensor(forest.freed, dtype=torch.int64))
        forest.send_reach()
        extent = forest.extent
        used = {slot for segment in self.live for slot in segment.real.slots}
        assert forest.slots_in_use == len(used) == sum(len(s.tags) for s in self.live)
        assert extent == whole_pages(max(used, default=-1) + 1)
        for segment in self.live:
            for position in {segment.start, max(segment.end - 1, 0), segment.end + 3}:
                query = torch.tensor([segment.real.id], dtype=torch.int32)
                place = torch.tensor([position], dtype=torch.int32)
                mask = visible(
                    query,
                    place,
                    forest.slot_segment[:extent],
                    forest.slot_position[:extent],
                    forest._reach,
                    window,
                )
                slots = mask[0].nonzero()[:, 0].tolist()
                assert {self.tag_at[slot] for slot in slots} == self.seen(segment, position, window)
                if window is None:
                    labels = forest.slot_segment[:extent], forest.slot_position[:extent]
                    assert torch.equal(mask, forest.mask(query, place, *labels))


ACTIONS = ["extend", "fork", "join", "root", "truncate", "release"]


@settings(max_examples=150)
@given(data=st.data(), window=st.none() | st.integers(1, 6))
def test_mask_equals_the_obvious_loop(data: st.DataObject, window: int | None) -> None:
    """Whatever was forked, cut, freed and used again, the rule sees what plain lists see."""
    model = ObviousForest()
    model.root()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(ACTIONS))
        if action == "root" or not model.live:
            model.root()
            continue
        segment = data.draw(st.sampled_from(model.live))
        if action == "extend":
            model.extend(segment, data.draw(st.integers(1, 5)))
        elif action == "fork":
            model.fork(segment, data.draw(st.integers(segment.start, segment.end + 2)))
        elif action == "join":
            parents = data.draw(st.lists(st.sampled_from(model.live), min_size=1, unique=True))
            at = max(parent.end for parent in parents) + data.draw(st.integers(0, 2))
            model.join(parents, at)
        elif action == "truncate":
            model.truncate(segment, data.draw(st.integers(segment.start, segment.end)))
        else:
            model.release(segment)
    model.check(window)


def looked_at(forest: SegmentForest, feeds: Feeds, parts: Plan) -> list[dict[int, int]]:
    """For each row in the plan's order, the slots that it looks at, and how often."""
    rows: list[dict[int, int]] = [{} for _ in range(sum(block.rows for block in parts.blocks))]

    def look(begin: int, end: int, slots: range) -> None:
        for row in range(begin, end):
            for slot in slots:
                rows[row][slot] = rows[row].get(slot, 0) + 1

    for part in (*parts.shared, *parts.alone):
        for begin, end in part.spans:
            look(*part.rows, range(begin, end))
    if parts.batch is not None:
        for (begin, end), pages in zip(parts.batch.rows, parts.batch.pages, strict=True):
            for page in pages:
                look(begin, end, range(page * PAGE, (page + 1) * PAGE))
    return rows


@settings(max_examples=150, deadline=None)
@given(data=st.data(), most=st.sampled_from([70, 1 << 20]))
def test_a_plan_brings_every_row_to_every_slot_that_it_sees_once(
    data: st.DataObject, most: int
) -> None:
    """Forks, joins, releases and cuts, with room and with pages that are shared for want of it."""
    model = ObviousForest(max_slots=most)
    model.root()
    for _ in range(data.draw(st.integers(1, 20))):
        action = data.draw(st.sampled_from(ACTIONS))
        if action == "root" or not model.live:
            model.root()
            continue
        segment = data.draw(st.sampled_from(model.live))
        if action == "extend":
            count = data.draw(st.sampled_from([1, 3, 20, 600]))
            model.extend(segment, min(count, model.forest.pool.free))
        elif action == "fork":
            model.fork(segment, data.draw(st.integers(segment.start, segment.end)))
        elif action == "join":
            parents = data.draw(st.lists(st.sampled_from(model.live), min_size=1, unique=True))
            model.join(parents, max(parent.end for parent in parents))
        elif action == "truncate":
            model.truncate(segment, data.draw(st.integers(segment.start, segment.end)))
        else:
            model.release(segment)
    fed = data.draw(st.lists(st.sampled_from(model.live), unique=True)) if model.live else []
    feeds = []
    for segment in fed:
        count = data.draw(st.sampled_from([1, 1, 2, 17, 300]))
        count = min(count, model.forest.pool.free)
        model.extend(segment, count)
        feeds.append((segment.real, [0] * count))
    forest = model.forest
    forest.send_reach()
    forced = -(1 << 40)
    for least_saved in (forced, 0):
        parts = plan(feeds, forest.extent, least_saved)
        rows = looked_at(forest, feeds, parts)
        # The rows are the feeds' tokens, each once, a feed's in order.
        tokens = [(b.feed, token) for b in parts.blocks for token in range(b.begin, b.end)]
        assert sorted(tokens) == [
            (f, t) for f, (_, new) in enumerate(feeds) for t in range(len(new))
        ]
        if not tokens:
            continue
        segments = [feeds[feed][0] for feed, _ in tokens]
        positions = [
            s.end - len(feeds[f][1]) + t for s, (f, t) in zip(segments, tokens, strict=True)
        ]
        seen = forest.mask(
            torch.tensor([segment.id for segment in segments], dtype=torch.int32),
            torch.tensor(positions, dtype=torch.int32),
            forest.slot_segment[: forest.extent],
            forest.slot_position[: forest.extent],
        )
        for row, some in zip(rows, seen, strict=True):
            assert set(some.nonzero()[:, 0].tolist()) <= set(row)
            assert set(row.values()) <= {1}
        assert all(
            set(rows[number]) == set(range(begin, end))
            for part in parts.alone
            if len(part.spans) == 1
            for begin, end in part.spans
            for number in range(*part.rows)
        ), "who is alone is in no other part"


def test_docstrings_example() -> None:
    """The example in the docstring of `visible` is true."""
    reach = torch.tensor([[0, 0, 0], [0, UNBOUNDED, 0], [0, 2, UNBOUNDED]], dtype=torch.int32)
    seen = visible(
        torch.tensor([2]),
        torch.tensor([3]),
        torch.tensor([1, 1, 1, 2, 2]),
        torch.tensor([0, 1, 2, 2, 3]),
        reach,
    )
    assert seen.tolist() == [[True, True, False, True, True]]


def test_child_does_not_see_what_the_parent_writes_after_the_fork() -> None:
    """The fork's position is a border, also for tokens that come later at or behind it."""
    model = ObviousForest()
    model.root()
    (root,) = model.live
    model.extend(root, 3)
    model.fork(root, 3)
    child = model.live[1]
    model.extend(root, 4)
    model.extend(child, 1)
    assert model.seen(child, 3, None) == {0, 1, 2, child.tags[0]}
    model.check(None)


def test_grandchild_sees_no_further_than_its_parent() -> None:
    """A fork far along a branch still ends at the branch's own border in the root."""
    model = ObviousForest()
    model.root()
    (root,) = model.live
    model.extend(root, 5)
    model.fork(root, 2)
    child = model.live[1]
    model.extend(child, 6)
    model.fork(child, 7)
    model.extend(model.live[2], 2)
    assert len(model.seen(model.live[2], 8, None)) == 2 + 5 + 2
    model.check(None)


def test_fork_before_the_parents_beginning_is_refused() -> None:
    """A fork names a position that its parent holds itself."""
    forest = SegmentForest(CPU)
    ledger = Ledger()
    root = forest.root(ledger)
    forest.extend(root, 5)
    child = forest.fork(root)
    with pytest.raises(ValueError, match="parent begins at 5"):
        forest.fork(child, at=4)


def test_lowest_pages_are_taken_first_and_the_extent_shrinks() -> None:
    """Attention reads no further than it must: freed pages are filled before new ones."""
    forest = SegmentForest(CPU)
    ledger = Ledger()
    first, second = forest.root(ledger), forest.root(ledger)
    assert forest.extend(first, 4) == [0, 1, 2, 3]
    assert forest.extend(second, PAGE) == list(range(PAGE, 2 * PAGE))
    forest.release(first)
    assert forest.extent == 2 * PAGE
    assert forest.extend(second, 3) == [0, 1, 2]
    forest.truncate(second, 1)
    assert second.slots == [PAGE]
    assert forest.extent == 2 * PAGE
    forest.release(second)
    assert forest.extent == forest.slots_in_use == 0


def test_freed_slots_belong_to_nobody_from_the_next_pass_on() -> None:
    """The label of a freed slot is taken back before the slot's new label is written."""
    forest = SegmentForest(CPU)
    ledger = Ledger()
    first = forest.root(ledger)
    slots = torch.tensor(forest.extend(first, 3))
    positions = torch.arange(3, dtype=torch.int32)
    forest.label(slots, torch.full((3,), first.id, dtype=torch.int32), positions)
    forest.release(first)
    second = forest.root(ledger)
    assert second.id == first.id, "the id is used again"
    (slot,) = forest.extend(second, 1)
    forest.unlabel(torch.tensor(forest.freed))
    assert forest.freed == []
    forest.label(
        torch.tensor([slot]),
        torch.tensor([second.id], dtype=torch.int32),
        torch.tensor([0], dtype=torch.int32),
    )
    assert forest.slot_segment[:3].tolist() == [second.id, NOBODY, NOBODY]


def test_ledger_counts_what_a_request_holds_now_and_at_most() -> None:
    """Slots of a request are its segments' together; the peak stays."""
    forest = SegmentForest(CPU)
    mine, other = Ledger(), Ledger()
    root = forest.root(mine)
    forest.extend(forest.root(other), 7)
    forest.extend(root, 10)
    child = forest.fork(root)
    forest.extend(child, 5)
    assert (mine.slots, mine.peak_slots, len(mine.segments)) == (15, 15, 2)
    forest.release(child)
    forest.release(child)  # once more does nothing
    forest.truncate(root, 4)
    assert (mine.slots, mine.peak_slots, len(mine.segments)) == (4, 15, 1)
    assert (other.slots, forest.slots_in_use) == (7, 11)


def test_capacity_grows_up_to_the_limit_and_then_says_the_numbers() -> None:
    """Slots are made as they are needed; beyond `max_slots` the error names what is left."""
    forest = SegmentForest(CPU, capacity=4, max_slots=20)
    root = forest.root(Ledger(expected=4))
    forest.extend(root, 3)
    assert forest.capacity == PAGE
    forest.extend(root, 16)
    assert (forest.pool.capacity, forest.capacity) == (20, 2 * PAGE)
    with pytest.raises(OutOfSlotsError, match="2 more KV-cache slots are needed, 1 of 20 are free"):
        forest.extend(root, 2)
    assert (root.end, forest.slots_in_use) == (19, 19), "nothing was taken"
    assert forest.extend(root, 1) == [19]


def test_thousands_of_segments() -> None:
    """The reach matrix grows with the segments, and their ids are used again."""
    forest = SegmentForest(CPU)
    ledger = Ledger()
    root = forest.root(ledger)
    forest.extend(root, 2)
    children = [forest.fork(root) for _ in range(1000)]
    assert len({child.id for child in children}) == 1000
    size = forest._reach.shape[0]
    for child in children:
        forest.release(child)
    again = [forest.fork(root) for _ in range(1000)]
    assert forest._reach.shape[0] == size
    assert all(forest._reach[child.id, root.id] == 2 for child in again)
    assert int((forest._reach[again[0].id] > 0).sum()) == 2, "itself and the root"
