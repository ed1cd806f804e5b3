"""Requests together: they share passes, wait in order, fail and end each for itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from langchain_pos.engine import Engine
from langchain_pos.engine.completion import Completion
from langchain_pos.engine.decoding.sequence import Feed, feed
from langchain_pos.engine.scheduler.pace import Pace
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import (
    ContextLengthError,
    InvalidRequestError,
    OutOfSlotsError,
    RequestCancelled,
)
from tests.support.scheduling import generating, in_threads, stepping
from tests.support.tiny import ids, said, submit, tiny_engine

PROMPT = ids(20, seed=9)
OPENINGS = [ids(length, seed=length) for length in (3, 1, 5, 2)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine whose sequences use their whole budget."""
    return tiny_engine()


def test_two_threads_share_passes_and_get_what_they_get_alone(engine: Engine) -> None:
    """Two callers at once cost as many passes as the longer of them."""
    one = engine.generate(PROMPT, max_new_tokens=15)
    many = engine.decode_branches(PROMPT[3:], OPENINGS, max_new_tokens=12)
    before = engine.forward.count
    together = in_threads(
        lambda: engine.generate(PROMPT, max_new_tokens=15, drafts=False),
        lambda: engine.decode_branches(PROMPT[3:], OPENINGS, max_new_tokens=12, drafts=False),
        hold=engine,
    )
    assert [said(result) for result in together] == [said(one), said(many)]
    assert engine.forward.count - before == 15
    assert engine.slots_in_use == 0


def test_many_threads(engine: Engine) -> None:
    """Eight callers with several requests each all get their own answers."""
    prompts = [ids(5 + index, seed=index) for index in range(8)]
    alone = [engine.generate(prompt, max_new_tokens=9) for prompt in prompts]

    def ask(index: int) -> Callable[[], list[Completion]]:
        return lambda: [engine.generate(prompts[index], max_new_tokens=9) for _ in range(3)]

    results = in_threads(*(ask(index) for index in range(8)))
    assert [said(result) for result in results] == [said([one] * 3) for one in alone]
    assert engine.slots_in_use == 0


def test_passes_of_all_branches_are_those_of_the_longest(engine: Engine) -> None:
    """Branches that end early cost nothing; each says how many passes it took part in."""
    free = engine.decode_branches(PROMPT, OPENINGS, max_new_tokens=12)
    ends = frozenset({free[0].token_ids[2], free[1].token_ids[5]})
    engine.eos_token_ids, none = ends, engine.eos_token_ids
    try:
        before, rows = engine.forward.count, engine.forward.rows
        done = engine.decode_branches(PROMPT, OPENINGS, max_new_tokens=12, drafts=False)
    finally:
        engine.eos_token_ids = none
    passes = [branch.forward_passes for branch in done]
    assert len(set(passes)) > 1
    assert engine.forward.count - before == max(passes)
    fed = len(PROMPT) + sum(map(len, OPENINGS)) + sum(count - 1 for count in passes)
    assert engine.forward.rows - rows == fed, "no row is fed in vain"
    for branch, whole in zip(done, free, strict=True):
        assert whole.token_ids[: len(branch.token_ids)] == branch.token_ids
        assert branch.finish_reason == ("stop" if len(branch.token_ids) < 12 else "length")
        assert len(branch.token_ids) == branch.usage.output_tokens


