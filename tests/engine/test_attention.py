"""Attention with heads folded into rows, in one part or in several."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_pos.engine import attention
from langchain_pos.engine.attention import fold_mask, folded_attention_forward, of_pages
from langchain_pos.engine.forest.parts import Feeds, Plan, plan, whole
from langchain_pos.engine.forest.segments import Ledger, Segment, SegmentForest
from langchain_pos.engine.forest.slots import PAGE
from langchain_pos.engine.forward.masks import PassMasks

MODULE = torch.nn.Identity()


def obvious(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scale: float
) -> torch.Tensor:
    """Head by head and in float64: `[1, Q, H, D]`."""
    groups = query.shape[1] // key.shape[1]
    out = []
    for head in range(query.shape[1]):
        k, v = key[0, head // groups].double(), value[0, head // groups].double()
        scores = query[0, head].double() @ k.T * scale
        out.append(torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1) @ v)
    return torch.stack(out, dim=1)[None]


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (7, 1)])
@pytest.mark.parametrize(("rows", "slots"), [(1, 256), (5, 512), (32, 2048), (3, 300)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_folded_attention_is_the_obvious_loop(
    heads: tuple[int, int], rows: int, slots: int, scaling: float | None
) -> None:
    """Random masks, chunks of which a row sees nothing included."""
    torch.manual_seed(rows)
    query = torch.randn(1, heads[0], rows, 16)
    key, value = torch.randn(1, heads[1], slots, 16), torch.randn(1, heads[1], slots, 16)
    seen = torch.rand(rows, slots) < 0.05
    seen[:, 0] = True
    seen[0, 1:] = False
    expected = obvious(query, key, value, seen, scaling or 16**-0.5).float()
    mask = torch.zeros(1, 1, rows, slots).masked_fill(~seen, float("-inf"))
    mask = fold_mask(mask, heads[0] // heads[1])
    found, _ = folded_attention_forward(MODULE, query, key, value, mask, scaling=scaling)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def attended(
    forest: SegmentForest,
    feeds: Feeds,
    parts: Plan,
    window: int | None,
    heads: tuple[int, int],
    *,
    broken_row: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the rows in the feeds' order, and which of them see a broken token."""
    batch = parts.batch.layout(parts.together) if parts.batch is not None else ()
    order = [
        (block.feed, token) for block in parts.blocks for token in range(block.begin, block.end)
    ]
    segments = [feeds[feed][0] for feed, _ in order]
    masks = PassMasks(
        parts,
        forest,
        torch.tensor([segment.id for segment in segments], dtype=torch.int32),
        torch.tensor(
            [s.end - len(feeds[f][1]) + t for s, (f, t) in zip(segments, order, strict=True)],
            dtype=torch.int32,
        ),
        [torch.tensor(numbers) for numbers in batch],
        extent=forest.extent,
        groups=heads[0] // heads[1],
        dtype=torch.float32,
    )
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, heads[0], len(order), 8, generator=generator)
    key = torch.randn(1, heads[1], forest.extent, 8, generator=generator)
    value = torch.randn(1, heads[1], forest.extent, 8, generator=generator)
    back = sorted(range(len(order)), key=order.__getitem__)
    query[:, :, back] = query.clone()  # a feed's rows are the same in any order
    if broken_row is not None:
        query[:, :, back[broken_row]] = float("nan")
    found, _ = folded_attention_forward(MODULE, query, key, value, masks.mask(window))
    return found[:, back], masks.broken()[back]


