"""Layers with a running state: every segment has states of its own, and they are always right."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest
import torch

from langchain_pos.engine import Completion, Engine
from langchain_pos.engine.cache.mixers import Mixer
from langchain_pos.engine.cache.states import StateBatch, TextState
from langchain_pos.engine.decoding.drafts import Draft
from langchain_pos.engine.decoding.sequence import DecodingSequence, decode
from langchain_pos.engine.forest.segments import Ledger, Segment
from langchain_pos.engine.forest.state import STRIDE, State
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import InvalidRequestError
from tests.support.families import STATEFUL
from tests.support.tiny import greedy_reference, ids, said, tiny_engine, tiny_model
from tests.support.tokenizers import byte_level

ALL = [family.name for family in STATEFUL]
KINDS = ["lfm2", "qwen3_5", "falcon_h1", "jamba"]
"""A convolution only; linear attention; both in one layer; one that resumes by one token only."""
LONG = {"max_position_embeddings": 8192}


@cache
def engine(name: str) -> Engine:
    """One engine for all tests that leave nothing in it."""
    return tiny_engine(name)


def last_logits(tested: Engine, token_ids: Sequence[int]) -> torch.Tensor:
    """What the model says after a text, by its own code alone."""
    with torch.inference_mode():
        logits = tested.model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits
    return logits[0, -1]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are the same but for the order in which sums were made."""
    return torch.allclose(found, expected, atol=1e-3 * expected.std().item(), rtol=1e-3)


def guided(tested: Engine, prompt_ids: list[int], guesses: list[int], count: int) -> Completion:
    """Decode with a draft that always guesses the token at its place in `guesses`."""

    def guess(sequence: DecodingSequence) -> Draft:
        done = len(sequence.token_ids)
        return Draft.of(guesses[done : done + 6])

    async def steps(request: Request[Completion]) -> Completion:
        sequence = tested.sequence(
            tested.scheduler.root(request),
            prompt_ids,
            max_new_tokens=count,
            sampling=SamplingParams(),
            seed=0,
            guess=guess,
        )
        await decode([sequence])
        return sequence.completion()

    return tested.run(steps, reserve=len(prompt_ids) + count + 8)


@pytest.mark.parametrize("name", ALL)
def test_wrong_guesses_leave_no_trace(name: str) -> None:
    """Guesses that are right, wrong now and then, or always wrong: the tokens are the same."""
    tested, prompt = engine(name), ids(15, seed=3)
    plain = tested.generate(prompt, max_new_tokens=80, drafts=False)
    right = list(plain.token_ids)
    wrong = [(token + 1) % 300 for token in right]
    mixed = [
        w if index % 5 == 4 else r for index, (r, w) in enumerate(zip(right, wrong, strict=True))
    ]
    for guesses in (right, wrong, mixed):
        assert guided(tested, prompt, guesses, 80).token_ids == plain.token_ids
    assert guided(tested, prompt, right, 80).forward_passes < plain.forward_passes / 4
    assert tested.slots_in_use == 0


@pytest.mark.parametrize("name", KINDS)
def test_what_wrong_guesses_cost_is_bounded(name: str) -> None:
    """Accepted tokens are fed again until a state is made behind them, never all of them."""
    tested, prompt = tiny_engine(name), ids(15, seed=3)
    plain = tested.generate(prompt, max_new_tokens=120, drafts=False)
    mixed = [(t + 1) % 300 if i % 4 == 3 else t for i, t in enumerate(plain.token_ids)]
    rows, passes = tested.forward.rows, tested.forward.count
    assert guided(tested, prompt, mixed, 120).token_ids == plain.token_ids
    passes = tested.forward.count - passes
    assert tested.forward.rows - rows < len(prompt) + passes * (1 + 6 + 32 + 6)


@pytest.mark.parametrize("name", ALL)
def test_a_segment_can_be_cut_back_anywhere(name: str) -> None:
    """Whatever is fed after a cut comes out as if nothing else had been there."""
    tested = engine(name)
    forest, text = tested.forward.forest, ids(40, seed=4)
    root = forest.root(Ledger())
    for begin in range(0, 40, 8):
        tested.forward.run([(root, text[begin : begin + 8])], [])
    for end in (40, 39, 32, 31, 9, 1, 0):
        forest.truncate(root, end)
        logits = tested.forward.run([(root, [7, 8])], [0])[0]
        assert close(logits, last_logits(tested, [*text[:end], 7, 8]))
        forest.truncate(root, end)
    forest.release(root)