@pytest.mark.parametrize("max_rows", [1, 4, 7])
def test_chunked_prefill_equals_one_pass(engine: Engine, max_rows: int) -> None:
    """A prompt fed in chunks, and openings over several passes, change no token."""
    small = tiny_engine(max_rows=max_rows)
    assert small.generate(PROMPT, max_new_tokens=8, drafts=False).token_ids == (
        engine.generate(PROMPT, max_new_tokens=8).token_ids
    )
    assert small.forward.count == -(-len(PROMPT) // max_rows) + 7
    chunked = small.decode_branches(PROMPT, OPENINGS, max_new_tokens=8)
    whole = engine.decode_branches(PROMPT, OPENINGS, max_new_tokens=8)
    assert [b.token_ids for b in chunked] == [b.token_ids for b in whole]


def test_a_long_prompt_stalls_nobody() -> None:
    """While a long prompt is fed in chunks, the others get a token in every pass."""
    engine = tiny_engine(max_rows=8)
    alone = engine.generate(PROMPT[:5], max_new_tokens=12)
    before = engine.forward.count
    with stepping(engine) as until:
        long = submit(engine, generating(engine, ids(120), 2), reserve=130)
        short = submit(engine, generating(engine, PROMPT[:5], 12), reserve=20)
        until(lambda: short.done)
        assert engine.forward.count - before == short.passes == 12
        assert not long.done
    assert said(short.wait()) == said(alone)
    assert len(long.wait().token_ids) == 2


def test_cancel_in_prefill_and_in_decode(engine: Engine) -> None:
    """A cancelled request frees its slots at once, wherever it is, and the engine goes on."""
    alone = engine.generate(PROMPT, max_new_tokens=10)
    chunked = tiny_engine(max_rows=4)
    for passes in (0, 1, 3, 8):
        with stepping(chunked) as until:
            request = submit(chunked, generating(chunked, PROMPT, 10))
            until(lambda r=request, p=passes: r.passes >= p)  # type: ignore[misc]
            assert chunked.slots_in_use == min(4 * passes, 20) + max(passes - 5, 0)
            rows = chunked.forward.rows
            request.cancel()
            chunked.scheduler.step()
            assert chunked.slots_in_use == 0
            assert chunked.forward.rows == rows, "no further pass"
            assert request.done
        with pytest.raises(RequestCancelled):
            request.wait()
        request.cancel()  # once more does nothing
    assert chunked.generate(PROMPT, max_new_tokens=10).token_ids == alone.token_ids


def test_closing_a_stream_cancels_its_request(engine: Engine) -> None:
    """Events come as the model writes; a caller who leaves frees the slots."""
    whole = engine.generate(PROMPT, max_new_tokens=30)
    request = submit(engine, generating(engine, PROMPT, 30))
    assert "".join(request.stream()) == whole.text
    assert said(request.result()) == said(whole)
    request = submit(engine, generating(engine, PROMPT, 30))
    stream = request.stream()
    assert whole.text.startswith(next(stream))
    assert engine.slots_in_use > 0
    stream.close()
    assert engine.slots_in_use == 0


def test_cancel_from_another_thread(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled during a pass, a request ends when the pass is over; its waiter is told."""
    run, in_time = engine.forward.run, []

    def cancelling(*args: Any) -> Any:
        if request.passes == 5:
            in_threads(request.cancel)
            in_time.append(request.done)  # not while the pass uses its slots
        return run(*args)

    monkeypatch.setattr(engine.forward, "run", cancelling)
    with engine.scheduler.paused():
        request = submit(engine, generating(engine, PROMPT, 200), reserve=300)
    with pytest.raises(RequestCancelled):
        request.wait()
    assert in_time == [False]
    assert request.passes == 6
    assert engine.slots_in_use == 0


def test_an_exception_in_one_request_touches_no_other(engine: Engine) -> None:
    """A request's own mistake goes to its caller; the others do not notice."""
    alone = engine.generate(PROMPT, max_new_tokens=10)

    async def failing(request: Request[Any]) -> None:
        root = engine.scheduler.root(request)
        await feed([Feed(root, PROMPT)])
        await feed([Feed(root, PROMPT[:3])])
        raise LookupError("mine")

    def odd(wishes: list[list[int]]) -> Callable[[Request[Any]], Coroutine[Any, Any, None]]:
        async def steps(request: Request[Any]) -> None:
            await feed([Feed(engine.scheduler.root(request), wish) for wish in wishes])

        return steps

    wishes = [[], [[5, 384]], [[-1]]]
    with engine.scheduler.paused():
        bad = [submit(engine, steps) for steps in (failing, *map(odd, wishes))]
        good = submit(engine, generating(engine, PROMPT, 10))
    assert said(good.wait()) == said(alone)
    assert engine.slots_in_use == 0
    errors = [type(request.error) for request in bad]
    assert errors == [LookupError, ValueError, InvalidRequestError, InvalidRequestError]
    assert "384" in str(bad[2].error)


def test_what_can_never_fit_is_refused_before_any_pass() -> None:
    """Slots and positions are counted beforehand, and the error has the numbers."""
    engine = tiny_engine(max_slots=64, settings={"max_position_embeddings": 128})
    count = engine.forward.count
    with pytest.raises(OutOfSlotsError, match=r"may need 70 .* at most 64"):
        engine.generate(ids(60), max_new_tokens=10)
    with pytest.raises(OutOfSlotsError, match=r"may need 90 .* at most 64"):
        engine.decode_branches(ids(20), [ids(4)] * 5, max_new_tokens=10)
    with pytest.raises(ContextLengthError, match=r"100 tokens and up to 29 .* 128 positions"):
        engine.generate(ids(100), max_new_tokens=29)
    with pytest.raises(ContextLengthError, match=r"104 tokens and up to 25 .* 128 positions"):
        engine.decode_branches(ids(100), [ids(1), ids(4)], max_new_tokens=25)
    assert (engine.forward.count, engine.slots_in_use) == (count, 0)
    # Fewer at the same time do fit.
    done = engine.decode_branches(ids(20), [ids(4)] * 5, max_new_tokens=10, max_parallel=2)
    assert len(done) == 5


def test_the_context_is_known_by_all_its_names() -> None:
    """GPT-2 calls it `n_positions`."""
    engine = tiny_engine("gpt2")
    assert engine.context_length == 512
    with pytest.raises(ContextLengthError, match="512 positions"):
        engine.generate(ids(500), max_new_tokens=13)
    assert len(engine.generate(ids(500), max_new_tokens=12).token_ids) == 12


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e: e.generate([], max_new_tokens=5), "no tokens"),
        (lambda e: e.generate(PROMPT, max_new_tokens=0), "max_new_tokens=0"),
        (lambda e: e.generate(PROMPT, max_new_tokens=-3), "max_new_tokens=-3"),
        (lambda e: e.generate([5, 384], max_new_tokens=5), "token id 384"),
        (lambda e: e.decode_branches([], [[1]], max_new_tokens=5), "no tokens"),
        (lambda e: e.decode_branches(PROMPT, [], max_new_tokens=5), "every branch"),
        (lambda e: e.decode_branches(PROMPT, [[1], []], max_new_tokens=5), "every branch"),
        (lambda e: e.decode_branches(PROMPT, [[-1]], max_new_tokens=5), "token id -1"),
        (lambda e: e.decode_branches(PROMPT, [[1]], max_new_tokens=0), "max_new_tokens=0"),
        (
            lambda e: e.decode_branches(PROMPT, [[1]], max_new_tokens=5, max_parallel=0),
            "max_parallel=0",
        ),
    ],
)
def test_requests_that_make_no_sense(
    engine: Engine, call: Callable[[Engine], Any], said: str
) -> None:
    """They are refused before any work, in words that name what was given."""
    count = engine.forward.count
    with pytest.raises(InvalidRequestError, match=said):
        call(engine)
    assert engine.forward.count == count


