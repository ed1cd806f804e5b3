"""Sampling: each row by its own parameters and seed, whatever runs beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from langchain_pos.engine import Engine, SamplingParams, sampling
from langchain_pos.engine.constraints import Constraint, ConstraintCompiler
from langchain_pos.engine.decoding.drafts import Draft, PromptLookup
from langchain_pos.engine.decoding.sequence import decode, feed
from langchain_pos.engine.drawing import uniform
from langchain_pos.engine.repetition import PenaltyHistory
from langchain_pos.engine.sampling import (
    Logprobs,
    RowSampling,
    derive_seed,
    probabilities,
    sample,
)
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.engine.seeds import request_seed
from langchain_pos.errors import InvalidRequestError, NonFiniteLogitsError
from tests.support.tiny import ids, said, tiny_engine, tiny_model
from tests.support.tokenizers import byte_level

WARM = SamplingParams(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01, seed=11)
OPENINGS = [ids(length, seed=length) for length in (3, 1, 5, 2)]
PROMPT = ids(20, seed=9)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine whose sequences use their whole budget."""
    return tiny_engine()


def drawn(logits: torch.Tensor, params: SamplingParams, draws: int) -> torch.Tensor:
    """Many independent tokens from one distribution."""
    rows = [RowSampling(params, seed, step=3) for seed in range(draws)]
    return torch.tensor(sample(logits.expand(draws, -1).clone(), rows))


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    """How far the frequencies are off, in standard deviations of the chi-square distribution."""
    kept = probabilities > 0
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert counts[~kept].sum() == 0, "an excluded token was drawn"
    expected = probabilities.double()[kept] * len(tokens)
    statistic = float(((counts[kept] - expected) ** 2 / expected).sum())
    freedom = int(kept.sum()) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.0, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.7),
        SamplingParams(temperature=1.3, min_p=0.2),
    ],
)
def test_frequencies_are_the_softmax(params: SamplingParams) -> None:
    """Tokens come as often as the warped distribution says, the excluded ones never."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3))[None]
    probabilities = params.warpers()(torch.LongTensor(), logits.clone()).softmax(dim=-1)[0]
    assert chi_square(drawn(logits, params, 20_000), probabilities) < 4


def test_draws_of_one_sequence_are_independent() -> None:
    """The numbers of a sequence's steps fill [0, 1) evenly, pairs of neighbours as well."""
    numbers = torch.tensor([uniform(7, step) for step in range(20_000)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    tenths = (numbers * 10).long()
    assert chi_square(tenths, torch.full((10,), 0.1)) < 4
    assert chi_square(tenths[:-1:2] * 10 + tenths[1::2], torch.full((100,), 0.01)) < 4


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.7},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"temperature": 1.4, "top_k": 40, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_warpers_are_those_of_generate(changes: dict[str, Any]) -> None:
    """The distribution is the one that transformers' `generate` would draw from."""
    prompt = torch.tensor([ids(9)])
    config = GenerationConfig(**{"do_sample": True, "top_k": 0, **changes})
    theirs = tiny_model()._get_logits_processor(config, input_ids_seq_length=9, device="cpu")
    logits = 3 * torch.randn(4, 384, generator=torch.Generator().manual_seed(5))
    ours = SamplingParams(**{"temperature": 1.0, **changes}).warpers()
    expected = theirs(prompt, logits.clone())
    assert torch.equal(ours(torch.LongTensor(), logits.clone()), expected)
    assert len(ours) == len(changes)


def oracle(params: SamplingParams, logits: torch.Tensor) -> torch.Tensor:
    """What transformers' warpers leave of `[R, vocabulary]` logits, as probabilities."""
    return params.warpers()(torch.LongTensor(), logits.clone()).softmax(dim=-1)


@given(
    st.integers(0, 2**31),
    st.sampled_from([3, 60, 128, 129, 1000, 5000]),
    st.sampled_from([0.1, 2.0, 9.0]),
    st.floats(0.2, 3),
    st.none() | st.integers(1, 1200),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([None, 0.0, 0.01, 0.5, 1.0]),
)
@settings(max_examples=150)
def test_the_distribution_is_that_of_transformers(
    seed: int,
    width: int,
    spread: float,
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float | None,
) -> None:
    """Any mixture of parameters, rows with different ones together, on wide and narrow logits."""
    logits = spread * torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    logits[0, ::3] = -math.inf
    mixed = SamplingParams(temperature, top_k, top_p, min_p)
    rows = [mixed, SamplingParams(1.0), SamplingParams(temperature, top_p=top_p)]
    expected = torch.cat([oracle(p, logits[i : i + 1]) for i, p in enumerate(rows)])
    torch.testing.assert_close(sampling._warp_groups(logits.clone(), rows), expected)  # on a GPU
    found = probabilities(logits.clone(), rows)
    found /= found.sum(dim=-1, keepdim=True)
    # Sums in float32 and in float64 may put one token on either side of the line.
    differing = ((found > 0) != (expected > 0)).sum(dim=-1)
    assert int(differing.max()) <= 1
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("top_k", [None, 40])
def test_of_equally_likely_tokens_as_many_stay_as_with_transformers(top_k: int | None) -> None:
    """bfloat16 logits have many ties; where the line cuts one, its last tokens stay."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(20, 4000, generator=generator).bfloat16().float()
    params = SamplingParams(1.0, top_k=top_k, top_p=0.8)
    found = probabilities(logits.clone(), [params] * 20)
    assert (found > 0).sum(-1).tolist() == (oracle(params, logits) > 0).sum(-1).tolist()
    for row, kept in zip(logits, found > 0, strict=True):
        line = row[kept].min()
        tied = kept[row == line]
        assert kept[row > line].all()
        assert not tied[: len(tied) - int(tied.sum())].any()
        assert tied[len(tied) - int(tied.sum()) :].all()


def test_a_row_draws_the_same_whatever_lies_beside_it() -> None:
    """Alone or among others, with the same or other parameters, wide logits or narrow ones."""
    for width in (100, 3000):
        logits = 3 * torch.randn(6, width, generator=torch.Generator().manual_seed(width))
        params = [SamplingParams(0.9), WARM, SamplingParams(1.2, top_p=0.7)] * 2
        rows = [RowSampling(its, seed, step=1) for seed, its in enumerate(params)]
        alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        assert sample(logits, rows) == alone
        assert sample(logits.flip(0), rows[::-1]) == alone[::-1]


def test_sampling_leaves_the_logits_as_they_are() -> None:
    """A recorded pass keeps its logits in one place, and a draft's rows may be looked at again."""
    logits = torch.randn(2, 300)
    before = logits.clone()
    penalised = SamplingParams(0.8, repetition_penalty=2.0)
    sample(logits, [RowSampling(penalised, 1, 0, PenaltyHistory([1, 2]))] * 2)
    assert torch.equal(logits, before)


def test_a_history_grows_with_its_sequence() -> None:
    """Each token once, in the order of its first coming; a draft's are counted, and not kept."""
    history = PenaltyHistory([5, 7, 5])
    device = torch.device("cpu")
    assert history.ids(device).tolist() == [5, 7]
    history.extend([7, 9])
    assert history.ids(device, ahead=(9, 3)).tolist() == [5, 7, 9, 9, 3]
    assert history.ids(device).tolist() == [5, 7, 9]
    assert len(history) == 3


def test_a_draft_is_penalised_for_what_it_guesses() -> None:
    """Each row of it counts the guesses before it, and the sequence's own tokens."""
    engine = tiny_engine()
    params = SamplingParams(repetition_penalty=1.5)

    async def steps(request: Request[Any]) -> Any:
        root = engine.scheduler.root(request)
        sequence = engine.sequence(
            root,
            PROMPT,
            max_new_tokens=9,
            sampling=params,
            seed=0,
            guess=lambda sequence: Draft.of((5, 6, 7)),
        )
        (sampled,) = await feed([sequence.feed()])
        sequence.accept(sampled)
        return sequence.feed(), list(sequence.token_ids)

    fed, written = engine.run(steps, reserve=64)
    assert [row.ahead for row in fed.draft_sampling] == [(5,), (5, 6), (5, 6, 7)]
    history = fed.sampling.history
    assert all(row.history is history for row in fed.draft_sampling)
    assert set(history.ids(torch.device("cpu")).tolist()) == {*PROMPT, *written}
    logits = torch.ones(2, 300)
    logits[:, 6] = 1.4
    rows = [RowSampling(params, 0, 1, ahead=ahead) for ahead in ((5,), (5, 6))]
    assert sample(logits, rows) == [6, 0]


@pytest.mark.parametrize("penalty", [1.2, 2.0, 0.8])
def test_repetition_penalty_is_that_of_generate(engine: Engine, penalty: float) -> None:
    """Greedy with a penalty writes what transformers' `generate` writes with it."""
    output = engine.model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        repetition_penalty=penalty,
        pad_token_id=0,
    )
    params = SamplingParams(repetition_penalty=penalty)
    done = engine.generate(PROMPT, max_new_tokens=20, sampling=params)
    assert list(done.token_ids) == output[0, len(PROMPT) :].tolist()
    # A branch is penalised for its prefix and opening, too.
    (branch,) = engine.decode_branches(
        PROMPT[:15], [PROMPT[15:]], max_new_tokens=20, sampling=params
    )
    assert branch.token_ids == done.token_ids