@pytest.mark.parametrize("name", ALL)
def test_a_branch_may_begin_inside_its_parent(name: str) -> None:
    """Forks at any position, of forks too, in one pass and after it: each as it is alone."""
    tested = engine(name)
    forest, text = tested.forward.forest, ids(30, seed=5)
    root = forest.root(Ledger())
    tested.forward.run([(root, text)], [])
    branches = [(forest.fork(root, at), ids(3, seed=at)) for at in (30, 17, 17, 4, 0)]
    logits = tested.forward.run(branches, range(5))
    for (branch, opening), row in zip(branches, logits, strict=True):
        assert close(row, last_logits(tested, [*text[: branch.start], *opening]))
    parent, opening = branches[1]
    twig = forest.fork(parent, at=18)
    row = tested.forward.run([(twig, [5, 6]), (parent, [9])], [0])[0]
    assert close(row, last_logits(tested, [*text[:17], opening[0], 5, 6]))
    for segment in [*(branch for branch, _ in branches), twig, root]:
        forest.release(segment)


@pytest.mark.parametrize("name", KINDS)
def test_overwritten_siblings_change_no_bit(name: str) -> None:
    """In a context of more than a thousand slots, other branches' states are nothing to one."""
    tested = tiny_engine(name, settings=LONG)
    forward, ledger = tested.forward, Ledger()
    root = forward.forest.root(ledger)
    forward.run([(root, ids(900, seed=1))], [])
    branches = [forward.forest.fork(root) for _ in range(5)]
    for index in range(4):
        feeds = [(b, ids(9, 10 * index + i)) for i, b in enumerate(branches)]
        forward.run(feeds, [])
    for index, branch in enumerate(branches):
        sibling = branches[index - 1]  # fed along
        asked = [(branch, ids(1, index)), (sibling, ids(1, index + 9))]
        kept = {segment: dict(segment.states) for segment in branches}

        def again(
            asked: list[tuple[Segment, list[int]]] = asked,
            kept: dict[Segment, dict[int, State]] = kept,
        ) -> torch.Tensor:
            for segment, _ in asked:
                forward.forest.truncate(segment, 936)
                segment.states = dict(kept[segment])
            return forward.run(asked, [0])

        before = again()
        assert before.isfinite().all()
        for value in (0.0, 30.0, float("nan")):
            others = [kept[other][936] for other in set(branches) - {branch, sibling}]
            with overwritten(others, value):
                assert torch.equal(again(), before)
        with overwritten([kept[branch][936]], 3.0):
            assert not torch.equal(again(), before)
        assert torch.equal(again(), before)
        for segment in (branch, sibling):
            forward.forest.truncate(segment, 936)
            segment.states = kept[segment]


