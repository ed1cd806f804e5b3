"""Prompts that begin alike are prefilled once.

Requests that run together share: the common beginning of their prompts lies in one segment that
all of them fork from, and whoever comes first feeds it. Requests that follow one another share
too: when the last one leaves a segment, its keys and values are *parked*, copied out of the slots,
so that they cost attention nothing while nobody uses them; a later prompt that begins alike gets
them copied back, which costs next to nothing beside a prefill. What was used least recently goes
first when the budget is spent.

    prompt A   document question-A         segment 1: document question-A     ← parked when both
    prompt B   document question-B         segment 2: question-B, forked        have ended
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from langchain_pos.engine.cache.key_values import SlotCache
from langchain_pos.engine.forest.segments import Ledger, Segment, SegmentForest
from langchain_pos.engine.forest.slots import ROOM
from langchain_pos.engine.forest.state import State
from langchain_pos.engine.forest.states import resumable

LEAST = 64
"""Tokens that must be alike before sharing them is worth a segment."""


@dataclass(eq=False)
class Prefix:
    """The segment of a shared beginning while requests use it.

    Attributes:
        segment: where its tokens lie, from where it was forked.
        tokens: all tokens from position 0 to its end, as they will be once they are fed.
        parent: the prefix that it was forked from.
        users: the positions at which living segments were forked from it.
    """

    segment: Segment
    tokens: array[int]
    parent: Prefix | None = None
    users: list[int] = field(default_factory=list)

    def slots(self, upto: int) -> list[int]:
        """The slots of the positions from 0 to `upto`, its ancestors' included."""
        start = min(self.segment.start, upto)
        before = [] if self.parent is None else self.parent.slots(start)
        return [*before, *self.segment.slots[: upto - start]]

    def states(self, upto: int) -> dict[int, State]:
        """The states that are known at positions up to `upto`, its ancestors' included."""
        before = {} if self.parent is None else self.parent.states(min(self.segment.start, upto))
        return before | {at: s for at, s in self.segment.states.items() if at <= upto}


@dataclass(eq=False)
class _Parked:
    tokens: array[int]
    keys: list[torch.Tensor]  # and values, of each layer, [1, kv_heads, tokens, head_dim]
    states: dict[int, State]  # by position, where the model keeps any; the last one at the end
    worth: int  # tokens whose keys and values take as much memory


