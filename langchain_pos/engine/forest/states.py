"""What layers with a running state need in a pass, and when.

Such a layer (a short convolution, linear attention, a state space) carries something from token to
token that no mask can take apart. So a segment owns states, as it owns slots: for a few of its
positions, what these layers carry before the token there. A state is never changed, so a fork is a
reference, and to cut a segment back forgets the states after its new end.

Where there is no state at the position that a segment goes on at, the tokens since the last one
are fed once more, into the slots that they have. That is all that happens to rejected drafts, to
text that is taken back, to a fork inside a parent, and to a request that was put back.

    positions     0            512         700     712     drafts at 700…712 were wrong from 704 on
    states        ◆             ◆           ◆       ✗
    next pass                               └ 700…703 again, then the next token

A pass feeds *pieces*: tokens of one segment between two states. A piece begins where a state is
known or another piece of the same pass ends; pieces that wait for others come in later *waves*.

    wave 0   prompt 0…31          wave 1   branch A 32…35,  branch B 32…38
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from langchain_pos.engine.forest.parts import Feeds
from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.forest.state import MOST, STRIDE, State

_LAG = 32
"""A segment that drafts goes on from an older state until that many tokens must be fed again."""


@dataclass(eq=False)
class Piece:
    """Tokens of one segment in one pass, from one state to another.

    Attributes:
        segment: whose they are.
        begin: position of the first one.
        end: position after the last one.
        before: the state that it begins with, or the piece that this comes from; None at the
            beginning of a text.
        after: the state after it, once the pass is planned.
    """

    segment: Segment
    begin: int
    end: int
    before: State | Piece | None = None
    after: State | None = None

    @property
    def wave(self) -> int:
        """Pieces of this pass that must come before it, one after another."""
        return self.before.wave + 1 if isinstance(self.before, Piece) else 0


@dataclass
class StatePlan:
    """The pieces of a pass.

    Attributes:
        pieces: all, in no particular order.
        starts: where the tokens begin that each segment is fed for the first time.
    """

    pieces: list[Piece]
    starts: dict[Segment, int]
    _drafting: set[Segment] = field(default_factory=set)

    def positions(self, segment: Segment) -> list[int]:
        """The positions of a segment that are fed, in order: some of them perhaps once more."""
        mine = sorted((p.begin, p.end) for p in self.pieces if p.segment is segment)
        return [position for begin, end in mine for position in range(begin, end)]

    def segments(self) -> list[Segment]:
        """All that are fed: first those that get new tokens, in their order."""
        return list(dict.fromkeys([*self.starts, *(piece.segment for piece in self.pieces)]))

    def groups(self) -> list[list[Piece]]:
        """Pieces that can be computed as one batch, earlier waves first.

        They are equally long, and all of them or none go on from a state.
        """
        found: dict[tuple[int, int, bool], list[Piece]] = {}
        for piece in self.pieces:
            key = (piece.wave, piece.end - piece.begin, piece.before is None)
            found.setdefault(key, []).append(piece)
        return [found[key] for key in sorted(found)]

    def settle(self) -> None:
        """The pass has run: give the segments their states, and drop those that are not kept."""
        for piece in self.pieces:
            if piece.after is not None:
                piece.segment.states[piece.end] = piece.after
        for piece in self.pieces:
            segment = piece.segment
            if piece.begin == segment.start and segment.start not in segment.states:
                before = piece.before.after if isinstance(piece.before, Piece) else piece.before
                if before is not None:
                    segment.states[segment.start] = before
        for segment in {piece.segment for piece in self.pieces}:
            for child in segment.children:
                if child.start in segment.states:
                    child.states.setdefault(child.start, segment.states[child.start])
            self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        stride = _stride(segment)
        needed = {child.start for child in segment.children} | {segment.start}
        recent = {max(segment.states, default=segment.start)}
        if segment in self._drafting:  # the drafts may be wrong
            recent.add(_last(segment, self.starts[segment]))
        for at in list(segment.states):
            if at not in needed | recent and at % stride:
                del segment.states[at]


def plan_states(starts: dict[Segment, int], drafting: Iterable[Segment]) -> StatePlan:
    """The pieces of a pass.

    Args:
        starts: segments, which hold slots for their new tokens already, and where these begin.
        drafting: those of them whose last tokens are guesses.

    Raises:
        ValueError: a segment begins where its parent has no token yet.
    """
    plan = StatePlan([], starts, set(drafting))
    cuts: dict[Segment, set[int]] = {}

    for segment, start in starts.items():
        base = _last(segment, start)
        if segment in plan._drafting and start - base >= _LAG:
            _need(cuts, segment, start)
        forks = {c.start for c in segment.children if c.start not in c.states}
        stride = _stride(segment)
        forks.update(range(start // stride * stride + stride, segment.end, stride))
        for at in {at for at in forks if start < at < segment.end} | {segment.end}:
            _need(cuts, segment, at)

    ends: dict[tuple[Segment, int], Piece] = {}
    for segment, positions in cuts.items():
        for at in sorted(positions):
            known = [p for p in (*segment.states, *positions) if p < at]
            ends[segment, at] = Piece(segment, max([segment.start, *known]), at)

    for piece in ends.values():
        piece.before = _source(ends, piece.segment, piece.begin)
    plan.pieces = list(ends.values())
    return plan


def _need(cuts: dict[Segment, set[int]], segment: Segment, at: int) -> None:
    """The state before position `at` of the segment is known, or will be in this pass.

    Not a function inside another: what such a recursive one refers to is only freed by the garbage
    collector, and states are large.
    """
    if at in segment.states or at in cuts.get(segment, ()):
        return
    if at > segment.end:
        raise ValueError(
            f"a branch begins at position {at}, its parent ends at {segment.end}; feed the "
            "parent in the same pass, or before"
        )
    if at == segment.start:
        if segment.parent is not None:
            _need(cuts, segment.parent, at)
        return
    cuts.setdefault(segment, set()).add(at)
    _need(cuts, segment, _last(segment, at - 1))


def _source(
    ends: dict[tuple[Segment, int], Piece], segment: Segment, at: int
) -> State | Piece | None:
    """What a piece goes on from that begins at a position."""
    found = segment.states.get(at) or ends.get((segment, at))
    if found is None and segment.parent is not None and at == segment.start:
        return _source(ends, segment.parent, at)
    return found


def with_states(
    feeds: Feeds, positions: list[list[int]], drafting: set[Segment]
) -> tuple[StatePlan, Feeds, list[list[int]]]:
    """What has to be fed so that states come out right: the plan, feeds and positions.

    Args:
        feeds: segments, which hold slots for their new tokens already, and these tokens.
        positions: of the new tokens.
        drafting: segments whose last tokens are guesses.
    """
    starts: dict[Segment, int] = {}
    for (segment, new), where in zip(feeds, positions, strict=True):
        segment.tokens += new
        if new:
            starts.setdefault(segment, where[0])
    plan = plan_states(starts, drafting)
    segments = plan.segments()
    positions = [plan.positions(segment) for segment in segments]
    again = [
        (segment, [segment.tokens[at - segment.start] for at in where])
        for segment, where in zip(segments, positions, strict=True)
    ]
    return plan, again, positions


def rows_by_position(
    feeds: Feeds, numbers: Sequence[int], positions: Sequence[int]
) -> dict[Segment, dict[int, int]]:
    """The row of each position that is fed of a segment.

    Args:
        feeds: the segments.
        numbers: of each row, the id of its segment.
        positions: of each row.
    """
    by_id = {segment.id: segment for segment, _ in feeds}
    rows: dict[Segment, dict[int, int]] = {segment: {} for segment, _ in feeds}
    for row, (number, position) in enumerate(zip(numbers, positions, strict=True)):
        rows[by_id[number]][position] = row
    return rows


def resumable(segment: Segment, at: int) -> int:
    """The last position up to `at` where a child of `segment` can begin without feeding again."""
    return at if at > segment.end else _last(segment, at)


def _last(segment: Segment, upto: int) -> int:
    """The last position up to `upto` with a state; the segment's start where there is none."""
    return max([segment.start, *(at for at in segment.states if at <= upto)])


def _stride(segment: Segment) -> int:
    stride = STRIDE
    while len(segment.slots) > MOST * stride:
        stride *= 2
    return stride