def grown(data: st.DataObject) -> tuple[SegmentForest, Feeds]:
    """A random forest, and feeds whose tokens have their slots and labels already."""
    forest = SegmentForest(torch.device("cpu"), max_slots=data.draw(st.sampled_from([90, 4000])))
    ledgers = [Ledger(), Ledger(expected=32)]

    def extend(segment: Segment, count: int) -> int:
        count = min(count, forest.pool.free)
        start, slots = segment.end, torch.tensor(forest.extend(segment, count), dtype=torch.int64)
        forest.unlabel(torch.tensor(forest.freed, dtype=torch.int64))
        ids = torch.full((count,), segment.id, dtype=torch.int32)
        forest.label(slots, ids, torch.arange(start, start + count, dtype=torch.int32))
        forest.mark_broken(slots, torch.rand(count, generator=chance) < 0.02)
        return count

    chance = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    live = [forest.root(ledgers[0])]
    for _ in range(data.draw(st.integers(1, 15))):
        action = data.draw(
            st.sampled_from(["extend", "fork", "fork", "join", "root", "cut", "end"])
        )
        segment = data.draw(st.sampled_from(live))
        if action == "extend":
            extend(segment, data.draw(st.sampled_from([1, 5, 40, 600])))
        elif action == "fork":
            live.append(forest.fork(segment, data.draw(st.integers(segment.start, segment.end))))
        elif action == "join":
            parents = data.draw(st.lists(st.sampled_from(live), min_size=1, unique=True))
            live.append(forest.join(parents, max(parent.end for parent in parents)))
        elif action == "root":
            live.append(forest.root(data.draw(st.sampled_from(ledgers))))
        elif action == "cut":
            forest.truncate(segment, data.draw(st.integers(segment.start, segment.end)))
        elif len(live) > 1:
            live.remove(segment)
            forest.release(segment)
    feeds: list[tuple[Segment, list[int]]] = []
    for segment in data.draw(st.lists(st.sampled_from(live), unique=True, min_size=1)):
        count = extend(segment, data.draw(st.sampled_from([1, 1, 3, 20, 300])))
        feeds += [(segment, [0] * count)] if count else []
    forest.unlabel(torch.tensor(forest.freed, dtype=torch.int64))
    forest.send_reach()
    return forest, feeds


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(), window=st.none() | st.integers(1, 50), heads=st.sampled_from([(2, 2), (6, 2)])
)
def test_attention_in_parts_is_attention_in_one(
    data: st.DataObject, window: int | None, heads: tuple[int, int]
) -> None:
    """Whatever was forked, joined, cut, released or fed: the same states, the same broken rows."""
    forest, feeds = grown(data)
    if not feeds:
        return
    expected, broken = attended(forest, feeds, whole(feeds, forest.extent), window, heads)
    found, same = attended(forest, feeds, plan(feeds, forest.extent, -(1 << 40)), window, heads)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(same, broken)


def test_nan_of_a_row_stays_in_its_row() -> None:
    """Also where another row, which is in no batch, is given a place in it to be ignored."""
    forest = SegmentForest(torch.device("cpu"))
    root = forest.root(Ledger())
    forest.extend(root, 1200)  # enough of its own to be read where it lies
    branches = [forest.fork(root, at=592) for _ in range(3)]
    feeds = [(segment, [0]) for segment in (root, *branches)]
    for segment, _ in feeds:
        forest.extend(segment, 1)
        slots = torch.tensor(segment.slots)
        forest.label(
            slots,
            torch.full_like(slots, segment.id, dtype=torch.int32),
            torch.arange(segment.start, segment.end, dtype=torch.int32),
        )
    forest.send_reach()
    parts = plan(feeds, forest.extent, -(1 << 40))
    assert parts.batch is not None
    assert parts.batch.rows[0] == (1, 2), "the root's own row is not in the batch"
    found, _ = attended(forest, feeds, parts, None, (2, 2), broken_row=1)
    assert found[0].isnan().any(-1).any(-1).tolist() == [False, True, False, False]


def test_without_a_kernel_that_gives_its_log_sum_exp_it_is_computed() -> None:
    """Values of another width than the keys take no such kernel on a CPU: the sums are the same."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 16, 8)
    value, mask = torch.randn(2, 2, 16, 4), torch.randn(2, 1, 3, 16)
    wide = torch.nn.functional.pad(value, (0, 4))
    kernel, sums = attention._attend(query, key, wide, mask, 0.4)
    found, same = attention._attend(query, key, value, mask, 0.4)
    torch.testing.assert_close(found, kernel[..., :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same, sums, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_pages_are_copied_and_nothing_else(heads: int) -> None:
    """Of a view with gaps between its heads; what is copied is as large as the result."""
    whole_cache = torch.randn(heads, 500 * PAGE, 8)
    states = whole_cache[:, : 400 * PAGE]
    pages = torch.tensor([3, 0, 399, 3])
    with torch.profiler.profile(profile_memory=True) as profile:
        found = of_pages(states, pages)
    slots = torch.cat([torch.arange(page * PAGE, (page + 1) * PAGE) for page in pages.tolist()])
    assert torch.equal(found, states[:, slots])
    assert torch.equal(found, of_pages(states.contiguous(), pages))
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert allocated < 2 * found.nbytes + 1024
