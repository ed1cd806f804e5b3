"""The forest of segments, the slots, and the one mask rule.

There is one long sequence of *slots* (the KV cache, batch size 1). A slot carries two labels: the
*segment* that owns it and the *position* that RoPE sees. Segments form a forest: a request's
prompt is a root, a branch is a child forked at a position of its parent.

    slots       0 1 2 3 4 │ 5 6 7 8 9 10
    segment     R R R R R │ A B C A B C        R: prompt; A, B, C: branches, interleaved
    position    0 1 2 3 4 │ 5 5 5 6 6 6        every branch goes on at the fork's position

    query A@6 sees      R0 R1 R2 R3 R4  A5 A6
    query B@6 sees      R0 R1 R2 R3 R4  B5 B6

How far one segment sees into another is one number, its *reach*: `reach[q, s]` is the first
position of segment `s` that segment `q` does not see. 0 is "nothing" (a stranger), the fork's
position is an ancestor up to the fork, `UNBOUNDED` is oneself. The whole mask is then

    visible = (slot_position <= query_position) &
              (slot_position < reach[query_segment, slot_segment])

and in a sliding-window layer of width W also `query_position - slot_position < W`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from langchain_pos.engine.forest.slots import Holder, Region, SlotPool, whole_pages
from langchain_pos.engine.forest.state import NO_REUSE, State
from langchain_pos.errors import InvalidRequestError, OutOfSlotsError

UNBOUNDED = torch.iinfo(torch.int32).max
"""The reach of a segment into itself."""

NOBODY = 0
"""The segment id that labels free slots; nobody reaches it."""


def visible(
    query_segment: torch.Tensor,
    query_position: torch.Tensor,
    slot_segment: torch.Tensor,
    slot_position: torch.Tensor,
    reach: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """The mask rule (generalises the belt mask of paper section 3.2).

    Args:
        query_segment: segment of each query token, int32 `[..., Q]`.
        query_position: position of each query token, int32 `[..., Q]`.
        slot_segment: segment that owns each slot, int32 `[..., N]`, for each batch of queries.
        slot_position: position of each slot, int32 `[..., N]`.
        reach: first position of the column's segment that the row's does not see, int32 `[S, S]`.
        window: width of the sliding window in positions, None for full attention.

    Returns:
        bool `[..., Q, N]`, True where the query sees the slot.

    Example:
        >>> reach = torch.tensor([[0, 0, 0], [0, UNBOUNDED, 0], [0, 2, UNBOUNDED]])
        >>> visible(torch.tensor([2]), torch.tensor([3]), torch.tensor([1, 1, 1, 2, 2]),
        ...         torch.tensor([0, 1, 2, 2, 3]), reach)  # forked from segment 1 at position 2
        tensor([[ True,  True, False,  True,  True]])
    """
    slots = slot_segment.long()[..., None, :].expand(*query_segment.shape, -1)
    limit = reach[query_segment].gather(-1, slots)
    slot = slot_position[..., None, :]
    seen = (slot <= query_position[..., :, None]) & (slot < limit)
    if window is not None:
        seen &= within(window, query_position, slot_position)
    return seen


def within(window: int, query_position: torch.Tensor, slot_position: torch.Tensor) -> torch.Tensor:
    """The sliding window's share of the rule: bool `[..., Q, N]`; see `visible`."""
    return query_position[..., :, None] - slot_position[..., None, :] < window


@dataclass(eq=False)
class Ledger(Region):
    """What one request holds: its segments, and how many slots, now and at most.

    Attributes:
        segments: alive.
    """

    segments: set[Segment] = field(default_factory=set)


