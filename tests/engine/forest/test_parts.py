"""Passes that are attended to in parts: same answers, less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from langchain_pos.engine import Engine
from langchain_pos.engine.attention import FOLDED
from langchain_pos.engine.decoding.sequence import DecodingSequence, Feed, decode, feed
from langchain_pos.engine.forest.parts import BLOCK, Block, Part, Plan, _too_long, plan
from langchain_pos.engine.forest.segments import Ledger, Segment
from langchain_pos.engine.forest.slots import PAGE
from langchain_pos.engine.forward.forward_pass import ForwardPass
from langchain_pos.engine.probing import takes_parts
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import NonFiniteLogitsError
from tests.support.families import SUPPORTED, Family
from tests.support.tiny import ids, tiny_engine, tiny_model
from tests.support.tokenizers import byte_level

PROMPTS = [ids(length, seed=length) for length in (30, 75, 9, 140)]
OPENINGS = [ids(length, seed=50 + length) for length in (3, 1, 2)]


def branches(engine: Engine, prompt: list[int], tokens: int) -> Any:
    """A request for three branches, to be submitted beside others."""

    async def steps(request: Request[Any]) -> Any:
        root = engine.scheduler.root(request, prompt)
        sequences: list[DecodingSequence] = [
            engine.sequence(
                engine.fork(root, at=len(prompt)),
                opening,
                max_new_tokens=tokens,
                sampling=SamplingParams(),
                seed=index,
            )
            for index, opening in enumerate(OPENINGS)
        ]
        await decode(sequences, first=[Feed(root, prompt[root.end :])])
        return [sequence.completion().token_ids for sequence in sequences]

    return engine.scheduler.submit(steps, reserve=len(prompt) + 3 * (tokens + 5))


def apart(engine: Engine) -> Engine:
    """Passes are attended to in parts, however little it saves."""
    assert engine.forward.in_parts
    engine.forward.least_saved = -(1 << 40)
    return engine


@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.name)
def test_company_changes_nothing(family: Family) -> None:
    """Every family whose attention is ours writes in company what it writes alone."""
    model = family.model()
    engine = Engine(model, byte_level(), prefix_cache_tokens=0)
    engine.eos_token_ids = frozenset()
    assert engine.forward.in_parts == (model.config._attn_implementation == FOLDED)
    if not engine.forward.in_parts:
        pytest.skip(f"{family.name} has an attention of its own")
    alone = [branches(engine, prompt, 8).wait() for prompt in PROMPTS]
    apart(engine).forward.in_parts = False
    before = engine.forward.pairs
    with engine.scheduler.paused():
        together = [branches(engine, prompt, 8) for prompt in PROMPTS]
    assert [request.wait() for request in together] == alone
    dense = engine.forward.pairs - before
    engine.forward.in_parts = True
    before = engine.forward.pairs
    with engine.scheduler.paused():
        together = [branches(engine, prompt, 8) for prompt in PROMPTS]
    assert [request.wait() for request in together] == alone
    assert engine.forward.pairs - before < dense
    assert engine.slots_in_use == 0


def test_work_grows_with_the_requests_not_with_their_square() -> None:
    """Twelve requests look at less than fifteen times what one looks at, not ninety times."""
    pairs = {}
    for groups in (True, False):
        engine = tiny_engine(prefix_cache_tokens=0, settings={"max_position_embeddings": 4096})
        engine.forward.in_parts = groups
        engine.forward.least_saved = 16
        asked = [ids(200, seed=100 + index) for index in range(12)]
        branches(engine, asked[0], 20).wait()
        one, engine.forward.pairs = engine.forward.pairs, 0
        with engine.scheduler.paused():
            together = [branches(engine, prompt, 20) for prompt in asked]
        for request in together:
            request.wait()
        pairs[groups] = engine.forward.pairs / one
    assert pairs[True] < 15 < 90 < pairs[False]


def test_a_shared_prefix_is_looked_at_by_all_who_stand_on_it() -> None:
    """Requests that fork from one live prefix see its slots, which are none of their own."""
    engine = apart(tiny_engine())
    common = ids(100, seed=3)
    asked = [[*common, *ids(5 + index, seed=index)] for index in range(3)]
    fresh = tiny_engine(prefix_cache_tokens=0)
    fresh.forward.in_parts = False
    alone = [branches(fresh, prompt, 9).wait() for prompt in asked]
    with engine.scheduler.paused():
        together = [branches(engine, prompt, 9) for prompt in asked]
    assert [request.wait() for request in together] == alone
    assert sum(request.cached_tokens for request in together) >= 2 * 100


@torch.inference_mode()
def mark_broken(forward: ForwardPass, slot: int) -> None:
    """As if the token in this slot had turned out not to be finite."""
    forward.forest.mark_broken(torch.tensor([slot]), torch.tensor([True]))


def test_no_others_slot_reaches_a_group() -> None:
    """What lies in strangers' slots changes no bit, and a token that is not finite stays theirs."""
    engine = apart(tiny_engine(prefix_cache_tokens=0))
    forward = engine.forward
    mine, other = forward.forest.root(Ledger()), forward.forest.root(Ledger())
    forward.run([(mine, ids(PAGE + 5, 1)), (other, ids(2 * PAGE, 2))], [])
    asked = [(mine, ids(1, 3)), (other, ids(1, 4))]
    before = forward.run(asked, [0, 1])
    for root in (mine, other):
        forward.forest.truncate(root, root.end - 1)
    forward.cache.overwrite(other.slots, 7.0)
    mark_broken(forward, other.slots[0])
    after = forward.run(asked, [0, 1])
    assert torch.equal(after[0], before[0])
    assert after[1, 0].isnan()


