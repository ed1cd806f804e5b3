"""Prompts that begin alike are prefilled once, and nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from langchain_pos.engine import Completion, Engine
from langchain_pos.engine.cache.prefixes import LEAST
from langchain_pos.engine.decoding.sequence import decode
from langchain_pos.engine.engine import GREEDY
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import NonFiniteLogitsError, OutOfSlotsError, RequestCancelled
from tests.support.scheduling import end, stepping
from tests.support.tiny import ids, tiny_engine

DOCUMENT = ids(180, seed=1)
QUESTIONS = [ids(9 + place, seed=10 + place) for place in range(5)]


def fresh(name: str = "qwen2", **kwargs: int) -> Engine:
    """An engine that has seen nothing yet."""
    return tiny_engine(name, **kwargs)


def submit(engine: Engine, prompt: list[int], tokens: int = 10) -> Request[Completion]:
    """Queue one sequence, as `Engine.generate` does."""

    async def steps(request: Request[Completion]) -> Completion:
        root = engine.scheduler.root(request, prompt)
        sequence = engine.sequence(
            root,
            prompt[root.end :],
            max_new_tokens=tokens,
            sampling=GREEDY,
            seed=0,
            context_ids=prompt[: root.end],
        )
        await decode([sequence])
        if sequence.failure is not None:
            raise sequence.failure
        return sequence.completion()

    return engine.scheduler.submit(steps, reserve=len(prompt) + tokens)


def alone(prompt: list[int], name: str = "qwen2", tokens: int = 10) -> tuple[int, ...]:
    """What an engine writes that shares nothing."""
    engine = fresh(name, prefix_cache_tokens=0)
    return engine.generate(prompt, max_new_tokens=tokens).token_ids


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "mixtral (sliding)", "gpt2", "phi3"])
def test_a_prompt_that_begins_alike_is_fed_from_where_it_differs(name: str) -> None:
    """In one request after the other; the tokens are those of an engine that shares nothing."""
    engine = fresh(name)
    for place, question in enumerate(QUESTIONS):
        rows = engine.forward.rows
        done = engine.generate([*DOCUMENT, *question], max_new_tokens=10, drafts=False)
        assert done.token_ids == alone([*DOCUMENT, *question], name)
        fed = engine.forward.rows - rows
        assert fed == len(question) + 9 + (0 if place else len(DOCUMENT))
        assert done.usage.input_tokens == len(DOCUMENT) + len(question)
        assert engine.slots_in_use == 0


def test_the_same_prompt_again_feeds_one_token() -> None:
    """Its last one: after it the first new token is sampled."""
    engine = fresh()
    engine.generate(DOCUMENT, max_new_tokens=1)
    rows = engine.forward.rows
    engine.generate(DOCUMENT, max_new_tokens=1)
    assert engine.forward.rows == rows + 1


@pytest.mark.parametrize("max_rows", [1024, 50, 7])
def test_requests_that_run_together_feed_the_common_beginning_once(max_rows: int) -> None:
    """However the prompt is cut into passes, and whoever comes first."""
    engine = fresh(max_rows=max_rows)
    with engine.scheduler.paused():
        requests = [submit(engine, [*DOCUMENT, *question]) for question in QUESTIONS]
    for request, question in zip(requests, QUESTIONS, strict=True):
        assert request.wait().token_ids == alone([*DOCUMENT, *question])
    written = len(QUESTIONS) * 9
    assert engine.forward.rows == len(DOCUMENT) + sum(map(len, QUESTIONS)) + written
    assert [request.cached_tokens for request in requests] == [0, *[len(DOCUMENT)] * 4]
    assert engine.slots_in_use == 0


@pytest.mark.parametrize("passes", [0, 1, 2, 5])
def test_who_came_first_may_go_first(passes: int) -> None:
    """Cancelled before, while or after it feeds what others stand on: they go on themselves."""
    engine = fresh(max_rows=64)
    with stepping(engine) as until:
        first = submit(engine, [*DOCUMENT, *QUESTIONS[0]])
        others = [submit(engine, [*DOCUMENT, *question]) for question in QUESTIONS[1:]]
        until(lambda: engine.forward.count >= passes)
        first.cancel()
    for request, question in zip(others, QUESTIONS[1:], strict=True):
        assert request.wait().token_ids == alone([*DOCUMENT, *question])
    with pytest.raises(RequestCancelled):
        first.result()
    assert engine.slots_in_use == 0


def test_what_others_do_not_need_is_given_back_at_once() -> None:
    """Slots that nobody has reserved must not be held: the first one's question goes with it."""
    engine = fresh()
    long = [*DOCUMENT, *ids(150, seed=77)]
    with stepping(engine) as until:
        first, second = submit(engine, long, 2), submit(engine, [*DOCUMENT, *QUESTIONS[1]], 40)
        until(lambda: first.done)
        assert engine.slots_in_use <= len(DOCUMENT) + len(QUESTIONS[1]) + 40
        assert not second.done
    assert second.wait().token_ids == alone([*DOCUMENT, *QUESTIONS[1]], tokens=40)


