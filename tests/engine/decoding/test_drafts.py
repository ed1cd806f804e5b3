"""Drafts change the number of passes and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_pos.engine import Completion, Constraint, Engine, SamplingParams
from langchain_pos.engine.decoding.drafts import Draft, DraftLength, PromptLookup, Verified
from langchain_pos.engine.decoding.sequence import DecodingSequence, decode
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import NonFiniteLogitsError
from tests.support.tiny import ids, tiny_engine

PARAMS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(temperature=0.7, top_k=20, seed=5),
    "penalised": SamplingParams(repetition_penalty=1.3),
}


@cache
def engine() -> Engine:
    """One engine for all tests."""
    return tiny_engine("qwen2")


def prompt(seed: int) -> list[int]:
    """Tokens that repeat themselves, so that look-up finds something."""
    return ids(7, seed) * 4


def guided(
    tested: Engine,
    prompt_ids: Sequence[int],
    guesses: Sequence[int],
    params: SamplingParams,
    count: int = 20,
) -> Completion:
    """Decode with a draft that always guesses the token at its place in `guesses`."""

    def guess(sequence: DecodingSequence) -> Draft:
        done = len(sequence.token_ids)
        return Draft.of(guesses[done : done + 6])

    async def steps(request: Request[Completion]) -> Completion:
        sequence = tested.sequence(
            tested.scheduler.root(request),
            prompt_ids,
            max_new_tokens=count,
            sampling=params,
            seed=tested.seed(params),
            guess=guess,
        )
        await decode([sequence])
        return sequence.completion()

    return tested.run(steps, reserve=len(prompt_ids) + count)


def test_a_failure_behind_accepted_guesses_keeps_them() -> None:
    """NaN after the third token ends the sequence behind it, with drafts as without."""
    tested = tiny_engine("qwen2")
    plain = tested.generate(ids(9), max_new_tokens=20, drafts=False)
    run = tested.forward.run

    def broken(feeds, sampled, drafted=()):  # type: ignore[no-untyped-def]
        starts = [segment.end for segment, _ in feeds]
        logits = run(feeds, sampled, drafted).clone()
        for row in range(logits.shape[0]):
            position = starts[0] + len(feeds[0][1]) - logits.shape[0] + row
            if position >= 9 + 2:  # behind the third token
                logits[row] = float("nan")
        return logits

    tested.forward.run = broken  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLogitsError):
        tested.generate(ids(9), max_new_tokens=20)
    seen: list[int] = []

    async def steps(request: Request[None]) -> None:
        sequence = tested.sequence(
            tested.scheduler.root(request),
            ids(9),
            max_new_tokens=20,
            sampling=PARAMS["greedy"],
            seed=0,
            guess=lambda s: Draft.of(plain.token_ids[len(s.token_ids) :][:6]),
        )
        await decode([sequence])
        assert sequence.finish_reason == "error"
        seen.extend(sequence.token_ids)

    tested.run(steps, reserve=40)
    assert seen == list(plain.token_ids[:3])


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("seed", range(4))
def test_looked_up_drafts_change_no_token(params: SamplingParams, seed: int) -> None:
    """With and without prompt look-up the tokens are the same, greedily and sampled."""
    plain = engine().generate(prompt(seed), max_new_tokens=40, sampling=params, drafts=False)
    quick = engine().generate(prompt(seed), max_new_tokens=40, sampling=params)
    assert quick.token_ids == plain.token_ids
    assert quick.text == plain.text
    assert plain.drafts.drafted == 0
    assert quick.forward_passes == len(quick.token_ids) - quick.drafts.accepted
    assert engine().slots_in_use == 0


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
def test_right_guesses_save_a_pass_each(params: SamplingParams) -> None:
    """Guessing what comes anyway takes six tokens and one more in a pass."""
    plain = engine().generate(ids(9), max_new_tokens=21, sampling=params, drafts=False)
    quick = guided(engine(), ids(9), plain.token_ids, params, count=21)
    assert quick.token_ids == plain.token_ids
    assert quick.drafts.accepted == quick.drafts.drafted
    assert quick.forward_passes == 1 + 3  # the prompt, and 7 + 7 + 6 tokens


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("wrong_at", [0, 2, 5])
def test_wrong_guesses_leave_nothing_behind(params: SamplingParams, wrong_at: int) -> None:
    """What a wrong guess wrote into the cache is seen by nobody, wherever the draft went wrong."""
    plain = engine().generate(ids(9), max_new_tokens=20, sampling=params, drafts=False)
    guesses = [
        token + 1 if place % 6 == wrong_at else token for place, token in enumerate(plain.token_ids)
    ]
    quick = guided(engine(), ids(9), guesses, params)
    assert quick.token_ids == plain.token_ids
    assert quick.drafts.drafted > 0
    assert quick.drafts.accepted < quick.drafts.drafted
    assert engine().slots_in_use == 0


def test_branches_draft_from_their_shared_prefix() -> None:
    """Branches with drafts write what they write without, whoever waits and whoever runs."""
    openings = [ids(count, seed=count) for count in (3, 1, 5, 2, 4)]
    plain = engine().decode_branches(prompt(1), openings, max_new_tokens=24, drafts=False)
    for together in (None, 2):
        quick = engine().decode_branches(
            prompt(1), openings, max_new_tokens=24, max_parallel=together
        )
        assert [q.token_ids for q in quick] == [p.token_ids for p in plain]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text", "gpt2", "gpt_oss", "mistral"])
def test_families_draft_exactly(name: str) -> None:
    """Sliding windows, soft caps, sinks and learned positions stand several rows a segment."""
    tested = tiny_engine(name)
    plain = tested.generate(prompt(2), max_new_tokens=24, drafts=False)
    quick = guided(
        tested, prompt(2), [*plain.token_ids[:9], 5, *plain.token_ids[10:]], PARAMS["greedy"], 24
    )
    assert quick.token_ids == plain.token_ids
    assert quick.drafts.accepted > 5


def test_a_grammar_holds_inside_drafts() -> None:
    """A guess that the grammar forbids is not fed, and the text is the same as without drafts."""
    constraint = Constraint("regex", r"(ab[0-9]{2}, ){6}end")
    for seed in range(3):
        params = SamplingParams(temperature=1.0, seed=seed)
        plain = engine().generate(
            ids(9), max_new_tokens=60, sampling=params, constraint=constraint, drafts=False
        )
        quick = engine().generate(ids(9), max_new_tokens=60, sampling=params, constraint=constraint)
        assert quick.token_ids == plain.token_ids
        assert quick.text == plain.text
        assert quick.text.endswith("end")


def test_rows_bound_drafts() -> None:
    """With room for one row there is no draft; a pass never has more rows than allowed."""
    tested = tiny_engine("qwen2")
    tested.scheduler.budget.draft_rows = 1
    assert tested.generate(prompt(0), max_new_tokens=20).drafts.drafted == 0
    tested.scheduler.budget.draft_rows = 8
    rows: list[int] = []
    run = tested.forward.run

    def recorded(feeds, sampled, drafted=()):  # type: ignore[no-untyped-def]
        rows.append(sum(len(tokens) for _, tokens in feeds))
        return run(feeds, sampled, drafted)

    tested.forward.run = recorded  # type: ignore[method-assign]
    tested.decode_branches(prompt(1), [ids(1, s) for s in range(4)], max_new_tokens=20)
    assert max(rows[1:]) <= 8
    assert max(rows[1:]) > 4


@given(
    st.lists(st.integers(0, 3), min_size=0, max_size=20),
    st.lists(st.integers(0, 3), min_size=2, max_size=20),
)
def test_lookup_finds_an_earlier_place_with_the_same_last_tokens(
    base: list[int], own: list[int]
) -> None:
    """A draft follows an earlier occurrence of the last two tokens, if there is one."""
    lookup = PromptLookup(own, PromptLookup(base))
    tokens = [*base, *own]
    found = lookup.draft(3)
    places = [end for end in range(2, len(tokens)) if tokens[end - 2 : end] == tokens[-2:]]
    assert bool(found) == bool(places)
    if found:
        assert any(tokens[end : end + len(found)] == found for end in places)


def test_lookup_prefers_the_longest_match() -> None:
    """Of two places, the one with more tokens in common is taken, though the other is later."""
    lookup = PromptLookup([9, 1, 2, 3, 70, 8, 2, 3, 80, 9, 1, 2, 3])
    assert lookup.draft(1) == [70]


def test_draft_length_follows_success() -> None:
    """Drafts get longer while they are right, and short again when they are not."""
    length = DraftLength(first=4, most=16)
    length.learn(4, 4)
    length.learn(8, 8)
    length.learn(16, 16)
    assert length.now == 16
    length.learn(16, 2)
    assert length.now == 3
    length.learn(0, 0)
    assert length.now == 3


def test_lookup_goes_to_the_siblings_after_its_own_text() -> None:
    """What only a sibling wrote is found; of equal matches one's own or the prompt's wins."""
    base = PromptLookup([1, 2, 60, 5])
    one, other = PromptLookup([7, 8, 9, 70], base), PromptLookup([3], base)
    other.extend([7, 8])
    assert other.draft(2) == [9, 70]
    other.extend([1, 2])
    assert other.draft(1) == [60]
    one.extend([8, 1, 2, 80])
    assert other.draft(1) == [80]  # three tokens in common with the sibling, two with the prompt
    assert PromptLookup([7, 8], PromptLookup()).draft(1) == []  # no sibling: another base


def test_a_single_guess_follows_the_last_token_when_it_came_last() -> None:
    """In its own text, else the prompt's, else a sibling's; none after a token that is new."""
    base = PromptLookup([5, 6, 5, 7])
    one, other = PromptLookup([8, 9], base), PromptLookup([5], base)
    assert other.single() == [7]
    other.extend([1, 5, 8])
    assert other.single() == [9]
    other.extend([5])
    assert other.single() == [8]
    assert one.single() == []
    assert PromptLookup().single() == []


def test_single_guesses_do_not_shorten_the_others() -> None:
    """Text without repeated pairs is guessed token by token, and the length stays as it was."""
    tested = tiny_engine("qwen2")
    sequence = DecodingSequence(
        tested.tokenizer,
        tested.scheduler.forward.forest.root(Ledger()),
        [5, 6],
        eos_token_ids=frozenset(),
        max_new_tokens=9,
        sampling=SamplingParams(),
        seed=0,
        lookup=PromptLookup(),
    )
    sequence.feed()
    sequence.accept(5)
    assert sequence.feed().draft.token_ids == (6,)
    sequence.accept(Verified((9,), 1))
    assert (sequence.drafts.drafted, sequence.drafts.accepted) == (1, 0)
    assert sequence._draft_length.now == DraftLength().now