class PrefixCache:
    """What prompts have in common, in use and parked.

    Args:
        forest: where segments are made.
        cache: where their keys and values lie.
        max_parked: tokens to keep for later at most; 0 shares between running requests only.
    """

    def __init__(self, forest: SegmentForest, cache: SlotCache, *, max_parked: int) -> None:
        self.max_parked = max_parked
        self._forest = forest
        self._cache = cache
        self._live: list[Prefix] = []
        self._parked: OrderedDict[bytes, _Parked] = OrderedDict()

    @property
    def parked(self) -> int:
        """Tokens that are kept for later."""
        return sum(len(entry.tokens) for entry in self._parked.values())

    @property
    def _worth(self) -> int:
        return sum(entry.worth for entry in self._parked.values())

    @property
    def slots(self) -> int:
        """Slots that shared prefixes hold, or will when they are fed, with their states."""
        own = [len(prefix.tokens) - prefix.segment.start for prefix in self._live]
        return sum(self._forest.pool.cost(0, tokens) for tokens in own)

    def clear(self) -> None:
        """Forget what is parked."""
        self._parked.clear()

    def root(self, owner: Ledger, prompt_ids: Sequence[int]) -> tuple[Segment, list[Prefix], int]:
        """A segment for a prompt, behind what is known of the prompt.

        Args:
            owner: the request's ledger; the segment is its own.
            prompt_ids: the prompt. Its last token is never shared, so that there is one to feed.

        Returns:
            the segment; the shared ones before it, outermost first, of which some tokens may not
            be fed yet; and how many tokens need not be fed, because they are or will be there.
        """
        shared = array("q", prompt_ids[:-1])
        if len(shared) < LEAST:
            return self._forest.root(owner), [], 0
        prefix, known = self._longest(shared)
        if prefix is None:
            prefix, known = self._unpark(shared)
        if known < len(shared):
            prefix = self._new(shared, prefix, known)
        if prefix is None:
            raise RuntimeError("a prefix of at least one token has a segment")
        segment = self._forest.fork(prefix.segment, at=len(shared), owner=owner)
        last, at = prefix, len(shared)
        last.users.append(at)
        segment.on_release = lambda: self._leave(last, at)
        chain = []
        while prefix is not None:
            chain.append(prefix)
            prefix = prefix.parent
        return segment, chain[::-1], known

    def _longest(self, tokens: array[int]) -> tuple[Prefix | None, int]:
        """The live prefix that begins like `tokens` the longest, and how long."""
        best, length = None, LEAST - 1
        for prefix in self._live:
            common = _common(prefix.tokens, tokens)
            if self._forest.keeps_states:
                common = resumable(prefix.segment, common)
            if common > length:
                best, length = prefix, common
        # A fork must not lie before its parent's first token.
        while best is not None and length < best.segment.start:
            best = best.parent
        return (best, length) if best is not None else (None, 0)

    def _new(self, tokens: array[int], parent: Prefix | None, at: int) -> Prefix:
        ledger = Ledger(expected=len(tokens) - at + ROOM)  # those that stand on it lie behind it
        if parent is None:
            segment = self._forest.root(ledger)
        else:
            segment = self._forest.fork(parent.segment, at=at, owner=ledger)
            parent.users.append(at)
        prefix = Prefix(segment, tokens, parent)
        self._live.append(prefix)
        return prefix

    def _leave(self, prefix: Prefix, at: int) -> None:
        """One who was forked from `prefix` at a position is gone."""
        prefix.users.remove(at)
        if prefix.users:
            # The others need no more than this; nobody has reserved slots for the rest.
            needed = max(prefix.users)
            prefix.tokens = prefix.tokens[:needed]
            self._forest.truncate(prefix.segment, needed)
            return
        self._park(prefix)
        self._live.remove(prefix)
        self._forest.release(prefix.segment)
        if prefix.parent is not None:
            self._leave(prefix.parent, prefix.segment.start)

    # ------------------------------------------------------------------ parking

    @torch.inference_mode()
    def _park(self, prefix: Prefix) -> None:
        end = prefix.segment.end
        states = prefix.states(end)
        if self._forest.keeps_states:  # nothing can be done with what lies after the last one
            end = max(states, default=0)
        tokens = prefix.tokens[:end]
        if not LEAST <= end <= self.max_parked:
            return
        for key, entry in list(self._parked.items()):
            common = _common(entry.tokens, tokens)
            if common == len(tokens):  # known already, perhaps with more behind it
                self._parked.move_to_end(key)
                return
            if common == len(entry.tokens):  # the beginning of what is parked now
                del self._parked[key]
        slots = prefix.slots(end)
        if len(slots) < end or self._forest.any_broken(slots):  # a parent may have been emptied
            return
        if not all(state.is_finite() for state in states.values()):
            return
        try:
            keys = self._cache.copy_out(slots)
        except (RuntimeError, MemoryError):  # no memory to spare: what is parked is a luxury
            self.clear()
            return
        extra = len(states) * self._forest.pool.state_slots
        self._parked[tokens.tobytes()] = _Parked(tokens, keys, states, end + extra)
        while self._worth > self.max_parked:
            self._parked.popitem(last=False)

    @torch.inference_mode()
    def _unpark(self, tokens: array[int]) -> tuple[Prefix | None, int]:
        """A new segment with what is parked of `tokens`, and how much that is.

        No more of it than there are free slots for: what is parked is a luxury.
        """
        found, length = None, LEAST - 1
        for key, entry in self._parked.items():
            common = _common(entry.tokens, tokens)
            if common > length:
                found, length = key, common
        pool = self._forest.pool
        length = min(length, max(pool.free - pool.states(length), 0))
        if found is not None and self._forest.keeps_states:
            length = max([0, *(at for at in self._parked[found].states if at <= length)])
        if found is None or length < LEAST:
            return None, 0
        self._parked.move_to_end(found)
        prefix = self._new(tokens[:length], None, 0)
        try:
            slots = self._forest.extend(prefix.segment, length)
            self._forest.fill_in(prefix.segment, slots)
            self._cache.copy_in(
                slots,
                [keys[:, :, :length] for keys in self._parked[found].keys],
                extent=self._forest.extent,
                max_slots=self._forest.max_slots,
            )
            if self._forest.keeps_states:
                prefix.segment.tokens = list(prefix.tokens)
                kept = self._parked[found].states
                prefix.segment.states = {at: kept[at] for at in kept if at <= length}
        except BaseException:
            self._live.remove(prefix)
            self._forest.release(prefix.segment)
            raise
        return prefix, length


def _common(left: array[int], right: array[int]) -> int:
    """Length of the common beginning: a binary search over comparisons in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