def test_least_recently_used_goes_first() -> None:
    """Within the budget; what is used again stays."""
    engine = fresh(prefix_cache_tokens=2 * 99 + 10)
    first, second, third = (ids(100, seed=s) for s in (21, 22, 23))
    engine.generate(first, max_new_tokens=1)
    engine.generate(second, max_new_tokens=1)
    assert engine.scheduler.prefixes.parked == 2 * 99
    engine.generate(first, max_new_tokens=1)
    engine.generate(third, max_new_tokens=1)
    for prompt, fed in ((first, 1), (third, 1), (second, 100)):
        rows = engine.forward.rows
        engine.generate(prompt, max_new_tokens=1)
        assert engine.forward.rows - rows == fed
    engine.scheduler.prefixes.clear()
    assert engine.scheduler.prefixes.parked == 0


def test_a_longer_prompt_takes_the_place_of_its_beginning() -> None:
    """One entry serves both."""
    engine = fresh()
    engine.generate(DOCUMENT[:120], max_new_tokens=1)
    engine.generate(DOCUMENT, max_new_tokens=1)
    assert engine.scheduler.prefixes.parked == len(DOCUMENT) - 1
    engine.generate(DOCUMENT[:90], max_new_tokens=1)
    assert engine.scheduler.prefixes.parked == len(DOCUMENT) - 1


def test_what_is_parked_is_a_copy() -> None:
    """Whatever happens to the slots meanwhile."""
    engine = fresh()
    engine.generate(DOCUMENT, max_new_tokens=4)
    slots = engine.forward.cache.layers[0].keys.shape[2]
    engine.forward.cache.overwrite(list(range(slots)), 5.0)
    prompt = [*DOCUMENT, *QUESTIONS[2]]
    assert engine.generate(prompt, max_new_tokens=10).token_ids == alone(prompt)


def test_short_prompts_and_small_budgets_share_nothing() -> None:
    """A segment of its own is not worth a few tokens."""
    engine = fresh()
    for _ in range(2):
        engine.generate(DOCUMENT[:LEAST], max_new_tokens=2)
    assert engine.scheduler.prefixes.parked == 0
    engine = fresh(prefix_cache_tokens=LEAST + 1)
    engine.generate(DOCUMENT, max_new_tokens=2)
    assert engine.scheduler.prefixes.parked == 0


def test_a_prompt_that_breaks_the_model_is_not_kept() -> None:
    """NaN in its keys or values: the next one that begins alike is fed anew, and is well."""
    engine = fresh()
    layer = engine.model.model.layers[0].self_attn.v_proj
    original, breaks = layer.forward, [True]

    def poisoned(states: torch.Tensor) -> torch.Tensor:
        out = original(states)
        return out * float("nan") if breaks[0] else out

    layer.forward = poisoned
    with pytest.raises(NonFiniteLogitsError):
        engine.generate(DOCUMENT, max_new_tokens=3)
    breaks[0] = False
    assert engine.scheduler.prefixes.parked == 0
    assert engine.generate(DOCUMENT, max_new_tokens=10).token_ids == alone(DOCUMENT)


def test_no_memory_for_keeping_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is parked is a luxury."""
    engine = fresh()
    engine.generate(ids(100, seed=5), max_new_tokens=1)

    def full(slots: list[int]) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(engine.forward.cache, "copy_out", full)
    assert engine.generate(DOCUMENT, max_new_tokens=10).token_ids == alone(DOCUMENT)
    assert engine.scheduler.prefixes.parked == 0
    assert engine.slots_in_use == 0


def test_parked_tokens_that_find_no_slots_fail_their_request_alone() -> None:
    """As any request that does not fit; nothing is left behind."""
    engine = fresh(max_slots=1024)
    engine.generate(DOCUMENT, max_new_tokens=1)
    forest = engine.forward.forest
    hog = forest.root(Ledger())
    forest.extend(hog, 900)
    with pytest.raises(OutOfSlotsError):
        engine.generate(DOCUMENT, max_new_tokens=1)
    forest.release(hog)
    assert engine.slots_in_use == 0
    assert engine.generate(DOCUMENT, max_new_tokens=10).token_ids == alone(DOCUMENT)


@pytest.mark.parametrize("seed", range(4))
def test_any_mixture_of_prompts_writes_what_each_writes_alone(seed: int) -> None:
    """Random beginnings, lengths, budgets and cancellations, some together, some in turn."""
    draw = random.Random(seed)
    engine = fresh(
        max_rows=draw.choice([33, 1024]), prefix_cache_tokens=draw.choice([0, 300, 4096])
    )
    stems = [ids(160, seed=30 + s) for s in range(3)]
    under_way: list[tuple[Request[Completion], list[int]]] = []
    for _ in range(24):
        stem = draw.choice(stems)
        prompt = [
            *stem[: draw.randrange(40, 160)],
            *ids(draw.randrange(1, 90), seed=draw.randrange(4)),
        ]
        under_way.append((submit(engine, prompt, draw.randrange(1, 9)), prompt))
        if draw.random() < 0.2:
            draw.choice(under_way)[0].cancel()
        while len(under_way) > draw.randrange(1, 6):
            request, asked = under_way.pop(draw.randrange(len(under_way)))
            if request.cancelled:
                continue
            written = request.wait().token_ids
            assert written == alone(asked, tokens=len(written))
    for request, _ in under_way:
        end(request)
    assert engine.slots_in_use == 0