@dataclass(eq=False)
class Segment(Holder):
    """A stretch of tokens with consecutive positions and one owner.

    Attributes:
        id: row and column in the reach matrix.
        start: position of its first token.
        owner: ledger of the request that it belongs to.
        ancestors: segments that it sees besides itself, each up to a position. The reach matrix
            decides what is visible; this only says where it is worth looking.
        on_release: called once, when the segment is released.
        slots: the slot of each of its tokens, in order of position.
        parent: what it was forked from; None for a root.
        children: alive and forked from it.
        tokens: its tokens, in order of position, where the model keeps states; else empty.
        states: for some positions, its own first one to its end, the state before the token there;
            see `forest/states.py`.
    """

    id: int
    start: int
    owner: Ledger
    ancestors: dict[Segment, int] = field(default_factory=dict)
    released: bool = False
    on_release: Callable[[], None] | None = None
    parent: Segment | None = None
    children: set[Segment] = field(default_factory=set)
    tokens: list[int] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """Position of the next token."""
        return self.start + len(self.slots)

    def forget(self, end: int) -> None:
        """Its tokens and states after position `end` are void, and what was forked from there."""
        del self.tokens[end - self.start :]
        self.states = {at: state for at, state in self.states.items() if at <= end}
        for child in self.children:
            if child.start > end:
                child.states.pop(child.start, None)