@pytest.mark.parametrize(
    "params", [WARM, SamplingParams(temperature=1.0, repetition_penalty=1.5, seed=5)]
)
def test_same_seed_same_branch_whatever_runs_beside_it(
    engine: Engine, params: SamplingParams
) -> None:
    """A branch's tokens follow from its seed and place, not from its company."""
    company = engine.decode_branches(PROMPT, OPENINGS, max_new_tokens=15, sampling=params)
    refilled = engine.decode_branches(
        PROMPT, OPENINGS, max_new_tokens=15, sampling=params, max_parallel=2
    )
    assert said(refilled) == said(company)
    fewer = engine.decode_branches(PROMPT, OPENINGS[:2], max_new_tokens=15, sampling=params)
    assert said(fewer) == said(company[:2])
    own = SamplingParams(**{**vars(params), "seed": derive_seed(params.seed or 0, 2)})
    alone = engine.generate(PROMPT + OPENINGS[2], max_new_tokens=15, sampling=own)
    assert alone.token_ids == company[2].token_ids


def test_hardly_any_temperature_is_greedy(engine: Engine) -> None:
    """Towards 0, sampling becomes greedy and never overflows."""
    greedy = engine.generate(PROMPT, max_new_tokens=10).token_ids
    for temperature in (1e-4, 1e-6, 1e-40):
        params = SamplingParams(temperature=temperature)
        assert engine.generate(PROMPT, max_new_tokens=10, sampling=params).token_ids == greedy