def test_one_request_that_breaks_down_is_alone_in_it() -> None:
    """In company and apart, a NaN ends its own request with its error, and no other."""
    engine = apart(tiny_engine())
    expected = branches(engine, PROMPTS[0], 6).wait()

    async def broken(request: Request[Any]) -> Any:
        root = engine.scheduler.root(request, PROMPTS[1])
        await feed([Feed(root, PROMPTS[1][root.end :], sampling=None)])
        mark_broken(engine.forward, root.slots[0])
        sequence = engine.sequence(
            root, ids(1, 9), max_new_tokens=4, sampling=SamplingParams(), seed=0
        )
        await decode([sequence])
        if sequence.failure is not None:
            raise sequence.failure

    with engine.scheduler.paused():
        bad = engine.scheduler.submit(broken, reserve=200)
        good = branches(engine, PROMPTS[0], 6)
    assert good.wait() == expected
    with pytest.raises(NonFiniteLogitsError):
        bad.wait()


def planned(
    engine: Engine, feeds: list[tuple[Segment, list[int]]], least_saved: int = -(1 << 40)
) -> Plan:
    """The plan of a pass; the tokens stay fed."""
    forest = engine.forward.forest
    for segment, new in feeds:
        forest.extend(segment, len(new))
    return plan(feeds, forest.extent, least_saved)


def test_branches_share_the_prompt_and_have_pages_of_their_own() -> None:
    """Thirty branches of ten tokens: one part for the prompt, one batch for the rest."""
    forest = (engine := tiny_engine()).forward.forest
    root = forest.root(Ledger(expected=500 * PAGE))
    planned(engine, [(root, ids(40 * PAGE))])
    branches = [forest.fork(root) for _ in range(30)]
    found = planned(engine, [(branch, ids(10)) for branch in branches], least_saved=2048)
    assert found.shared == (Part((0, 300), ((0, 40 * PAGE),)),)
    assert found.batch is not None
    assert found.batch.rows == tuple((10 * index, 10 * index + 10) for index in range(30))
    assert found.batch.pages == tuple((40 + index,) for index in range(30))
    assert (found.alone, found.together) == ((), 300)
    assert found.pairs == 300 * (40 * PAGE + PAGE)


def test_parts_are_only_made_where_they_save_work() -> None:
    """One sequence is one part over all slots; so are a few short branches."""
    forest = (engine := tiny_engine()).forward.forest
    root = forest.root(Ledger(expected=4 * PAGE))
    assert planned(engine, [(root, ids(30))], 2048).alone == (Part((0, 30), ((0, 2 * PAGE),)),)
    branches = [forest.fork(root) for _ in range(3)]
    found = planned(engine, [(branch, ids(2)) for branch in branches], 2048)
    assert found.alone == (Part((0, 6), ((0, 5 * PAGE),)),)
    assert (found.batch, found.shared, found.parts) == (None, (), 1)


def test_a_long_sequence_beside_others_is_read_where_it_lies() -> None:
    """Its rows are in one part, without a copy; they come after those that are in several."""
    forest = (engine := tiny_engine()).forward.forest
    root, other = (forest.root(Ledger(expected=100 * PAGE)) for _ in range(2))
    planned(engine, [(root, ids(40 * PAGE)), (other, ids(40 * PAGE))])
    branches = [forest.fork(root) for _ in range(3)]
    found = planned(engine, [(other, [1]), *((branch, [1]) for branch in branches)], 16)
    assert found.blocks == (Block(1, 0, 1), Block(2, 0, 1), Block(3, 0, 1), Block(0, 0, 1))
    assert found.shared == (Part((0, 3), ((0, 40 * PAGE),)),)
    assert found.alone == (Part((3, 4), ((100 * PAGE, 141 * PAGE),)),)
    assert found.together == 3