def test_waiting_for_slots_keeps_the_order() -> None:
    """Who needs many slots is not overtaken by those who need few, and all are served."""
    engine = tiny_engine(max_slots=100)
    order: list[str] = []

    def named(name: str, tokens: int) -> Callable[[Request[Any]], Coroutine[Any, Any, Completion]]:
        async def steps(request: Request[Any]) -> Completion:
            order.append(name)
            return await generating(engine, PROMPT, tokens)(request)

        return steps

    with stepping(engine) as until:
        first = submit(engine, named("first", 40), reserve=60)
        second = submit(engine, named("second", 40), reserve=60)
        third = submit(engine, named("third", 5), reserve=25)
        until(lambda: third.done)
        assert first.done
    last = third.wait()
    assert order == ["first", "second", "third"]
    assert last.token_ids == tiny_engine().generate(PROMPT, max_new_tokens=5).token_ids
    assert len(second.wait().token_ids) == 40
    assert engine.slots_in_use == 0


def test_a_long_prompt_is_cut_small_while_others_decode() -> None:
    """Alone a prompt goes in chunks of `max_rows`; beside decoding ones in smaller ones."""
    engine = tiny_engine(prefix_cache_tokens=0, settings={"max_position_embeddings": 4096})
    rows: list[int] = []
    run = engine.forward.run

    def counted(feeds: Any, *args: Any) -> Any:
        rows.append(max(len(tokens) for _, tokens in feeds))
        return run(feeds, *args)

    engine.forward.run = counted  # type: ignore[method-assign]
    long = ids(1500, seed=8)
    expected = engine.generate(long, max_new_tokens=2, drafts=False).token_ids
    assert rows[:2] == [1024, 475]  # the last token of a prompt is never shared
    with stepping(engine) as until:
        first = submit(engine, generating(engine, PROMPT, 60), 100)
        until(lambda: first.passes > 3)
        rows.clear()
        second = submit(engine, generating(engine, long, 2), 1600)
        until(lambda: second.done)
    assert second.wait().token_ids == expected
    assert [count for count in rows if count > 1] == [256] * 5 + [220]
    assert first.passes >= 10, "it went on meanwhile"
    first.cancel()


