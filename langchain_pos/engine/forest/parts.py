"""What each row of a pass looks at: the mask rule, computed only where it can be true.

One mask over all rows and all slots is the least work for a single sequence. Thirty branches or
thirty requests would read thirty times as many slots as they see. So a pass is planned in *parts*,
of rows that look at the same slots:

    rows            slots
    A B C   30  →   the prompt that A, B and C have in common        a part, read once for all rows
    A       10  →   A's own pages    ┐
    B       10  →   B's own pages    ├  a batch: the pages are copied side by side
    C       10  →   C's own pages    ┘

Attention computes each part under the mask rule, and the parts' results are merged by their
log-sum-exp. The plan decides nothing about who sees whom: it must only bring every row together
with every slot that it sees, and no pair twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.forest.slots import PAGE

LEAST_SAVED = {"cpu": 8192, "cuda": 1 << 18}
"""Pairs of a row and a slot that each part must save, for it costs a few calls of its own. On a CPU
from the times of a layer with 14 heads of 64 on two cores (a pair takes 40 ns, a further part about
0.25 ms); on CUDA an estimate."""
COPIED = 2
"""Pairs that it costs to copy a slot's keys and values for a batch."""

BLOCK = 128
"""Rows of a long prompt that are attended to together: its first rows do not see its last."""
_ALONE = 64
"""A block of so many rows reads all that it sees by itself: to share would save it nothing."""
_SHARED = 512
"""Slots that a part must save from being copied for one more row each."""
_IN_PLACE = 512
"""Own slots that are read where they lie, if they lie in one stretch, not copied into a batch."""
_BATCHED = 16
"""Rows that a block in a batch may have: a batch is as wide as its widest block."""

Feeds = Sequence[tuple[Segment, Sequence[int]]]
"""The segments of a pass, with the tokens that each is fed."""


@dataclass(frozen=True)
class Block:
    """Rows of one segment, and the tokens in them.

    Attributes:
        feed: which of the pass's feeds.
        begin: first of the feed's tokens.
        end: the one after its last.
    """

    feed: int
    begin: int
    end: int

    @property
    def rows(self) -> int:
        """Rows, one for each token."""
        return self.end - self.begin


@dataclass(frozen=True)
class Part:
    """Rows that look at the same slots where these lie.

    Attributes:
        rows: first row, and the one after the last.
        spans: of slots, each from its first one to the one after its last; whole pages.
    """

    rows: tuple[int, int]
    spans: tuple[tuple[int, int], ...]

    @property
    def pairs(self) -> int:
        """Pairs of a row and a slot."""
        return (self.rows[1] - self.rows[0]) * sum(end - begin for begin, end in self.spans)


