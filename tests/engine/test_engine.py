"""The engine's front: completions, forks inside forks, and many requests of all kinds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from langchain_pos.engine import Engine, SamplingParams
from langchain_pos.engine.completion import Completion
from langchain_pos.engine.decoding.sequence import Feed, decode, feed
from langchain_pos.engine.scheduler.request import Request
from tests.support.scheduling import stepping
from tests.support.tiny import greedy_reference, ids, said, submit, tiny_engine

PROMPT = ids(20, seed=9)
GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine whose sequences use their whole budget."""
    return tiny_engine()


@pytest.fixture(scope="module")
def whole(engine: Engine) -> Completion:
    """What the model writes after the prompt when nothing stops it."""
    return engine.generate(PROMPT, max_new_tokens=24, drafts=False)


def test_a_completion_says_how_it_ended_and_what_it_took(engine: Engine, whole: Completion) -> None:
    """Tokens, text, reason, usage and passes of a sequence that reached its budget."""
    assert whole.finish_reason == "length"
    assert (whole.stop, whole.error) == (None, None)
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (20, 24)
    assert whole.usage.total_tokens == 44
    assert whole.forward_passes == 24
    decoded = engine.tokenizer.decode([*PROMPT, *whole.token_ids])
    assert decoded.rstrip("\ufffd").endswith(whole.text)


def test_eos_ends_a_sequence_and_is_no_token_of_it(engine: Engine, whole: Completion) -> None:
    """The final EOS is neither in the tokens nor in the text."""
    eos = whole.token_ids[6]
    first = whole.token_ids.index(eos)
    engine.eos_token_ids = frozenset({eos})
    try:
        done = engine.generate(PROMPT, max_new_tokens=24, drafts=False)
    finally:
        engine.eos_token_ids = frozenset()
    assert (done.finish_reason, done.token_ids) == ("stop", whole.token_ids[:first])
    assert whole.text.startswith(done.text)
    assert done.forward_passes == first + 1


def test_a_stop_sequence_cuts_the_text_and_keeps_its_tokens(
    engine: Engine, whole: Completion
) -> None:
    """The text ends before the stop sequence; the tokens that spelled it are there."""
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    done = engine.generate(PROMPT, max_new_tokens=24, stop=["never", stop])
    assert (done.finish_reason, done.stop) == ("stop", stop)
    assert done.text == whole.text.partition(stop)[0]
    assert done.token_ids == whole.token_ids[: len(done.token_ids)]
    assert len(done.token_ids) < 24
    (branch,) = engine.decode_branches(PROMPT[:12], [PROMPT[12:]], max_new_tokens=24, stop=[stop])
    assert (branch.text, branch.token_ids, branch.stop) == (done.text, done.token_ids, stop)
    assert branch.usage.input_tokens == 8


def test_text_comes_as_it_is_written(engine: Engine, whole: Completion) -> None:
    """Pieces arrive one by one and add up to the text."""
    pieces: list[str] = []

    async def steps(request: Request[Any]) -> Completion:
        sequence = engine.sequence(
            engine.scheduler.root(request),
            PROMPT,
            max_new_tokens=24,
            sampling=GREEDY,
            seed=0,
            on_text=pieces.append,
        )
        with pytest.raises(ValueError, match="still being decoded"):
            sequence.completion()
        await decode([sequence])
        return sequence.completion()

    assert submit(engine, steps).wait() == whole
    assert len(pieces) > 5
    assert "".join(pieces) == whole.text


@pytest.mark.parametrize("name", ["qwen2", "mistral", "gemma3_text", "gpt_oss"])
def test_forks_inside_forks(name: str) -> None:
    """Branches of branches, prefilled with all their ancestors in one pass, are as alone."""
    engine = tiny_engine(name)
    parts = {"": PROMPT, "a": ids(5, 1), "b": ids(3, 2), "aa": ids(2, 3), "ab": ids(4, 4)}
    parts["aba"] = ids(3, 5)

    async def steps(request: Request[Any]) -> dict[str, list[int]]:
        segments = {"": engine.scheduler.root(request)}
        ends, feeds, sequences = {"": len(PROMPT)}, [Feed(segments[""], PROMPT)], {}
        for path, tokens in list(parts.items())[1:]:
            parent = path[:-1]
            segments[path] = engine.fork(segments[parent], at=ends[parent])
            ends[path] = ends[parent] + len(tokens)
            if any(other != path and other.startswith(path) for other in parts):
                feeds.append(Feed(segments[path], tokens))
            else:
                sequences[path] = engine.sequence(
                    segments[path], tokens, max_new_tokens=10, sampling=GREEDY, seed=0
                )
        await decode(list(sequences.values()), first=feeds)
        return {path: sequence.token_ids for path, sequence in sequences.items()}

    written = submit(engine, steps, reserve=200).wait()
    assert set(written) == {"b", "aa", "aba"}
    for path, tokens in written.items():
        prompt = [token for depth in range(len(path) + 1) for token in parts[path[:depth]]]
        assert tokens == greedy_reference(engine.model, prompt, 10)


