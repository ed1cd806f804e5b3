"""What must be fed so that states come out right: pieces, waves, and what is kept."""

from __future__ import annotations

import pytest
import torch

from langchain_pos.engine.forest.segments import Ledger, Segment, SegmentForest
from langchain_pos.engine.forest.state import STRIDE
from langchain_pos.engine.forest.states import StatePlan, plan_states, resumable


class Made:
    """A state that a pass has made."""

    nbytes = 8

    def is_finite(self) -> bool:
        """See `State`."""
        return True


@pytest.fixture
def forest() -> SegmentForest:
    """A forest of a model that keeps states."""
    return SegmentForest(torch.device("cpu"), keeps_states=True)


def feed(
    forest: SegmentForest, *feeds: tuple[Segment, int], drafting: tuple[Segment, ...] = ()
) -> StatePlan:
    """A pass: so many tokens for each segment."""
    starts = {segment: segment.end for segment, _ in feeds}
    for segment, count in feeds:
        segment.tokens += range(count)
        forest.extend(segment, count)
    plan = plan_states(starts, drafting)
    for piece in plan.pieces:
        piece.after = Made()
    plan.settle()
    return plan


def pieces(plan: StatePlan) -> list[tuple[int, int, int]]:
    """Wave, first position and end of each piece, in order."""
    return sorted((piece.wave, piece.begin, piece.end) for piece in plan.pieces)


def test_branches_wait_for_their_parent(forest: SegmentForest) -> None:
    """Fed in one pass, the branches of one length are one batch after the parent's."""
    root = forest.root(Ledger())
    branches = [forest.fork(root, at=4) for _ in range(3)]
    plan = feed(forest, (root, 6), *zip(branches, (2, 5, 2), strict=True))
    assert pieces(plan) == [(0, 0, 4), (1, 4, 6), (1, 4, 6), (1, 4, 6), (1, 4, 9)]
    assert [len(group) for group in plan.groups()] == [1, 3, 1]
    assert {branch.states[4] for branch in branches} == {root.states[4]}


def test_a_decoding_segment_keeps_its_first_and_last_state(forest: SegmentForest) -> None:
    """One piece a pass, and nothing piles up."""
    root = forest.root(Ledger())
    feed(forest, (root, 9))
    child = forest.fork(root)
    for at in range(9, 29):
        assert pieces(feed(forest, (child, 1))) == [(0, at, at + 1)]
    assert set(child.states) == {9, 29}
    assert set(root.states) == {9}
    forest.release(child)
    assert not child.states


def test_rejected_guesses_are_fed_again_until_a_state_is_made(forest: SegmentForest) -> None:
    """From the state before the guesses; a lag of 32 tokens is cut off."""
    root = forest.root(Ledger())
    feed(forest, (root, 10))
    again = []
    for _ in range(16):
        plan = feed(forest, (root, 7), drafting=(root,))
        forest.truncate(root, root.end - 3)  # four of seven were right
        again.append(len(plan.positions(root)) - 7)
        assert len(plan.pieces) == 1 + (again[-1] >= 32)
    assert again == [0, 4, 8, 12, 16, 20, 24, 28, 32, 4, 8, 12, 16, 20, 24, 28]


def test_states_on_the_way_are_kept_at_a_distance(forest: SegmentForest) -> None:
    """Every 512 positions, further apart in a long text, and never more than a handful."""
    root = forest.root(Ledger())
    feed(forest, (root, 2 * STRIDE + 10))
    assert set(root.states) == {STRIDE, 2 * STRIDE, 2 * STRIDE + 10}
    for _ in range(40):
        feed(forest, (root, STRIDE))
    assert len(root.states) < 10
    assert resumable(root, root.end) == root.end
    assert 0 < root.end - 5 - resumable(root, root.end - 5) <= 8 * STRIDE


def test_what_is_cut_off_takes_its_states_along(forest: SegmentForest) -> None:
    """Also those of branches that began after the cut; the parent is fed first then."""
    root = forest.root(Ledger())
    feed(forest, (root, 10))
    child = forest.fork(root, at=8)
    feed(forest, (child, 2))
    forest.truncate(child, 8)
    forest.truncate(root, 3)
    assert not child.states
    assert not root.states
    with pytest.raises(ValueError, match="begins at position 8, its parent ends at 3"):
        feed(forest, (child, 1))


def test_a_fork_inside_a_parent_feeds_the_parent_again(forest: SegmentForest) -> None:
    """From its last state before the fork, and only once for all who begin there."""
    root = forest.root(Ledger())
    feed(forest, (root, 20))
    first, second = forest.fork(root, at=12), forest.fork(root, at=12)
    plan = feed(forest, (first, 1), (second, 3))
    assert pieces(plan) == [(0, 0, 12), (1, 12, 13), (1, 12, 15)]
    assert plan.segments() == [first, second, root]
    third = forest.fork(root, at=12)
    assert pieces(feed(forest, (third, 1))) == [(0, 12, 13)]