def test_callers_that_wait_take_turns() -> None:
    """Who submits many at once is not served before all others who come a little later."""
    engine = tiny_engine(max_slots=64)
    order: list[str] = []

    def named(name: str) -> Callable[[Request[Any]], Coroutine[Any, Any, Completion]]:
        async def steps(request: Request[Any]) -> Completion:
            order.append(name)
            return await generating(engine, PROMPT, 3)(request)

        return steps

    def ask(name: str, caller: object | None) -> Request[Any]:
        return engine.scheduler.submit(named(name), reserve=60, caller=caller)

    many, few = object(), object()
    with engine.scheduler.paused():
        requests = [ask(f"many {index}", many) for index in range(5)]
        requests += [ask("alone", None), ask("few 0", few), ask("few 1", few)]
    for request in requests:
        request.wait()
    assert order == [
        "many 0", "alone", "few 0", "many 1", "few 1", "many 2", "many 3", "many 4"
    ]  # fmt: skip
    assert engine.slots_in_use == 0


def test_waiters_that_are_cancelled_leave_the_queue() -> None:
    """A request that waits for slots can be cancelled, and those behind it move up."""
    engine = tiny_engine(max_slots=64)
    with stepping(engine) as until:
        running = submit(engine, generating(engine, PROMPT, 30), reserve=60)
        waiting = submit(engine, generating(engine, PROMPT, 30), reserve=60)
        behind = submit(engine, generating(engine, PROMPT[:2], 1), reserve=4)
        until(lambda: running.passes > 2)
        assert behind.passes == 0
        waiting.cancel()
        until(lambda: behind.done)
        assert not running.done
    assert len(behind.wait().token_ids) == 1
    assert len(running.wait().token_ids) == 30


def test_guesses_in_company_change_no_token() -> None:
    """Many drafts or few, measured or set: the same tokens."""
    asked = [ids(12, seed=index % 3) * 3 for index in range(6)]
    expected = [tiny_engine().generate(prompt, max_new_tokens=20).token_ids for prompt in asked]
    for pace in (None, Pace(1e-9)):
        engine = tiny_engine(draft_rows=4)
        engine.scheduler.budget.pace = pace
        with engine.scheduler.paused():
            requests = [submit(engine, generating(engine, prompt, 20), 80) for prompt in asked]
        assert [each.wait().token_ids for each in requests] == expected
        assert engine.slots_in_use == 0