def test_cut_back_and_written_anew(engine: Engine, whole: Completion) -> None:
    """A segment that is truncated and goes on differently is as if it had never been longer."""

    async def steps(request: Request[Any]) -> Completion:
        root = engine.scheduler.root(request)
        draft = engine.sequence(root, PROMPT, max_new_tokens=10, sampling=GREEDY, seed=0)
        await decode([draft])
        engine.truncate(root, 13)
        again = engine.sequence(root, PROMPT[13:], max_new_tokens=24, sampling=GREEDY, seed=0)
        await decode([again])
        return again.completion()

    assert submit(engine, steps).wait().token_ids == whole.token_ids


def test_children_outlive_the_segment_they_forked_from(engine: Engine) -> None:
    """A released parent is no longer seen; its slots can be taken while the child goes on."""

    async def steps(request: Request[Any]) -> tuple[list[int], int]:
        root = engine.scheduler.root(request)
        child = engine.fork(root, at=0)
        await feed([Feed(root, PROMPT), Feed(child, PROMPT[:5])])
        engine.release(root)
        other = engine.scheduler.root(request)
        sequence = engine.sequence(child, PROMPT[5:], max_new_tokens=8, sampling=GREEDY, seed=0)
        await decode([sequence], first=[Feed(other, ids(30, 3))])
        return sequence.token_ids, request.ledger.peak_slots

    tokens, peak = submit(engine, steps, reserve=80).wait()
    assert tokens == greedy_reference(engine.model, PROMPT, 8)
    assert peak == 30 + len(PROMPT) + 7


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["qwen2", "gemma3_text"])
def test_any_mixture_of_requests_gives_each_what_it_gets_alone(name: str, seed: int) -> None:
    """Requests come, wait, are cancelled and end in any order; nobody's tokens change."""
    chance = random.Random(seed)
    engine = tiny_engine(name, max_rows=chance.choice([3, 8, 1024]), max_slots=160)
    warm = SamplingParams(temperature=0.8, seed=5)

    def some() -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
        settings = {
            "max_new_tokens": chance.randrange(1, 12),
            "sampling": chance.choice([GREEDY, warm]),
        }
        prompt = ids(chance.randrange(1, 30), chance.randrange(99))
        if chance.random() < 0.5:
            return engine.generate, [prompt], settings
        openings = [ids(chance.randrange(1, 5), index) for index in range(chance.randrange(1, 5))]
        settings["max_parallel"] = chance.choice([None, 1, 2])
        return engine.decode_branches, [prompt, openings], settings

    asked = [some() for _ in range(10)]
    alone = [call(*args, **settings) for call, args, settings in asked]

    # The same calls, but `run` only queues them.
    submitted: list[Request[Any]] = []

    def queue(make: Any, **kwargs: Any) -> Any:
        submitted.append(engine.scheduler.submit(make, **kwargs))

    with stepping(engine) as until:
        engine.run = queue  # type: ignore[method-assign]
        for call, args, settings in asked:
            call(*args, **settings)
        cancelled = set(chance.sample(range(10), 3))
        for index in chance.sample(range(10), 10):
            if index in cancelled:
                passes = chance.randrange(4)
                until(lambda r=submitted[index], p=passes: r.done or r.passes >= p)  # type: ignore[misc]
                submitted[index].cancel()
            else:
                until(lambda r=submitted[index]: r.done)  # type: ignore[misc]
                assert said(submitted[index].result()) == said(alone[index])
        until(lambda: not engine.scheduler.has_work())
    assert engine.slots_in_use == engine.forward.forest.extent == 0