def test_what_is_after_the_fork_is_not_read() -> None:
    """A branch looks at its parent's pages up to the fork; the parent goes on without it."""
    forest = (engine := tiny_engine()).forward.forest
    root = forest.root(Ledger(expected=500 * PAGE))
    planned(engine, [(root, ids(100 * PAGE))])
    branches = [forest.fork(root, at=60 * PAGE + 1) for _ in range(3)]
    found = planned(engine, [(segment, [1]) for segment in (root, *branches)])
    assert found.shared[0] == Part((0, 4), ((0, 60 * PAGE),))
    assert found.shared[1] == Part((0, 1), ((60 * PAGE, 101 * PAGE),))
    assert found.batch is not None  # the page that the branches see one slot of
    assert set(found.batch.pages) == {(60, 101), (60, 102), (60, 103)}


def test_the_first_rows_of_a_long_prompt_do_not_look_at_its_last() -> None:
    """A prompt is cut into blocks that read what they see by themselves."""
    forest = (engine := tiny_engine()).forward.forest
    root = forest.root(Ledger())
    grown = ids(2 * BLOCK + BLOCK // 2)
    assert planned(engine, [(root, grown)]).alone == (
        Part((0, BLOCK), ((0, BLOCK),)),
        Part((BLOCK, len(grown)), ((0, len(grown)),)),  # half a block more is no block of its own
    )


@pytest.mark.parametrize("name", ["qwen2", "mistral", "gemma3_text", "llama"])
def test_a_long_prompt_in_blocks_is_the_same_prompt(name: str) -> None:
    """At more than a thousand tokens, with what is behind the blocks overwritten in between."""
    settings: dict[str, Any] = {"max_position_embeddings": 4096}
    if name in ("mistral", "gemma3_text"):
        settings["sliding_window"] = 300
    engine = tiny_engine(name, settings=settings, prefix_cache_tokens=0)
    prompt = ids(1500, seed=5)
    engine.forward.in_parts = False
    engine.forward.pairs = 0
    plain = engine.generate(prompt, max_new_tokens=10, drafts=False)
    dense, engine.forward.pairs = engine.forward.pairs, 0
    engine.forward.in_parts = True
    assert engine.generate(prompt, max_new_tokens=10, drafts=False) == plain
    assert engine.forward.pairs < 0.75 * dense


def test_a_model_that_looks_into_its_mask_is_found_out() -> None:
    """Where the mask does not arrive as it was given, requests are not attended to apart."""
    model = tiny_model()
    Engine(model, byte_level())
    assert takes_parts(model, "by_layer_type")
    layer = model.model.layers[0].self_attn
    inner = layer.forward

    def cuts(*args: Any, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        return inner(*args, attention_mask=attention_mask[..., :], **kwargs)

    layer.forward = cuts
    assert not takes_parts(model, "by_layer_type")


def test_a_batch_is_not_padded_to_one_that_is_much_longer() -> None:
    """Two long blocks among many short ones are parts of their own; blocks of one length stay."""
    short = dict.fromkeys(range(2, 22), (1, 2))
    assert sorted(_too_long({0: (1, 400), 1: (1, 400), **short}, 8192)) == [0, 1]
    assert _too_long(dict.fromkeys(range(30), (4, 13)), 8192) == []
    assert _too_long({0: (1, 3), **short}, 8192) == []  # not worth a part


def test_long_and_short_requests_in_company_copy_little() -> None:
    """A request whose pages lie scattered is not what the others' copies are padded to."""
    forest = (engine := tiny_engine()).forward.forest
    one, other = (forest.root(Ledger(expected=PAGE)) for _ in range(2))
    for _ in range(200):  # in turn, so that neither lies in one stretch
        planned(engine, [(one, ids(PAGE)), (other, ids(PAGE))])
    few = [forest.root(Ledger(expected=PAGE)) for _ in range(20)]
    found = planned(engine, [(segment, [1]) for segment in (one, other, *few)], 8192)
    assert found.batch is None or found.batch.shape[2] <= 2
    assert found.cost < 3 * (2 * 200 + len(few)) * PAGE
