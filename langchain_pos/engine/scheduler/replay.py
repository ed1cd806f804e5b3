"""The contents of a request's segments, so that they can be emptied and fed again.

An empty segment keeps its place in the forest, and with it what it sees, so branches and joins
need no special treatment: the same tokens fed into the same segments give the same keys and
values, as long as everything that they saw when they were fed still exists.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from langchain_pos.engine.decoding.sequence import Feed
from langchain_pos.engine.forest.segments import Segment, SegmentForest


@dataclass
class _Sight:
    """How much of another segment a segment saw when it was first fed."""

    segment: Segment
    reach: int
    extent: int
    cuts: int  # of the other segment, at that time


@dataclass
class _Record:
    """Tokens of a segment, in order.

    Attributes:
        sights: what it sees.
        cuts: positions at which the segment was cut back and continued differently.
    """

    tokens: list[int] = field(default_factory=list)
    sights: list[_Sight] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)


class FedTokens:
    """The tokens that have been fed to the segments of one request."""

    def __init__(self) -> None:
        self._records: dict[Segment, _Record] = {}

    def note(
        self,
        segment: Segment,
        before: int,
        token_ids: Sequence[int],
        forest: SegmentForest,
        others: Collection[Segment],
    ) -> None:
        """Record that a pass fed `token_ids` to a segment which held `before` tokens.

        Args:
            segment: of the request.
            before: number of tokens that it held.
            token_ids: added to it.
            forest: determines what it sees.
            others: live segments that it may see.
        """
        record = self._records.get(segment)
        if record is None:
            self._records = {s: known for s, known in self._records.items() if not s.released}
            record = self._records[segment] = _Record()
            reach = forest.reach(segment)
            record.sights = [
                _Sight(other, reach[other.id], min(reach[other.id], other.end), self._cuts(other))
                for other in others
                if other is not segment and reach[other.id] > other.start
            ]
        if before < len(record.tokens):
            record.cuts.append(segment.start + before)
            del record.tokens[before:]
        record.tokens += token_ids

    def _cuts(self, segment: Segment) -> int:
        record = self._records.get(segment)
        return 0 if record is None else len(record.cuts)

    def can_replay(self, segments: Collection[Segment]) -> bool:
        """Whether exactly what the segments' tokens saw still exists."""
        return all(
            self._is_there(segment, sight)
            for segment in segments
            if segment.slots and segment in self._records
            for sight in self._records[segment].sights
        )

    def _is_there(self, segment: Segment, sight: _Sight) -> bool:
        other = sight.segment
        if other.released:
            return False
        if other.owner is not segment.owner:
            return True  # a shared prefix: its tokens never change
        cuts = self._records[other].cuts[sight.cuts :] if other in self._records else []
        return min(sight.reach, other.end) == sight.extent and all(
            cut >= sight.extent for cut in cuts
        )

    def feeds(self, segments: Collection[Segment]) -> list[Feed]:
        """The segments' contents, parents before children.

        A child begins at a later position, or sees nothing of a parent that begins where it does.
        """
        return [
            Feed(segment, self._records[segment].tokens[: len(segment.slots)])
            for segment in sorted(segments, key=lambda segment: segment.start)
            if segment.slots
        ]
