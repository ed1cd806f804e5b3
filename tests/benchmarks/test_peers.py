"""The peers write what our engine writes, so what is compared is the same work."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks import ours
from benchmarks.measuring import token_ids
from benchmarks.models import endless_engine, random_model, twin, weight_bytes
from benchmarks.paper_algorithm import PaperAlgorithm
from benchmarks.peers import Prefix, answer, continuous_batching, generate_text
from langchain_pos.engine import Engine

PREFIX = token_ids(70)
OPENINGS = [token_ids(3, 1), token_ids(5, 2), token_ids(2, 3)]


def spread_model() -> PreTrainedModel:
    """A tiny model in float32 that does not like all tokens alike."""
    model = random_model("tiny")
    generator = torch.Generator().manual_seed(3)
    for weights in model.parameters():
        if weights.ndim > 1:
            weights.data.normal_(std=0.2, generator=generator)
    return model


@pytest.fixture(scope="module")
def pair() -> tuple[Engine, PreTrainedModel]:
    """Our engine and its twin for the peers."""
    model = spread_model()
    other = twin(model)
    return endless_engine(model), other


@pytest.mark.parametrize("way", ["sequential", "copied", "paper"])
def test_peers_write_our_tokens(pair: tuple[Engine, PreTrainedModel], way: str) -> None:
    """Openings of different lengths, greedy, float32: every peer writes our branches, twice."""
    engine, model = pair
    own = ours.expand(engine, PREFIX, OPENINGS, [6, 6, 6])
    prefix = Prefix(model, PREFIX)
    for _ in range(2):  # the first run leaves the prefix as it was
        run = getattr(prefix, way)(OPENINGS, 6)
        assert run.written == own.written
        assert run.tokens == own.tokens == 18


def test_continuous_batching_writes_our_tokens(pair: tuple[Engine, PreTrainedModel]) -> None:
    """`generate_batch` writes our branches, and leaves the model's attention as it was."""
    engine, model = pair
    own = ours.expand(engine, PREFIX, OPENINGS, [6, 6, 6])
    run = continuous_batching(model, [[*PREFIX, *opening] for opening in OPENINGS], 6)
    assert run.written == own.written
    assert model.config._attn_implementation == "sdpa"


def test_the_paper_algorithm_in_all_stages(pair: tuple[Engine, PreTrainedModel]) -> None:
    """Prefill and decode, ragged branches, cut back, join, decode on: as our engine, each alone."""
    engine, model = pair
    lengths = [4, 1, 7]
    paper = PaperAlgorithm(model)
    preamble = paper.write(paper.prefill(PREFIX), 5)
    assert preamble == list(engine.generate(PREFIX, max_new_tokens=5, drafts=False).token_ids)
    paper.cut_back(len(PREFIX))
    branches = paper.expand(OPENINGS, lengths)
    for branch, opening, length in zip(branches, OPENINGS, lengths, strict=True):
        alone = engine.generate([*PREFIX, *opening], max_new_tokens=length, drafts=False)
        assert branch == list(alone.token_ids)
    paper.cut_back(len(PREFIX))
    joined = [token for branch in branches for token in branch]
    conclusion = paper.write(paper.prefill(joined), 5)
    whole = engine.generate([*PREFIX, *joined], max_new_tokens=5, drafts=False)
    assert conclusion == list(whole.token_ids)


def test_the_paper_algorithm_goes_on_until_the_longest_ends(
    pair: tuple[Engine, PreTrainedModel],
) -> None:
    """Lock-step costs passes for the longest branch and slots for all; ours only what is needed."""
    engine, model = pair
    lengths = [2, 2, 9]
    prefix = Prefix(model, PREFIX)
    paper = prefix.paper_ragged(OPENINGS, lengths)
    own = ours.expand(engine, PREFIX, OPENINGS, lengths)
    assert paper.written == own.written
    assert own.passes == 9
    assert paper.passes == max(len(o) + n for o, n in zip(OPENINGS, lengths, strict=True)) - 1
    assert (paper.kv_bytes or 0) > (own.kv_bytes or 0)


def test_forced_tokens_come_out(pair: tuple[Engine, PreTrainedModel]) -> None:
    """`generate` writes the given text; look-up drafts of a repeated one save passes."""
    _, model = pair
    target = [*PREFIX[10:40], *PREFIX[:20]]
    plain = generate_text(model, PREFIX, target)
    lookup = generate_text(model, PREFIX, target, lookup=10)
    assert plain.written == lookup.written == (tuple(target),)
    assert plain.passes == len(target)
    assert (lookup.passes or 0) < len(target) / 2


def test_answers_stop_at_eos(pair: tuple[Engine, PreTrainedModel]) -> None:
    """The model's own answer ends before the first EOS."""
    _, model = pair
    free = answer(model, PREFIX, 8, frozenset()).written[0]
    cut = answer(model, PREFIX, 8, frozenset({free[3]})).written[0]
    assert cut == free[: free.index(free[3])]


def test_refill_writes_the_same(pair: tuple[Engine, PreTrainedModel]) -> None:
    """Waiting branches that take freed rows write what they write when all start together."""
    engine, _ = pair
    together = ours.expand(engine, PREFIX, OPENINGS, [3, 5, 4])
    refilled = ours.expand(engine, PREFIX, OPENINGS, [3, 5, 4], max_parallel=1)
    assert refilled.written == together.written
    assert (together.passes, refilled.passes) == (5, 12)
    waves = ours.expand_in_waves(engine, PREFIX, OPENINGS, [3, 5, 4], 2)
    assert (waves.passes, waves.tokens) == (5 + 4, 12)


def test_a_twin_shares_weights_only() -> None:
    """The twin has the same weights in memory, an attention of its own, and equal logits."""
    model = spread_model()
    other = twin(model)
    mine, others = dict(model.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == others.keys()
    assert all(mine[name].data_ptr() == others[name].data_ptr() for name in mine)
    engine = endless_engine(model)
    assert model.config._attn_implementation != other.config._attn_implementation == "sdpa"
    own = list(engine.generate(PREFIX, max_new_tokens=4, drafts=False).token_ids)
    assert PaperAlgorithm(other).write(PaperAlgorithm(other).prefill(PREFIX), 1) == own[:1]


def test_tied_weights_are_read_once() -> None:
    """A tied output layer's weights count once, an untied input embedding's not at all."""
    model = spread_model()
    assert weight_bytes(model) == sum(weights.nbytes for weights in model.parameters())
    model.get_output_embeddings().weight = torch.nn.Parameter(
        model.get_output_embeddings().weight.detach().clone()
    )
    total = sum(weights.nbytes for weights in model.parameters())
    assert weight_bytes(model) == total - model.get_input_embeddings().weight.nbytes
