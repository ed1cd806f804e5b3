"""Fixed shapes: rows and slots in buckets, padding that nobody sees. CUDA only records them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from langchain_pos.engine import Engine, SamplingParams
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.forward.cuda_graphs import ROWS, StepGraphs, slots_bucket
from tests.support.recorder import Recorder
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
    """All run in recorded shapes but the first, which makes the cache."""
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
    root = forest.root(Ledger(expected=1))
    assert sorted(forest.extend(root, count)) == list(range(1, count + 1))


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text"])
def test_a_replay_reads_and_writes_the_same_memory_each_time(
    name: str, static_recorder: Recorder
) -> None:
    """Logits that the next pass overwrites are used before it: token for token, with drafts."""
    plain, fixed = (
        tiny_engine(name, cuda_graphs=graphs, prefix_cache_tokens=0) for graphs in (False, True)
    )
    for calls in range(2):
        for draft in (True, False):
            expected, found = (
                engine.decode_branches(
                    PREFIX + ids(calls), OPENINGS, max_new_tokens=12, max_parallel=4, drafts=draft
                )
                for engine in (plain, fixed)
            )
            assert found == expected
    assert static_recorder.replays > 20


def test_a_chunk_of_a_prompt_stays_in_a_recorded_pass(static_recorder: Recorder) -> None:
    """256 rows of a prompt beside 64 that decode are one replay, the same as the pass as it is."""
    logits = []
    for graphs in (False, True):
        engine = tiny_engine(cuda_graphs=graphs, settings={"max_position_embeddings": 2048})
        forward, forest = engine.forward, engine.forward.forest
        root, late = forest.root(Ledger()), forest.root(Ledger())
        forward.run([(root, PREFIX)], [])
        branches = [forest.fork(root) for _ in range(64)]
        feeds = [(late, ids(256, 5)), *((branch, ids(1, i)) for i, branch in enumerate(branches))]
        before = static_recorder.replays
        logits.append(forward.run(feeds, range(65)).clone())
        assert static_recorder.replays == before + graphs
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)


def test_all_slots_are_there_from_the_start_so_that_nothing_is_void() -> None:
    """With the memory allocated at once, a longer request moves nothing that was recorded."""
    engine = tiny_engine(settings={"max_position_embeddings": 4096}, cuda_graphs=True)
    forward = engine.forward
    forward.forest.allocate(4096)
    forward.cache.allocate(4096)
    engine.generate(ids(40, seed=8), max_new_tokens=6)
    addresses = forward._addresses()
    engine.generate(ids(1500, seed=9), max_new_tokens=6)
    assert forward._addresses() == addresses


def test_shapes_are_recorded_when_the_engine_is_warmed_up(static_recorder: Recorder) -> None:
    """What a request then needs is there; without graphs there is nothing to record."""
    expected = tiny_engine().generate(PREFIX[:30], max_new_tokens=20)
    engine = tiny_engine(cuda_graphs=True)
    shapes = engine.forward.warm_up(512, rows=32)
    assert shapes == 8 * 2
    assert engine.slots_in_use == 0
    recorded = static_recorder.recorded
    assert recorded == shapes
    assert engine.generate(PREFIX[:30], max_new_tokens=20) == expected
    assert static_recorder.recorded == recorded
    assert tiny_engine().forward.warm_up(512) == 0


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


@pytest.mark.parametrize("error", [RuntimeError("cannot capture"), torch.OutOfMemoryError("full")])
def test_a_shape_that_cannot_be_recorded_runs_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    """Only that shape, tried once and logged once; nobody's request ends."""
    expected = tiny_engine().decode_branches(PREFIX, OPENINGS, max_new_tokens=14)
    tried: list[int] = []
    record = StepGraphs._record

    def refuse(self: StepGraphs, place: torch.Tensor, extent: int) -> Callable[[], torch.Tensor]:
        if place.shape[1] == 12:
            tried.append(extent)
            raise error
        return record(self, place, extent)

    monkeypatch.setattr(StepGraphs, "_record", refuse)
    engine = tiny_engine(cuda_graphs=True)
    engine.forward.warm_up(256, rows=4)
    for _ in range(2):
        found = engine.decode_branches(PREFIX, OPENINGS, max_new_tokens=14, drafts=False)
        assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert engine.describe()["cuda_graphs"] == "on"
    assert len(tried) == len(set(tried)) > 0
    assert len(caplog.records) == len(tried)
    assert str(error) in caplog.text


def test_graphs_are_recorded_and_replayed_on_the_models_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On `cuda:1` while `cuda:0` is the current device."""
    current, found = ["cuda:0"], []

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        before, current[0] = current[0], str(chosen)
        yield
        current[0] = before

    class Graph:
        def replay(self) -> None:
            found.append(("replay", current[0]))

    @contextmanager
    def graph(*args: object, **kwargs: object) -> Iterator[None]:
        found.append(("record", current[0]))
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, fake in {
        "device": device,
        "graph": graph,
        "CUDAGraph": Graph,
        "Stream": lambda *args: stream,
        "current_stream": lambda *args: stream,
        "stream": lambda other: nullcontext(),
        "graph_pool_handle": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    graphs = StepGraphs(lambda layout, extent: torch.zeros(1), torch.device("cuda:1"), lambda: ())
    replay = graphs._record(torch.zeros(5, 1, dtype=torch.int64), 256)
    replay()
    assert found == [("record", "cuda:1"), ("replay", "cuda:1")]
    assert current == ["cuda:0"]


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
    else:  # a tie may fall differently, but not at the first token of most branches
        same = [a.token_ids[0] == b.token_ids[0] for a, b in zip(first, second, strict=True)]
        assert sum(same) > len(same) / 2