@contextmanager
def overwritten(states: Sequence[State], value: float) -> Iterator[None]:
    """Set states to a number for a while."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for state in states:
        assert isinstance(state, TextState)
        state.move_out()  # as it would itself after a while
        kept += [(tensor[state.row], tensor[state.row].clone()) for tensor in state.batch.tensors()]
        state.overwrite(value)
    yield
    with torch.inference_mode():
        for row, before in kept:
            row.copy_(before)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5", "bamba"])
def test_at_4096_tokens_of_prompt_everything_holds(name: str) -> None:
    """Fed in chunks, with states on the way: alone, in company, with guesses, and parked."""
    tested = tiny_engine(name, settings=LONG, max_slots=1 << 16)
    prompt, openings = ids(4096, seed=6), [ids(3, seed=31), ids(1, seed=32)]
    solo, *expected = (
        greedy_reference(tested.model, prompt + opening, 6) for opening in ([], *openings)
    )
    for drafts in (False, True):  # the second time, the prompt is parked
        rows = tested.forward.rows
        found = tested.generate(prompt, max_new_tokens=6, drafts=drafts)
        assert list(found.token_ids) == solo
        assert (tested.forward.rows - rows >= 4096) != drafts
        done = tested.decode_branches(prompt, openings, max_new_tokens=6, drafts=drafts)
        assert [list(branch.token_ids) for branch in done] == expected

    forward, forest = tested.forward, tested.forward.forest
    root = forest.root(Ledger())
    for begin in range(0, 4096, 1024):
        forward.run([(root, prompt[begin : begin + 1024])], [])
    first, *others = (forest.fork(root) for _ in range(3))
    forward.run([(branch, ids(4, seed=7)) for branch in (first, *others)], [])
    before = guessing(tested, first)
    forward.cache.overwrite([slot for other in others for slot in other.slots], 3.0)
    for state in (other.states[other.end] for other in others):
        assert isinstance(state, TextState)
        state.overwrite(3.0)
    assert torch.equal(guessing(tested, first), before)
    own = first.states[first.end]
    assert isinstance(own, TextState)
    own.overwrite(3.0)
    assert not torch.equal(guessing(tested, first), before)


def guessing(tested: Engine, segment: Segment) -> torch.Tensor:
    """The logits of two guesses after a segment, which are then taken back."""
    end = segment.end
    logits = tested.forward.run([(segment, [5, 6])], [0], [1])
    tested.forward.forest.truncate(segment, end)
    assert end in segment.states
    return logits


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("max_rows", [1024, 40])
def test_parked_prefixes_bring_their_states_along(name: str, max_rows: int) -> None:
    """A prompt again, a longer one, and one that parts from it on the way: as when it is new."""
    tested = tiny_engine(name, max_rows=max_rows)
    new = tiny_engine(name, prefix_cache_tokens=0)
    first = ids(150, seed=7)
    for prompt in (first, first, first[:-1] + ids(40, seed=8), first[:100] + ids(40, seed=9)):
        found = tested.generate(prompt, max_new_tokens=8, drafts=False)
        assert said(found) == said(new.generate(prompt, max_new_tokens=8, drafts=False))
    rows = tested.forward.rows
    tested.generate(first, max_new_tokens=8, drafts=False)
    assert tested.forward.rows - rows == 1 + 7


def test_states_on_the_way_let_a_long_prefix_be_shared_in_part() -> None:
    """A prompt that parts from a parked one goes on from the last state before that."""
    tested = tiny_engine("qwen3_5", settings=LONG, prefix_cache_tokens=4000, max_slots=16384)
    prompt = ids(3 * STRIDE, seed=11)
    tested.generate(prompt, max_new_tokens=1)
    other = [*prompt[: 2 * STRIDE + 50], *ids(20, seed=12)]
    rows = tested.forward.rows
    found = tested.generate(other, max_new_tokens=4, drafts=False)
    assert tested.forward.rows - rows == 50 + 20 + 3
    assert list(found.token_ids) == greedy_reference(tested.model, other, 4)


def test_running_requests_share_a_prefix_with_its_states() -> None:
    """Those that ask about one document at once feed it once, and write what each writes alone."""
    tested, document = tiny_engine("qwen3_5"), ids(90, seed=13)
    prompts = [[*document, *ids(length, seed=length)] for length in (5, 9, 2)]
    alone = [tiny_engine("qwen3_5").generate(p, max_new_tokens=6, drafts=False) for p in prompts]
    before = tested.forward.rows
    with tested.scheduler.paused():
        requests = []
        run = tested.run
        tested.run = lambda make, **kw: requests.append(tested.scheduler.submit(make, **kw))  # type: ignore[method-assign, assignment, misc, return-value]
        for prompt in prompts:
            tested.generate(prompt, max_new_tokens=6, drafts=False)
        tested.run = run  # type: ignore[method-assign]
    assert [said(request.wait()) for request in requests] == [said(each) for each in alone]
    assert tested.forward.rows - before == 90 + 5 + 9 + 2 + 3 * 5


def test_a_join_of_branches_where_they_lie_is_refused() -> None:
    """No state has seen all branches; the error says what to do instead."""
    tested = engine("lfm2")
    forest = tested.forward.forest
    root = forest.root(Ledger())
    tested.forward.run([(root, [5, 6])], [])
    branches = [forest.fork(root) for _ in range(2)]
    with pytest.raises(InvalidRequestError, match='join="reprefill"'):
        tested.join(branches, at=3)
    for segment in (*branches, root):
        forest.release(segment)


def test_nothing_is_kept_of_what_has_ended() -> None:
    """With the requests their states go."""
    tested = tiny_engine("qwen3_5", prefix_cache_tokens=0)
    gc.collect()
    before = sum(isinstance(thing, StateBatch) for thing in gc.get_objects())
    tested.decode_branches(ids(80, seed=1), [ids(2, seed=i) for i in range(4)], max_new_tokens=9)
    gc.collect()
    assert sum(isinstance(thing, StateBatch) for thing in gc.get_objects()) == before
    assert tested.slots_in_use == 0


def test_a_wrapped_model_still_works_by_itself() -> None:
    """Mixers let other caches through, and a copy of the model has weights of its own."""
    tested = tiny_engine("qwen3_5")
    wrapped = [m for m in tested.model.modules() if isinstance(m.__dict__.get("forward"), Mixer)]
    assert len(wrapped) == 2
    expected = greedy_reference(tiny_model("qwen3_5", vocab_size=len(byte_level())), ids(9), 6)
    assert greedy_reference(tested.model, ids(9), 6) == expected
    twin = copy.deepcopy(tested.model)
    with torch.no_grad():
        for parameter in tested.model.parameters():
            parameter.zero_()
    assert greedy_reference(twin, ids(9), 6) == expected


def test_an_engine_says_what_states_cost() -> None:
    """In bytes and in slots; and that passes are not recorded."""
    said_of = engine("qwen3_5").describe()
    assert said_of["states"] == "2 layers, 4,096 bytes a state; those of a branch count as 96 slots"
    assert said_of["cuda_graphs"] == "off: some layers keep a state"
    assert tiny_engine("qwen2").describe()["states"] == "none"