class SegmentForest:
    """Labels of all slots and the reach between all live segments.

    The host decides (which slot, which segment); the device holds the labels that the mask is
    made from. Labels are written along with the tokens of a forward pass, freed slots are
    relabelled at the beginning of the next one, so neither costs a pass of its own.

    Args:
        device: where the labels are needed.
        capacity: slots to begin with.
        max_slots: slots that may ever exist.
        spare_slots: the first so many are never given to a segment.
        segments: segments to begin with, and one; when there are more, the reach grows and moves.
        keeps_states: the model has layers with a running state; see `forest/states.py`.
        state_slots: slots that take as much memory as one state; see `SlotPool`.

    Attributes:
        pool: which slots are free, and who holds the others.
        slot_segment: int32 `[capacity]`, on the device.
        slot_position: int32 `[capacity]`, on the device.
        slot_broken: bool `[capacity]`, on the device: the token's keys or values were not finite.
        freed: slots that still carry the label of whom they belonged to; see `unlabel`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        capacity: int = 1024,
        max_slots: int = 1 << 30,
        spare_slots: int = 0,
        segments: int = 64,
        keeps_states: bool = False,
        state_slots: int = 0,
    ) -> None:
        self.keeps_states = keeps_states
        self.device = device
        self.pool = SlotPool(capacity, max_slots, spare_slots, state_slots)
        slots = whole_pages(self.pool.capacity)
        self.slot_segment = torch.zeros(slots, dtype=torch.int32, device=device)
        self.slot_position = torch.zeros(slots, dtype=torch.int32, device=device)
        self.slot_broken = torch.zeros(slots, dtype=torch.bool, device=device)
        self.freed: list[int] = []
        self._free_ids = list(range(1, segments))
        self._reach = torch.zeros(segments, segments, dtype=torch.int32)
        self._device_reach = self._reach.to(device)
        self._reach_is_newer = True

    @property
    def max_slots(self) -> int:
        """Slots that may ever exist."""
        return self.pool.max_slots

    # ------------------------------------------------------------------ segments

    def root(self, owner: Ledger) -> Segment:
        """A new tree's first segment, empty, at position 0."""
        return self._new_segment(0, owner)

    def fork(self, parent: Segment, at: int | None = None, owner: Ledger | None = None) -> Segment:
        """A child that sees `parent`, and what `parent` sees, below position `at`.

        Args:
            parent: a live segment.
            at: position of the child's first token, by default the parent's end. It may lie
                ahead of it when the parent is fed up to there in the same pass. Tokens that the
                parent has or gets at this position or later stay invisible to the child.
            owner: whose the child is; by default whose the parent is.
        """
        at = parent.end if at is None else at
        if at < parent.start:
            raise ValueError(
                f"cannot fork at position {at}: the parent begins at {parent.start}; fork from "
                "the segment that holds this position"
            )
        child = self._new_segment(at, owner or parent.owner)
        if child.owner is not parent.owner:
            child.owner.sees.add(parent.owner)
        child.ancestors = _seen_by([parent], at)
        child.parent = parent
        parent.children.add(child)
        if at in parent.states:
            child.states[at] = parent.states[at]
        self._reach[child.id] = torch.clamp(self._reach[parent.id], max=at)
        self._reach[child.id, child.id] = UNBOUNDED
        return child

    def join(self, segments: Sequence[Segment], at: int) -> Segment:
        """A child of several segments: it sees what any of them sees, and all of them.

        Args:
            segments: live segments of one owner; at least one.
            at: position of the child's first token, not before the end of any of them. What
                they hold at this position or later stays invisible to it.

        Raises:
            InvalidRequestError: the model keeps states, and none of them has seen all segments.
        """
        if self.keeps_states:
            raise InvalidRequestError(NO_REUSE)
        child = self.fork(segments[0], at)
        child.ancestors = _seen_by(segments, at)
        rows = [segment.id for segment in segments]
        self._reach[child.id] = torch.clamp(self._reach[rows].amax(dim=0), max=at)
        self._reach[child.id, child.id] = UNBOUNDED
        return child

    def truncate(self, segment: Segment, end: int) -> None:
        """Forget the tokens of `segment` at position `end` and later; their slots are free."""
        keep = max(end - segment.start, 0)
        if keep < len(segment.slots):
            segment.forget(segment.start + keep)
            self.freed.extend(self.pool.cut(segment.owner, segment, keep))

    def release(self, segment: Segment) -> None:
        """Forget a segment and free its slots. Its children keep what they hold themselves."""
        if segment.released:
            return
        segment.released = True
        segment.owner.segments.discard(segment)
        self.freed.extend(self.pool.cut(segment.owner, segment, 0))
        segment.ancestors, segment.states = {}, {}
        if segment.parent is not None:
            segment.parent.children.discard(segment)
        self._reach[segment.id, :] = 0
        self._reach[:, segment.id] = 0
        self._reach_is_newer = True
        heapq.heappush(self._free_ids, segment.id)
        if segment.on_release is not None:
            segment.on_release()

    def _new_segment(self, start: int, owner: Ledger) -> Segment:
        if not self._free_ids:
            size = self._reach.shape[0]
            self._free_ids = list(range(size, 2 * size))
            grown = torch.zeros(2 * size, 2 * size, dtype=torch.int32)
            grown[:size, :size] = self._reach
            self._reach = grown
        segment = Segment(heapq.heappop(self._free_ids), start, owner)
        owner.segments.add(segment)
        self._reach[segment.id, segment.id] = UNBOUNDED
        self._reach_is_newer = True
        return segment

    def reach(self, segment: Segment) -> list[int]:
        """For each segment id, the first position there that `segment` does not see."""
        row: list[int] = self._reach[segment.id].tolist()
        return row

    # --------------------------------------------------------------------- slots

    def extend(self, segment: Segment, count: int) -> list[int]:
        """Give `segment` slots for its next `count` tokens.

        Returns:
            the new slots, in order of position.

        Raises:
            OutOfSlotsError: fewer slots are left below `max_slots`, states counted.
        """
        needed = self.pool.cost(len(segment.slots), count)
        if needed > self.pool.free:
            states = f" ({needed - count} of them for states)" if needed > count else ""
            raise OutOfSlotsError(
                f"{needed} more KV-cache slots are needed{states}, {self.pool.free} of "
                f"{self.max_slots} are free; ask for fewer or shorter branches, or raise max_slots"
            )
        taken = self.pool.take(segment.owner, segment, count)
        self.allocate(self.pool.capacity)
        return taken

    def allocate(self, slots: int) -> None:
        """Have labels for so many slots, so that they do not move before there are more."""
        missing = whole_pages(slots) - self.capacity
        if missing > 0:
            more = torch.zeros(missing, dtype=torch.int32, device=self.device)
            self.slot_segment = torch.cat([self.slot_segment, more])
            self.slot_position = torch.cat([self.slot_position, more])
            self.slot_broken = torch.cat([self.slot_broken, more.bool()])

    @property
    def capacity(self) -> int:
        """Slots that exist now, in whole pages."""
        return len(self.slot_segment)

    @property
    def extent(self) -> int:
        """All slots in use lie in the pages before this slot; attention reads no further."""
        return whole_pages(self.pool.extent)

    @property
    def slots_in_use(self) -> int:
        """Slots that segments hold."""
        return self.pool.in_use

    # ---------------------------------------------------------------- one pass

    def send_reach(self) -> None:
        """Bring the device's copy of the reach up to date, in its place as long as it fits."""
        if not self._reach_is_newer:
            return
        if self._device_reach.shape != self._reach.shape:
            self._device_reach = self._reach.to(self.device)
        else:
            self._device_reach.copy_(self._reach)
        self._reach_is_newer = False

    def addresses(self) -> tuple[int, ...]:
        """Where the labels and the reach lie on the device."""
        labels = (self.slot_segment, self.slot_position, self.slot_broken, self._device_reach)
        return tuple(tensor.data_ptr() for tensor in labels)

    def unlabel(self, slots: torch.Tensor) -> None:
        """Take the labels back of the slots that were `freed`, int64 `[F]`."""
        self.slot_segment.index_fill_(0, slots, NOBODY)
        del self.freed[: len(slots)]

    def label(self, slots: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor) -> None:
        """Write the labels of a pass's tokens.

        Args:
            slots: int64 `[Q]`, where the tokens lie.
            segments: int32 `[Q]`, whose they are.
            positions: int32 `[Q]`, what RoPE sees.
        """
        self.slot_segment.index_copy_(0, slots, segments)
        self.slot_position.index_copy_(0, slots, positions)

    def mask(
        self,
        segments: torch.Tensor,
        positions: torch.Tensor,
        slot_segment: torch.Tensor,
        slot_position: torch.Tensor,
    ) -> torch.Tensor:
        """Which slots each query sees, from the labels of these slots; see `visible`."""
        return visible(segments, positions, slot_segment, slot_position, self._device_reach)

    def mark_broken(self, slots: torch.Tensor, broken: torch.Tensor) -> None:
        """Note for a pass's `slots` `[Q]` whether their tokens are `broken`, bool `[Q]`."""
        self.slot_broken.index_copy_(0, slots, broken)

    def any_broken(self, slots: Sequence[int]) -> bool:
        """Whether a token in one of the slots is broken. Waits for the device."""
        where = torch.tensor(slots, dtype=torch.int64).to(self.device)
        return bool(self.slot_broken.index_select(0, where).any())

    def fill_in(self, segment: Segment, slots: Sequence[int]) -> None:
        """Label the slots of all of a segment's tokens, whose keys and values are available."""
        where = torch.tensor(slots, dtype=torch.int64).to(self.device)
        positions = torch.arange(segment.start, segment.end, dtype=torch.int32, device=self.device)
        # A slot that was freed before must not lose its new label again.
        self.unlabel(torch.tensor(self.freed, dtype=torch.int64).to(self.device))
        self.label(where, torch.full_like(positions, segment.id), positions)
        self.mark_broken(where, torch.zeros_like(positions, dtype=torch.bool))


def _seen_by(segments: Sequence[Segment], at: int) -> dict[Segment, int]:
    """These segments and all that they see, each up to the furthest position below `at`."""
    found: dict[Segment, int] = {}
    for segment in segments:
        for other, upto in [*segment.ancestors.items(), (segment, at)]:
            if not other.released:
                found[other] = max(found.get(other, 0), min(upto, at))
    return found