@dataclass(frozen=True)
class Batch:
    """Blocks of rows side by side, each with pages of its own.

    Attributes:
        rows: of each block the first row, and the one after the last.
        pages: of each block.
    """

    rows: tuple[tuple[int, int], ...]
    pages: tuple[tuple[int, ...], ...]

    @property
    def present(self) -> int:
        """Rows in the batch."""
        return sum(end - begin for begin, end in self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, and the most rows and pages of any of them."""
        widest = max(end - begin for begin, end in self.rows)
        return len(self.rows), widest, max(map(len, self.pages))

    @property
    def pairs(self) -> int:
        """Pairs of a row and a slot, those that only fill up included."""
        blocks, rows, pages = self.shape
        return blocks * rows * pages * PAGE

    def layout(self, together: int) -> tuple[list[int], list[int], list[int], list[int]]:
        """As the device needs it, padded to B blocks of R rows and P pages.

        Args:
            together: rows of the pass that are in several parts.

        Returns:
            the row in each place, `[B * R]`; the place of each of the `together` rows, -1 for one
            that is in no block; the pages `[B * P]`; and how many of them are each block's, `[B]`.
        """
        _, widest, longest = self.shape
        rows: list[int] = []
        places = [-1] * together
        pages: list[int] = []
        for (begin, end), own in zip(self.rows, self.pages, strict=True):
            places[begin:end] = range(len(rows), len(rows) + end - begin)
            rows += [*range(begin, end), *[begin] * (widest - end + begin)]
            pages += [*own, *[0] * (longest - len(own))]
        return rows, places, pages, [len(own) for own in self.pages]


@dataclass(frozen=True)
class Plan:
    """The rows of a pass in order, and what they look at.

    Attributes:
        blocks: the rows.
        together: the first so many rows are in several parts.
        shared: the parts of these rows.
        batch: what else these rows look at.
        alone: parts of the other rows, each in one part only.
    """

    blocks: tuple[Block, ...]
    together: int
    shared: tuple[Part, ...]
    batch: Batch | None
    alone: tuple[Part, ...]

    @property
    def pairs(self) -> int:
        """Pairs of a row and a slot."""
        batched = self.batch.pairs if self.batch is not None else 0
        return sum(part.pairs for part in (*self.shared, *self.alone)) + batched

    @property
    def cost(self) -> int:
        """The work in pairs, but for what each part costs by itself."""
        copied = 0
        if self.batch is not None:
            blocks, _, pages = self.batch.shape
            copied = COPIED * blocks * pages * PAGE
        return self.pairs + copied

    @property
    def parts(self) -> int:
        """Parts, a batch counting twice."""
        return len(self.shared) + len(self.alone) + 2 * (self.batch is not None)


def whole(feeds: Feeds, extent: int) -> Plan:
    """All rows with all slots."""
    blocks = tuple(Block(feed, 0, len(new)) for feed, (_, new) in enumerate(feeds) if new)
    rows = sum(block.rows for block in blocks)
    return Plan(blocks, 0, (), None, (Part((0, rows), ((0, extent),)),))


def plan(feeds: Feeds, extent: int, least_saved: int) -> Plan:
    """The parts of a pass; one where more would save too little.

    Args:
        feeds: segments with their new tokens, for which they hold slots already.
        extent: slots that there are keys of, from 0; whole pages.
        least_saved: pairs of a row and a slot that each part must save.
    """
    everything = whole(feeds, extent)
    if everything.cost < 2 * least_saved:
        return everything
    parts = _parts(feeds, least_saved)
    saved = everything.cost - parts.cost
    return parts if saved >= least_saved * (parts.parts - 1) else everything


def _parts(feeds: Feeds, least_saved: int) -> Plan:
    few: list[Block] = []
    many: list[Block] = []
    for feed, (_, new) in enumerate(feeds):
        begin = 0
        last = len(new)
        for end in [*range(BLOCK, last - BLOCK + 1, BLOCK), last]:
            if end > begin:
                (many if end - begin >= _ALONE else few).append(Block(feed, begin, end))
            begin = end

    # 1. What several blocks look at becomes a part, where that saves enough; the rest is theirs.
    own: list[list[int]] = [[] for _ in few]
    common: list[tuple[tuple[int, ...], list[int]]] = []
    for viewers, pages, whole_pages in _views([feeds[block.feed][0] for block in few]):
        # A page that its viewers see a part of would need a mask for all pages of the part.
        if whole_pages and (len(viewers) - 1) * len(pages) * PAGE >= _SHARED:
            common.append((viewers, pages))
        else:
            for viewer in viewers:
                own[viewer] += pages

    # 2. Blocks that are in parts with others come first, then those that are in one part only.
    stays = [
        few[v].rows > _BATCHED or (len(p) * PAGE >= _IN_PLACE and len(spans(p)) == 1)
        for v, p in enumerate(own)
    ]
    sizes = {v: (few[v].rows, len(p)) for v, p in enumerate(own) if p and not stays[v]}
    for v in _too_long(sizes, max(least_saved, 0)):
        stays[v] = True
    sharing = {viewer for viewers, _ in common for viewer in viewers}
    batched = [v for v in range(len(few)) if own[v] and not stays[v]]
    first = [v for v in range(len(few)) if v in sharing or not stays[v]]
    rest = [v for v in range(len(few)) if v not in sharing and stays[v]]
    blocks = [*(few[v] for v in first), *(few[v] for v in rest), *many]
    ends = list(accumulate(block.rows for block in blocks))
    rows = [(end - block.rows, end) for block, end in zip(blocks, ends, strict=True)]
    place = {v: rows[index] for index, v in enumerate([*first, *rest])}

    shared = [
        Part((min(place[v][0] for v in viewers), max(place[v][1] for v in viewers)), spans(pages))
        for viewers, pages in common
    ]
    shared += [Part(place[v], spans(own[v])) for v in first if stays[v] and own[v]]
    alone = [Part(place[v], spans(own[v], loose=True)) for v in rest]
    for block, where in zip(many, rows[len(few) :], strict=True):
        alone.append(Part(where, spans(_in_sight(feeds, block), loose=True)))
    batch = None
    if batched:
        batch = Batch(
            tuple(place[v] for v in batched), tuple(tuple(sorted(own[v])) for v in batched)
        )
    together = ends[len(first) - 1] if first else 0
    return Plan(tuple(blocks), together, tuple(shared), batch, tuple(alone))


def _too_long(sizes: Mapping[int, tuple[int, int]], least_saved: int) -> list[int]:
    """The blocks that a batch is better without: it is as long as its longest one.

    Args:
        sizes: rows and pages of each block, by its number.
        least_saved: pairs that a part costs by itself.
    """
    order = sorted(sizes, key=lambda v: -sizes[v][1])
    widest = 0
    costs = [0]  # of the batch of the last 0, 1, 2, … blocks
    for count, v in enumerate(reversed(order), start=1):
        rows, pages = sizes[v]
        widest = max(widest, rows)
        costs.append(count * (widest + COPIED) * pages * PAGE + 2 * least_saved)
    least, best, apart = costs[-1], 0, 0
    for count, v in enumerate(order, start=1):
        rows, pages = sizes[v]
        apart += (rows + COPIED) * pages * PAGE + least_saved
        cost = apart + costs[len(order) - count]
        if cost < least:
            least, best = cost, count
    return order[:best]


def _views(segments: Sequence[Segment]) -> Iterator[tuple[tuple[int, ...], list[int], bool]]:
    """The pages that some of `segments` look at, by which of them do; every page once.

    With whether they see all of these pages' slots, but for those that come after them.
    """
    looks: dict[Segment, dict[int, list[int]]] = {}
    for viewer, segment in enumerate(segments):
        for seen, upto in segment.ancestors.items():
            count = min(upto - seen.start, len(seen.slots))
            if count > 0:
                looks.setdefault(seen, {}).setdefault(count, []).append(viewer)
        looks.setdefault(segment, {}).setdefault(len(segment.slots), []).append(viewer)
    found: dict[tuple[tuple[int, ...], bool], list[int]] = {}
    for seen, by_count in looks.items():
        done = 0
        for count in sorted(by_count):
            viewers = tuple(sorted(v for c, some in by_count.items() if c >= count for v in some))
            pages = seen.pages_of(count)
            for end, entire in ((count // PAGE, True), (len(pages), False)):
                if end > done:
                    found.setdefault((viewers, entire), []).extend(pages[done:end])
                    done = end
    # When memory is short, segments share pages. Whoever sees one of them then looks at the page.
    claims = [page for pages in found.values() for page in pages]
    if len(set(claims)) == len(claims):
        yield from ((viewers, pages, entire) for (viewers, entire), pages in found.items())
        return
    by_page: dict[int, set[int]] = {}
    for (viewers, _), pages in found.items():
        for page in pages:
            by_page.setdefault(page, set()).update(viewers)
    regrouped: dict[tuple[int, ...], list[int]] = {}
    for page, all_viewers in by_page.items():
        regrouped.setdefault(tuple(sorted(all_viewers)), []).append(page)
    yield from ((viewers, pages, True) for viewers, pages in regrouped.items())


def _in_sight(feeds: Feeds, block: Block) -> set[int]:
    """The pages that the block's rows see something in."""
    segment, new = feeds[block.feed]
    pages = set(segment.pages_of(len(segment.slots) - len(new) + block.end))
    for seen, upto in segment.ancestors.items():
        pages.update(seen.pages_of(max(upto - seen.start, 0)))
    return pages


def spans(pages: Iterable[int], *, loose: bool = False) -> tuple[tuple[int, int], ...]:
    """Stretches of slots that cover `pages`, in order: first slot, and the one after the last.

    Args:
        pages: in any order.
        loose: a span may hold a few other pages as well, where that saves a cut.
    """
    found: list[list[int]] = []
    slack = 1.25 if loose else 1.0
    for page in sorted(pages):
        begin, end = page * PAGE, (page + 1) * PAGE
        if found and end - found[-1][0] <= slack * (found[-1][2] + PAGE):
            found[-1][1:] = [end, found[-1][2] + PAGE]
        else:
            found.append([begin, end, PAGE])
    return tuple((begin, end) for begin, end, _ in found)
