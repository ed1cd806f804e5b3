"""Fixed shapes: rows and slots in buckets, padding that nobody sees. CUDA only records them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from langchain_pos.engine import Engine, SamplingParams
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.forward.cuda_graphs import ROWS, StepGraphs, slots_bucket
from tests.support.tiny import ids, tiny_engine, tiny_model
from tests.support.tokenizers import byte_level

PREFIX = ids(300, seed=3)
OPENINGS = [ids(1 + place % 5, seed=40 + place) for place in range(9)]


def test_buckets_hold_what_is_asked_and_waste_at_most_half_of_it() -> None:
    """Multiples of 256, a power of two or one and a half times one."""
    for extent in range(1, 9000):
        bucket = slots_bucket(extent)
        assert bucket >= extent
        assert bucket % 256 == 0
        assert bucket <= 512 or bucket < 1.5 * extent + 1
    assert sorted({slots_bucket(extent) for extent in range(1, 4097)}) == [
        256, 512, 768, 1024, 1536, 2048, 3072, 4096,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "mixtral (sliding)", "gpt2", "olmo2"])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_fixed_shapes_write_what_free_shapes_write(name: str, attention: str) -> None:
    """Branches, refill, one sequence, sampling: token for token, in float32."""
    plain, fixed = (
        tiny_engine(name, attn_implementation=attention, cuda_graphs=graphs, prefix_cache_tokens=0)
        for graphs in (False, True)
    )
    assert fixed.describe()["cuda_graphs"] == "on"
    assert plain.describe()["cuda_graphs"] == "off"
    calls: list[Callable[[Engine], object]] = [
        lambda e: e.decode_branches(PREFIX, OPENINGS, max_new_tokens=14, max_parallel=4),
        lambda e: e.decode_branches(
            PREFIX, OPENINGS, max_new_tokens=9, sampling=SamplingParams(temperature=0.9, seed=4)
        ),
        lambda e: e.generate(PREFIX[:9], max_new_tokens=40),
    ]
    for call in calls:
        expected, found = call(plain), call(fixed)
        assert found == expected
    assert fixed.slots_in_use == 0
    assert fixed.forward.count == plain.forward.count
    assert fixed.forward.rows == plain.forward.rows


def test_every_small_pass_has_a_recorded_shape() -> None:
    """A prefill of more rows than the largest bucket runs as it comes, all others do not."""
    engine = tiny_engine(cuda_graphs=True)
    graphs = engine.forward.graphs
    assert graphs is not None
    seen: list[tuple[int, int]] = []
    step = graphs._step

    def recording(layout: torch.Tensor, extent: int) -> torch.Tensor:
        seen.append((layout.shape[1], extent))
        return step(layout, extent)

    graphs._step = recording
    engine.decode_branches(PREFIX, OPENINGS, max_new_tokens=14)
    assert len(seen) == engine.forward.count - 1
    assert all(rows in ROWS and extent % 256 == 0 for rows, extent in seen)
    assert graphs.recorded <= len(set(seen)) + 1


def test_what_is_recorded_is_void_when_memory_moves() -> None:
    """The cache grows: the same bucket is recorded again, and the tokens are right."""
    more = {"max_position_embeddings": 4096}
    engine = tiny_engine(settings=more, cuda_graphs=True, prefix_cache_tokens=0)
    plain = tiny_engine(settings=more, prefix_cache_tokens=0)
    short, long = ids(40, seed=8), ids(1500, seed=9)
    before = engine.generate(short, max_new_tokens=6)  # its first pass makes the cache
    assert engine.generate(short, max_new_tokens=6) == before
    recorded = engine.forward.graphs.recorded  # type: ignore[union-attr]
    assert engine.generate(short, max_new_tokens=6) == before
    assert engine.forward.graphs.recorded == recorded  # type: ignore[union-attr]
    assert engine.generate(long, max_new_tokens=6) == plain.generate(long, max_new_tokens=6)
    assert engine.generate(short, max_new_tokens=6) == before
    assert engine.forward.graphs.recorded > recorded + 1  # type: ignore[union-attr]


def test_padding_writes_into_no_bodys_slot() -> None:
    """Slot 0 is never given away; its label stays nobody's."""
    engine = tiny_engine(cuda_graphs=True)
    engine.decode_branches(PREFIX, OPENINGS[:3], max_new_tokens=5)
    forest = engine.forward.forest
    assert forest.slot_segment[0] == 0
    assert engine.slots_in_use == 0
    count = forest.capacity - 1
    assert sorted(forest.pool.take(Ledger(expected=1), count)) == list(range(1, count + 1))


def test_a_model_that_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models wait for the device inside a pass. The reason can be read."""
    expected = tiny_engine().generate(PREFIX, max_new_tokens=6)

    def refuse(self: StepGraphs, place: torch.Tensor, extent: int) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(StepGraphs, "_record", refuse)
    engine = tiny_engine(cuda_graphs=True)
    assert engine.generate(PREFIX, max_new_tokens=6) == expected
    assert "not permitted when stream is capturing" in engine.describe()["cuda_graphs"]
    assert engine.slots_in_use == 0


def test_nan_stays_with_whom_it_belongs_to() -> None:
    """Padding and fixed shapes change nothing about who notices a broken token."""
    engine = tiny_engine(cuda_graphs=True, prefix_cache_tokens=0)
    marked = next(token for token in range(3, 300) if token not in PREFIX)
    opening, others = [marked, 5], [o for o in OPENINGS if marked not in o]
    assert others
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[marked] = float("nan")
        engine.model.lm_head.weight[marked] = 0  # tied or not, nobody else says it
    done = engine.decode_branches(PREFIX, [opening, *others], max_new_tokens=6)
    assert done[0].finish_reason == "error"
    assert all(completion.error is None for completion in done[1:])
    assert engine.slots_in_use == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_graphs_write_what_the_model_writes(dtype: torch.dtype) -> None:
    """On the device itself, in float32 token for token."""
    tokenizer = byte_level()
    model = tiny_model(vocab_size=len(tokenizer)).to("cuda", dtype)
    plain, graphs = (Engine(model, tokenizer, cuda_graphs=on) for on in (False, True))
    for engine in (plain, graphs):
        engine.eos_token_ids = frozenset()
    first = plain.decode_branches(PREFIX, OPENINGS, max_new_tokens=14)
    second = graphs.decode_branches(PREFIX, OPENINGS, max_new_tokens=14)
    assert graphs.forward.graphs is not None, graphs.describe()["cuda_graphs"]
    assert graphs.forward.graphs.recorded > 0
    if dtype == torch.float32:
        assert second == first
    else:
        assert [c.finish_reason for c in second] == [c.finish_reason for c in first]