def test_seeds_make_the_difference(engine: Engine) -> None:
    """Branches with one opening differ from each other; another seed or none differs again."""
    same = [OPENINGS[0]] * 3

    def texts(**change: int | None) -> list[tuple[int, ...]]:
        params = SamplingParams(**{**vars(WARM), **change})
        done = engine.decode_branches(PROMPT, same, max_new_tokens=15, sampling=params)
        return [branch.token_ids for branch in done]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first
    assert set(texts(seed=12)).isdisjoint(first)
    assert texts(seed=None) != texts(seed=None)


@given(st.integers(), st.integers(), st.text(max_size=3))
def test_derived_seeds_are_their_own(seed: int, index: int, name: str) -> None:
    """A derived seed fits 63 bits, is the same in every run, and differs by its path."""
    derived = derive_seed(seed, name, index)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, name, index)
    assert derived != derive_seed(seed, name, index + 1)
    assert derived != derive_seed(seed + 1, name, index)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.inf),
    ],
)
def test_parameters_that_mean_nothing_are_refused(name: str, value: float) -> None:
    """The error names the parameter, what was given and what is allowed."""
    with pytest.raises(InvalidRequestError, match=f"{name}={value}.*must be"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_rows_are_named_and_the_others_sampled(broken: float) -> None:
    """NaN and infinity fail their own row only."""
    logits = torch.zeros(3, 5)
    logits[:, 2] = 1
    logits[1, 4] = broken
    greedy = SamplingParams()
    first, second, third = sample(logits, [RowSampling(greedy, 0, 0)] * 3)
    assert (first, third) == (2, 2)
    assert isinstance(second, NonFiniteLogitsError)


def test_a_row_of_minus_infinity_is_broken_and_one_with_a_token_is_not() -> None:
    """Minus infinity is how models exclude tokens; only a whole row of it is an error."""
    logits = torch.full((2, 5), -math.inf)
    logits[1, 3] = 0.5
    for params in (SamplingParams(), WARM):
        first, second = sample(logits.clone(), [RowSampling(params, 0, 0)] * 2)
        assert isinstance(first, NonFiniteLogitsError)
        assert second == 3


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("drafts", [False, True])
def test_logprobs_are_the_models_own(temperature: float, drafts: bool) -> None:
    """Those of one pass over the whole text, whatever is sampled with and however it is drafted."""
    engine = tiny_engine()
    prompt = ids(6) * 3  # repeats, so that there is something to draft
    told = Logprobs(top=3)

    async def steps(request: Request[Any]) -> Any:
        sequence = engine.sequence(
            engine.scheduler.root(request),
            prompt,
            max_new_tokens=12,
            sampling=SamplingParams(temperature=temperature, repetition_penalty=1.2),
            seed=5,
            lookup=PromptLookup() if drafts else None,
            logprobs=told,
        )
        await decode([sequence])
        return sequence.completion()

    done = engine.run(steps, reserve=len(prompt) + 12)
    with torch.no_grad():
        logits = engine.model(torch.tensor([[*prompt, *done.token_ids]])).logits[0].float()
    wanted = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    for row, seen in zip(wanted, told.of(done.token_ids), strict=True):
        assert seen.logprob == pytest.approx(float(row[seen.token_id]), abs=1e-3)
        top = row.topk(3)
        assert [value for _, value in seen.top] == pytest.approx(top.values.tolist(), abs=1e-3)


def test_logprobs_of_tokens_that_nobody_sampled() -> None:
    """What a grammar wrote has probability one, and no alternatives."""
    told = Logprobs(top=2)
    told.note(0, 7, torch.tensor([0.5, 0.25, 0.25]).log().repeat(4))
    seen, other, forced = told.of([7]), told.of([8]), told.of([7, 9])
    assert seen[0].logprob == pytest.approx(math.log(0.25))
    assert len(seen[0].top) == 2
    assert (other[0].logprob, other[0].top) == (0, ())
    assert (forced[1].logprob, forced[1].top) == (0, ())


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_how_likely_the_model_was_to_write_what_a_grammar_allowed(temperature: float) -> None:
    """By its own logits; one for a row that is free, whatever stands beside it."""
    tokenizer = byte_level()
    state = ConstraintCompiler(tokenizer, vocabulary=512, stop_token_ids=[0]).state(
        Constraint("ebnf", 'root ::= "a" | "b"')
    )
    allowed = [tokenizer.convert_tokens_to_ids(letter) for letter in "ab"]
    logits = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    expected = logits[1].log_softmax(-1)[allowed].logsumexp(-1)
    params, told = SamplingParams(temperature=temperature), [Logprobs(), Logprobs()]
    rows = [
        RowSampling(params, 1, 0, logprobs=told[0]),
        RowSampling(params, 2, 0, constraint=state, logprobs=told[1]),
        RowSampling(params, 3, 0),
    ]
    free, held, _ = sample(logits, rows)
    assert isinstance(free, int)
    assert held in allowed
    assert told[0].sampled([free])[0].allowed == 0
    assert told[1].sampled([held])[0].allowed == pytest.approx(float(expected), abs=1e-5)
    assert told[1].sampled([held])[0].logprob < float(expected)


def test_a_request_without_a_temperature_has_the_same_seed_every_time() -> None:
    """What is sampled all the same follows it; who wants sampling gets a new one."""
    assert request_seed(None, 0.0) == request_seed(None, 0.0, None)
    assert request_seed(7, 0.0) == request_seed(7, 1.0) == 7
    assert len({request_seed(None, 0.8) for _ in range(5)}) == 5
    assert len({request_seed(None, 0.0, None, 0.5) for _ in range(5)}) == 5, "a step's own"
