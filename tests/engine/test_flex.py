"""FlexAttention: its lists of blocks, its output, and whole engines on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from langchain_pos.engine import Engine, SamplingParams, choosing, loading
from langchain_pos.engine import flex as flex_module
from langchain_pos.engine.attention import (
    FOLDED,
    SPLIT,
    folded_attention_forward,
    split_attention_forward,
)
from langchain_pos.engine.flex import (
    BLOCK,
    FLEX,
    FlexAttention,
    ForestBlockMask,
    flex_attention_forward,
)
from langchain_pos.engine.forward import ForwardPass
from langchain_pos.engine.grouping import whole
from langchain_pos.engine.segments import NOBODY, Segment, SegmentForest, within
from langchain_pos.engine.slots import Ledger
from langchain_pos.errors import UnsupportedModelError
from tests.engine.test_attention import MODULE, obvious
from tests.engine.tiny import greedy_reference, ids, said, tiny_engine, tiny_model
from tests.engine.tokenizers_ import byte_level

CPU = torch.device("cpu")
PREFIX = ids(300, seed=3)
OPENINGS = [ids(1 + place % 5, seed=40 + place) for place in range(9)]
WHOLE: dict[str, Any] = {"cuda_graphs": True, "attn_implementation": FLEX}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def flex() -> FlexAttention:
    """One for all tests: what it has traced is traced."""
    return FlexAttention(CPU)


def forest_rows(
    seed: int, rows: int, slots: int, window: int | None = None, padding: int = 0
) -> torch.Tensor:
    """What the rows of a pass over a random forest see: bool `[rows, slots]`.

    Several trees of prompts and branches of branches, grown in turns, with branches that have
    ended in between; the last `padding` rows are nobody's.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    forest, ledger = SegmentForest(CPU, capacity=slots, spare_slots=1), Ledger()
    live: list[Segment] = []

    def feed(segment: Segment, count: int) -> None:
        begin, count = segment.end, min(count, slots - 1 - forest.slots_in_use)
        where = torch.tensor(forest.extend(segment, count), dtype=torch.int64)
        positions = torch.arange(begin, begin + count, dtype=torch.int32)
        forest.label(where, torch.full_like(positions, segment.id), positions)

    for _ in range(draw(1, 3)):
        live.append(forest.root(ledger))
        feed(live[-1], draw(1, slots // 3))
    for _ in range(draw(2, 8)):
        live.append(forest.fork(live[draw(0, len(live) - 1)]))
        feed(live[-1], draw(1, 9))
    for _ in range(draw(1, 12)):
        for segment in live:
            feed(segment, draw(0, 4))
        if len(live) > 3 and draw(0, 5) == 0:
            forest.release(live.pop(draw(0, len(live) - 1)))
            forest.unlabel(torch.tensor(forest.freed, dtype=torch.int64))
    forest.send_reach()
    held = [segment for segment in live if segment.slots]
    asked = [held[draw(0, len(held) - 1)] for _ in range(rows - padding)]
    owners = [segment.id for segment in asked] + [NOBODY] * padding
    positions = [draw(segment.start, segment.end - 1) for segment in asked] + [0] * padding
    owner = torch.tensor(owners, dtype=torch.int32)
    position = torch.tensor(positions, dtype=torch.int32)
    seen = forest.mask(owner, position, whole(rows, slots)[0])
    return seen & within(window, position, forest.slot_position[:slots]) if window else seen


def states(
    heads: tuple[int, int], rows: int, slots: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query, key and value."""
    torch.manual_seed(rows)
    key, value = torch.randn(2, 1, heads[1], slots, dim).to(dtype)
    return torch.randn(1, heads[0], rows, dim).to(dtype), key, value


# ------------------------------------------------------------------ lists of blocks


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1 << 20),
    rows=st.integers(1, 64),
    padding=st.integers(0, 9),
    window=st.none() | st.integers(1, 200),
    slots=st.sampled_from([256, 768, 1024]),
)
def test_blocks_are_those_of_create_block_mask(
    seed: int, rows: int, padding: int, window: int | None, slots: int
) -> None:
    """Made by two reductions, they cover what torch's own way covers, element by element."""
    seen = forest_rows(seed, rows, slots, window, min(padding, rows - 1))
    mask = FlexAttention(CPU).mask(seen, 2)
    assert mask is not None
    size = mask.seen.shape[0]
    theirs = create_block_mask(
        lambda batch, head, row, slot: mask.seen[row, slot],
        None, None, size, slots, device="cpu", BLOCK_SIZE=(size, BLOCK),
    )  # fmt: skip
    assert torch.equal(mask.to_dense(), theirs.to_dense().expand(2, -1, -1, -1))
    assert mask.shape == (2, 1, size, slots)
    # Full blocks are full for each row that sees anything, and no other blocks are.
    full = mask.full_kv_indices[0, 0, 0, : mask.full_kv_num_blocks[0, 0, 0]].tolist()
    for block in range(slots // BLOCK):
        part = seen[seen.any(dim=1), block * BLOCK : (block + 1) * BLOCK]
        assert (block in full) == bool(part.all())


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("seed", range(4))
def test_full_and_partial_blocks_are_those_of_create_block_mask(size: int, seed: int) -> None:
    """Where all rows count, so do the two lists one by one, in the same order."""
    seen = forest_rows(seed, size, 1024)
    seen[:, : BLOCK * (seed + 1)] = True
    mask = FlexAttention(CPU).mask(seen, 1)
    assert mask is not None
    theirs = create_block_mask(
        lambda batch, head, row, slot: seen[row, slot],
        None, None, size, 1024, device="cpu", BLOCK_SIZE=(size, BLOCK),
    )  # fmt: skip
    assert theirs.full_kv_num_blocks.item() > seed
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(mask, name), getattr(theirs, name)), name
        assert getattr(mask, name).dtype == torch.int32


def test_slots_that_nobody_sees_are_in_no_block() -> None:
    """Padding rows and other requests' slots make no block worth reading."""
    seen = torch.zeros(20, 1024, dtype=torch.bool)
    seen[:18, : 2 * BLOCK] = True
    seen[7, 5 * BLOCK + 3] = True
    mask = FlexAttention(CPU).mask(seen, 1)
    assert mask is not None
    assert mask.full_kv_num_blocks.item() == 2
    assert mask.full_kv_indices[0, 0, 0, :2].tolist() == [0, 1]
    assert mask.kv_num_blocks.item() == 1
    assert mask.kv_indices[0, 0, 0, 0].item() == 5


def test_only_passes_of_fixed_shapes_are_taken() -> None:
    """More rows, or slots that are no bucket, are attended to in another way."""
    flex = FlexAttention(CPU)
    for rows, slots, takes in [(1, 256, True), (64, 768, True), (65, 768, False), (8, 640, False)]:
        assert (flex.mask(torch.ones(rows, slots, dtype=torch.bool), 1) is not None) is takes


# --------------------------------------------------------------------------- output


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (7, 1), (10, 2)])
@pytest.mark.parametrize("dim", [64, 128, 80])
@pytest.mark.parametrize(("rows", "scaling"), [(1, None), (17, 0.3)])
def test_the_output_is_the_obvious_loop(
    heads: tuple[int, int], dim: int, rows: int, scaling: float | None, flex: FlexAttention
) -> None:
    """Groups of any size, head sizes that are no power of two, scaled or not."""
    query, key, value = states(heads, rows, 256, dim)
    seen = torch.rand(rows, 256) < 0.05
    seen[:, :BLOCK] = True
    seen[0, 1:] = False
    mask = flex.mask(seen, heads[0] // heads[1])
    found, _ = flex_attention_forward(MODULE, query, key, value, mask, scaling=scaling)
    expected = obvious(query, key, value, seen, scaling or dim**-0.5).float()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not flex.failed


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 20),
    rows=st.sampled_from([1, 3, 16, 31, 64]),
    padding=st.integers(0, 4),
    window=st.none() | st.integers(1, 200),
    slots=st.sampled_from([256, 768]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_three_ways_agree_on_random_forests(
    seed: int, rows: int, padding: int, window: int | None, slots: int, dtype: torch.dtype
) -> None:
    """Folded, split and flexible, float32 and bfloat16; rows that see nothing are zeros."""
    padding = min(padding, rows - 1)
    seen = forest_rows(seed, rows, slots, window, padding)
    query, key, value = states((6, 2), rows, slots, 16, dtype)
    flex = FlexAttention(CPU)
    mask = flex.mask(seen, 3)
    assert mask is not None
    found, _ = flex_attention_forward(MODULE, query, key, value, mask)
    assert not flex.failed
    awake = seen.any(dim=1)
    assert found.isfinite().all()
    assert not found[:, ~awake].any()
    assert not awake[rows - padding :].any()
    additive = mask.additive(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for attend in (folded_attention_forward, split_attention_forward):
        expected, _ = attend(MODULE, query, key, value, additive)
        torch.testing.assert_close(
            found[:, awake], expected[:, awake], atol=tolerance, rtol=tolerance
        )


def test_another_mask_of_the_same_shape_is_not_compiled_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mask and the lists of blocks are data; only shapes are compiled."""
    graphs: list[object] = []

    def counting(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compile_with = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile_with(f, **{**options, "backend": counting})
    )
    flex = FlexAttention(CPU)
    for rows, slots, new in [(5, 256, True), (5, 512, True), (20, 512, True), (5, 256, False)]:
        for seed in range(4):
            mask = flex.mask(forest_rows(seed, rows, slots), 2)
            assert mask is not None
            before = len(graphs)
            query, key, value = states((4, 2), rows, slots, 24)
            assert flex.attend(query, key, value, mask, None) is not None
            assert len(graphs) - before == (new and seed == 0)


def test_what_a_mask_cannot_say_is_refused(flex: FlexAttention) -> None:
    """Soft-capped scores, sinks, and groups of another size than the mask was made for."""
    query, key, value = states((4, 2), 3, 256, 16)
    mask = flex.mask(torch.ones(3, 256, dtype=torch.bool), 2)
    with pytest.raises(ValueError, match="knows no `softcap`"):
        flex_attention_forward(MODULE, query, key, value, mask, softcap=30.0)
    with pytest.raises(ValueError, match=r"2 query heads to each .* not for 4 to 4"):
        flex_attention_forward(MODULE, query, query, query, mask)


# -------------------------------------------------------------------- whole engines


@pytest.mark.parametrize(
    "name",
    ["qwen2", "llama", "gemma3_text", "olmo2", "mixtral (sliding)", "gpt2", "deepseek_v3"],
)
def test_whole_engines_write_the_same(name: str) -> None:
    """Branches, refill, one sequence, sampling: token for token what folded rows write."""
    engines = [
        tiny_engine(name, cuda_graphs=True, attn_implementation=way, prefix_cache_tokens=0)
        for way in (FOLDED, FLEX)
    ]
    calls: list[Callable[[Engine], object]] = [
        lambda e: e.decode_branches(PREFIX, OPENINGS, max_new_tokens=10, max_parallel=4),
        lambda e: e.decode_branches(
            PREFIX, OPENINGS, max_new_tokens=6, sampling=SamplingParams(temperature=0.9, seed=4)
        ),
        lambda e: e.generate(PREFIX[:9], max_new_tokens=20),
    ]
    for call in calls:
        expected, found = (call(engine) for engine in engines)
        assert found == expected
    assert engines[1].forward.flex is not None
    assert not engines[1].forward.flex.failed
    assert engines[1].describe()["attention"].startswith(FLEX)


def test_branches_are_what_they_are_alone_and_what_generate_writes() -> None:
    """In company, alone, and transformers' own greedy text."""
    engine = tiny_engine(**WHOLE)
    own = tiny_model(vocab_size=len(byte_level()))
    done = engine.decode_branches(PREFIX, OPENINGS, max_new_tokens=12)
    for opening, branch in zip(OPENINGS, done, strict=True):
        alone = engine.generate(PREFIX + opening, max_new_tokens=12)
        assert alone.token_ids == branch.token_ids
        assert list(alone.token_ids) == greedy_reference(own, PREFIX + opening, 12)


def test_every_decoding_pass_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer of each pass but the prefill's attends with blocks."""
    attended: list[int] = []
    attend = FlexAttention.attend

    def counting(self: FlexAttention, query: torch.Tensor, *rest: Any) -> torch.Tensor | None:
        attended.append(query.shape[2])
        return attend(self, query, *rest)

    engine = tiny_engine(**WHOLE)
    monkeypatch.setattr(FlexAttention, "attend", counting)
    engine.decode_branches(PREFIX, OPENINGS, max_new_tokens=8)
    assert len(attended) == 3 * (engine.forward.count - 1)


def test_a_whole_model_can_be_compiled_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then attention is a part of the model's graph, which stays in one piece."""
    expected = tiny_engine().decode_branches(PREFIX, OPENINGS[:4], max_new_tokens=5)
    compile_with = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda f, **options: compile_with(f, **{**options, "backend": "eager", "fullgraph": True}),
    )
    engine = tiny_engine(compile_model=True, attn_implementation=FLEX)
    found = engine.decode_branches(PREFIX, OPENINGS[:4], max_new_tokens=5)
    assert said(found) == said(expected)
    assert type(engine.forward._fixed_model).__name__ == "OptimizedModule"


def test_where_it_does_not_compile_rows_are_folded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is the same, the log says it once, and `describe` says why."""
    expected = tiny_engine().decode_branches(PREFIX, OPENINGS, max_new_tokens=6)

    def refuse(*args: object) -> None:
        raise ImportError("no module named 'triton'\nand more")

    engine = tiny_engine(**WHOLE)
    monkeypatch.setattr(engine.forward.flex, "_attend", refuse)
    with caplog.at_level(logging.WARNING):
        found = engine.decode_branches(PREFIX, OPENINGS, max_new_tokens=6)
    assert said(found) == said(expected)
    assert [record.getMessage() for record in caplog.records] == [
        "FlexAttention does not run here (ImportError: no module named 'triton'); "
        "langchain_pos_folded takes its place"
    ]
    assert engine.describe()["attention"].endswith(
        "given up for langchain_pos_folded: ImportError: no module named 'triton'"
    )


def test_memory_that_runs_out_is_no_reason_to_give_it_up(
    monkeypatch: pytest.MonkeyPatch, flex: FlexAttention
) -> None:
    """It is raised, as it is from the other ways."""

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(flex, "_attend", full)
    mask = flex.mask(torch.ones(3, 256, dtype=torch.bool), 2)
    assert mask is not None
    with pytest.raises(torch.OutOfMemoryError):
        flex.attend(*states((4, 2), 3, 256, 16), mask, None)
    assert not flex.failed


# ------------------------------------------------------------------------- choosing


def test_on_a_cpu_it_is_not_chosen() -> None:
    """There it is for tests, by name."""
    assert loading._fastest(tiny_model()) == FOLDED
    assert tiny_engine(cuda_graphs=True).forward.flex is None


@pytest.mark.parametrize("chosen", [FOLDED, SPLIT, FLEX])
def test_the_fastest_way_is_tried_first(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is taken, since it passes the probe."""
    monkeypatch.setattr(loading, "_fastest", lambda model: chosen)
    assert tiny_engine().model.config._attn_implementation == chosen


def test_a_model_that_does_not_take_its_mask_is_served_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probe feeds fixed shapes, so that it meets the mask before a user does."""
    monkeypatch.setattr(loading, "_fastest", lambda model: FLEX)

    def refuse(*args: object) -> None:
        raise TypeError("a mask of this kind is unknown here")

    monkeypatch.setattr(ForestBlockMask, "__init__", refuse)
    assert tiny_engine().model.config._attn_implementation == FOLDED
    with pytest.raises(UnsupportedModelError, match="unknown here"):
        tiny_engine(**WHOLE)


@pytest.mark.parametrize(
    ("taken", "best"),
    [
        ({FOLDED: 3.0, SPLIT: 2.0, FLEX: 1.0}, FLEX),
        ({FOLDED: 3.0, SPLIT: 2.0}, SPLIT),
        ({FOLDED: 1.0, SPLIT: 2.0, FLEX: 3.0}, FOLDED),
        ({}, FOLDED),
    ],
)
def test_the_fastest_is_found_by_measurement(
    taken: dict[str, float],
    best: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All three are run; what does not run is left out, and the log says so."""
    order = iter((FOLDED, SPLIT, FLEX))

    def measured(attend: Callable[[], object], device: torch.device) -> float:
        name = next(order)
        attend()
        if name not in taken:
            raise NotImplementedError("no such kernel")
        return taken[name]

    monkeypatch.setattr(choosing, "_milliseconds", measured)
    with caplog.at_level(logging.DEBUG, logger=choosing.__name__):
        assert choosing.fastest(6, 2, 64, torch.float32, CPU) == best
    for name in (FOLDED, SPLIT, FLEX):
        left_out = f"{name} attention is left out: no such kernel" in caplog.text
        assert left_out == (name not in taken)


def test_what_failed_to_compile_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else what takes its place would be measured under its name."""

    def refuse(*args: object) -> None:
        raise ImportError("no triton")

    def measured(attend: Callable[[], object], device: torch.device) -> float:
        attend()
        return 1.0

    monkeypatch.setattr(flex_module, "_attend", refuse)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(choosing, "_milliseconds", measured)
    with caplog.at_level(logging.DEBUG, logger=choosing.__name__):
        assert choosing.fastest(6, 2, 64, torch.float32, CPU) == FOLDED
    assert f"{FLEX} attention is left out: ImportError: no triton" in caplog.text


# --------------------------------------------------------------------------- on CUDA


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(4, 4), (14, 2), (28, 4), (32, 8)])
@pytest.mark.parametrize("dim", [64, 128, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_ways_agree_on_cuda(heads: tuple[int, int], dim: int, dtype: torch.dtype) -> None:
    """Compiled for the device: folded, split and flexible, for few and many rows."""
    flex = FlexAttention(torch.device("cuda"))
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    for rows, slots in [(1, 256), (12, 768), (32, 2048), (64, 2048)]:
        seen = forest_rows(rows, rows, slots, padding=rows // 8).cuda()
        query, key, value = (x.cuda() for x in states(heads, rows, slots, dim, dtype))
        mask = flex.mask(seen, heads[0] // heads[1])
        assert mask is not None
        found = flex.attend(query, key, value, mask, None)
        assert found is not None, flex.failed
        awake = seen.any(dim=1)
        assert not found[:, ~awake].any()
        for attend in (folded_attention_forward, split_attention_forward):
            expected, _ = attend(MODULE, query, key, value, mask.additive(dtype))
            torch.testing.assert_close(
                found[:, awake], expected[:, awake], atol=tolerance, rtol=tolerance
            )


@needs_cuda
@pytest.mark.gpu
def test_recorded_passes_write_what_free_ones_write_on_cuda() -> None:
    """In CUDA graphs, in float32, token for token; and one of the three is chosen."""
    tokenizer = byte_level()
    settings = {"vocab_size": len(tokenizer), "head_dim": 16}
    model = tiny_model("qwen3", **settings).to("cuda")
    plain = Engine(model, tokenizer, cuda_graphs=False, attn_implementation=FOLDED)
    plain.eos_token_ids = frozenset()
    expected = plain.decode_branches(PREFIX, OPENINGS, max_new_tokens=14)
    engine = Engine(model, tokenizer, cuda_graphs=True, attn_implementation=FLEX)
    engine.eos_token_ids = frozenset()
    assert said(engine.decode_branches(PREFIX, OPENINGS, max_new_tokens=14)) == said(expected)
    assert engine.forward.graphs is not None, engine.describe()["cuda_graphs"]
    assert engine.forward.flex is not None
    assert not engine.forward.flex.failed
    assert loading._fastest(model) in (FOLDED, SPLIT, FLEX)


def test_the_pass_is_told_its_rows_that_only_fill_up() -> None:
    """They see nothing in blocks, so that they make no block worth reading."""
    forward = ForwardPass(tiny_engine(**WHOLE).model, graphs=True, mask_form="by_layer_type")
    seen: list[torch.Tensor] = []
    assert forward.flex is not None
    make = forward.flex.mask
    forward.flex.mask = lambda s, groups: (seen.append(s), make(s, groups))[1]  # type: ignore[method-assign]
    root = forward.forest.root(Ledger())
    forward.run([(root, PREFIX[:100])], [])
    forward.run([(root, PREFIX[:3])], [0])
    assert seen[-1].shape == (4, 256)
    assert seen[-1].any(dim=1).tolist() == [True, True, True, False]
