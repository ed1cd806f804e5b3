"""When slots run out the youngest request is put back and fed again; nobody's tokens change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from langchain_pos.engine import Engine
from langchain_pos.engine import engine as engine_module
from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.decoding.sequence import Feed, decode, feed
from langchain_pos.engine.forest import slots
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import OutOfSlotsError, RequestCancelled
from tests.support.scheduling import end, generating, stepping
from tests.support.tiny import ids, said, submit, tiny_engine

GREEDY, WARM = SamplingParams(), SamplingParams(temperature=0.8, seed=5)
PROMPTS = [ids(12 + 3 * index, seed=50 + index) for index in range(6)]
DOCUMENT = ids(90, seed=70)
OPENINGS = [ids(length, seed=length) for length in (3, 1, 5, 2, 4, 1, 2)]


def one(index: int, **settings: Any) -> Callable[[Engine], Any]:
    """A completion after a prompt of its own."""
    return lambda engine: engine.generate(PROMPTS[index], max_new_tokens=40, **settings)


def many(index: int, **settings: Any) -> Callable[[Engine], Any]:
    """Branches on a prompt of their own."""
    return lambda engine: engine.decode_branches(
        PROMPTS[index], OPENINGS, max_new_tokens=8, **settings
    )


def sharing(index: int, tokens: int = 100) -> Callable[[Engine], Any]:
    """A completion after a document that others ask about too."""
    prompt = [*DOCUMENT, *PROMPTS[index]]
    return lambda engine: engine.generate(prompt, max_new_tokens=tokens, drafts=False)


def bound(index: int) -> Callable[[Engine], Any]:
    """A completion under a grammar."""
    return one(index, constraint=Constraint("regex", r"([0-9]{3} ){9}[0-9]"))


MIXTURES: dict[str, tuple[int, list[Callable[[Engine], Any]]]] = {
    "plain": (100, [one(index, drafts=False) for index in range(6)]),
    "drafts": (100, [one(index) for index in range(6)]),
    "sampled": (100, [one(index, sampling=WARM) for index in range(6)]),
    "penalised": (100, [one(i, sampling=SamplingParams(repetition_penalty=1.3)) for i in range(6)]),
    "branches": (120, [many(index) for index in range(6)]),
    "branches in turn": (80, [many(index, max_parallel=3) for index in range(6)]),
    "constrained": (90, [bound(index) for index in range(6)]),
    "prefix": (230, [sharing(index) for index in range(6)]),
    "mixed": (240, [one(0), many(1), sharing(2), bound(3), many(4, sampling=WARM), sharing(5)]),
}


def submitted(engine: Engine, calls: list[Callable[[Engine], Any]]) -> list[Request[Any]]:
    """What calls of the engine's front submit, without waiting."""
    requests: list[Request[Any]] = []

    def queue(make: Any, **kwargs: Any) -> Any:
        requests.append(engine.scheduler.submit(make, **kwargs))

    run, engine.run = engine.run, queue  # type: ignore[method-assign]
    for call in calls:
        call(engine)
    engine.run = run  # type: ignore[method-assign]
    return requests


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text", "qwen3_5"])
@pytest.mark.parametrize("max_rows", [1024, 16])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_requests_that_do_not_fit_together_write_what_each_writes_alone(
    monkeypatch: pytest.MonkeyPatch, mixture: str, max_rows: int, name: str
) -> None:
    """Whoever was put back goes on where it was; the oldest never is, and all come to their end."""
    most, calls = MIXTURES[mixture]
    expected = [said(call(tiny_engine(name))) for call in calls]
    monkeypatch.setattr(engine_module, "ROOM", 4)  # so far too little is expected
    monkeypatch.setattr(slots, "states_held", lambda *_: 0)  # of states, nothing at all
    engine = tiny_engine(name, max_slots=most, max_rows=max_rows)
    with engine.scheduler.paused():
        requests = submitted(engine, calls)
    assert sum(request.reserve for request in requests) > most
    assert [said(request.wait()) for request in requests] == expected
    assert requests[0].preemptions == 0
    assert sum(request.preemptions for request in requests) > 0
    assert engine.slots_in_use == engine.forward.forest.extent == 0
    assert not engine.scheduler.prefixes.slots


def test_to_be_put_back_costs_passes_and_is_counted(engine: Engine) -> None:
    """Its own passes grow by those that feed it again; its events come once."""
    alone = engine.generate(PROMPTS[1], max_new_tokens=40, drafts=False)
    small = tiny_engine(max_slots=80)
    with small.scheduler.paused():
        first, second = (
            submit(small, generating(small, PROMPTS[index], 40), 60, expected=20)
            for index in (0, 1)
        )
    assert said(second.wait()) == said(alone)
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert first.passes == 40
    assert second.passes == 41
    assert "".join(second.events) == alone.text


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine with slots enough."""
    return tiny_engine()


def test_a_request_that_waits_to_be_fed_again_can_be_cancelled() -> None:
    """It holds nothing then, and those behind it move up."""
    engine = tiny_engine(max_slots=80)
    alone = engine.generate(PROMPTS[2], max_new_tokens=20)
    with stepping(engine) as until:
        first, second = (
            submit(engine, generating(engine, PROMPTS[index], 40), 60, expected=20)
            for index in (0, 1)
        )
        third = submit(engine, generating(engine, PROMPTS[2], 20), 60, expected=10)
        until(lambda: second.preemptions > 0)
        assert second.ledger.slots == 0
        second.cancel()
        until(lambda: second.done)
        assert isinstance(second.error, RequestCancelled)
        until(lambda: third.done)
        assert said(third.result()) == said(alone)
        until(lambda: first.done)
    assert engine.slots_in_use == 0


def test_a_request_can_be_put_back_while_it_is_fed_again(engine: Engine) -> None:
    """What was half fed is fed from the beginning; nothing of it is lost."""
    expected = said(engine.generate(PROMPTS[1], max_new_tokens=40))
    small = tiny_engine(max_slots=100, max_rows=4)
    with stepping(small) as until:
        first, second = (
            submit(small, generating(small, PROMPTS[index], 40), 60, expected=20)
            for index in (0, 1)
        )
        until(lambda: second.passes > 20)
        for _ in range(3):
            assert small.scheduler._put_back_youngest()
            assert second.ledger.slots == 0
            before = second.passes
            small.scheduler._live.append(second)  # as if there were room again
            small.scheduler._put_back.clear()
            until(lambda: second.passes > before)  # noqa: B023
            assert 0 < second.ledger.slots < len(PROMPTS[1])
        until(lambda: second.done)
        assert first.done is False or first.preemptions == 0
    assert said(second.wait()) == expected
    assert second.preemptions >= 3
    end(first)
    assert small.slots_in_use == 0


def test_joins_and_forks_inside_forks_are_fed_again_as_they_were(engine: Engine) -> None:
    """A child of several segments, and branches of branches, keep what they see."""

    def nested(tested: Engine) -> Callable[[Request[Any]], Any]:
        async def steps(request: Request[Any]) -> list[list[int]]:
            root = tested.scheduler.root(request)
            arms = [tested.fork(root, at=12) for _ in range(2)]
            inner = tested.fork(arms[0], at=15)
            feeds = [
                Feed(root, PROMPTS[0][:12]),
                Feed(arms[0], ids(5, 1)),
                Feed(arms[1], ids(4, 2)),
            ]
            await feed([*feeds, Feed(inner, ids(3, 3))])
            joined = tested.join([*arms, inner], at=18)
            written = []
            for segment in (joined, inner):
                sequence = tested.sequence(
                    segment, ids(2, 4), max_new_tokens=25, sampling=GREEDY, seed=0
                )
                await decode([sequence])
                written.append(sequence.token_ids)
            return written

        return steps

    expected = submit(engine, nested(engine), 200).wait()
    small = tiny_engine(max_slots=90)
    with small.scheduler.paused():
        first = submit(small, generating(small, PROMPTS[0], 60), 80, expected=20)
        second = submit(small, nested(small), 90, expected=20)
    assert second.wait() == expected
    assert (first.preemptions, second.preemptions) == (0, 1)


@pytest.mark.parametrize("lost", ["released", "cut back"])
def test_what_saw_tokens_that_are_gone_is_not_put_back(engine: Engine, lost: str) -> None:
    """Fed again it would not see them, and would go on differently; the next younger one goes."""

    def seeing(tested: Engine) -> Callable[[Request[Any]], Any]:
        async def steps(request: Request[Any]) -> list[int]:
            root = tested.scheduler.root(request)
            child = tested.fork(root, at=12)
            sequence = tested.sequence(child, [5], max_new_tokens=40, sampling=GREEDY, seed=0)
            await feed([Feed(root, PROMPTS[0][:12]), Feed(child, PROMPTS[1])])
            if lost == "released":
                tested.release(root)
            else:
                tested.truncate(root, 5)
                await feed([Feed(root, ids(7, seed=6))])
            await decode([sequence])
            return sequence.token_ids

        return steps

    expected = submit(engine, seeing(engine), 80).wait()
    plain = engine.generate(PROMPTS[2], max_new_tokens=30).token_ids
    small = tiny_engine(max_slots=130)
    with small.scheduler.paused():
        oldest = submit(small, generating(small, PROMPTS[0], 40), 60, expected=20)
        middle = submit(small, generating(small, PROMPTS[2], 30), 60, expected=20)
        youngest = submit(small, seeing(small), 80, expected=20)
    assert youngest.wait() == expected
    assert middle.wait().token_ids == plain
    assert (oldest.preemptions, middle.preemptions, youngest.preemptions) == (0, 1, 0)


def test_alone_a_request_that_runs_out_of_slots_fails() -> None:
    """There is nobody to put back; the error has the numbers."""
    engine = tiny_engine(max_slots=40)
    request = submit(engine, generating(engine, PROMPTS[0], 60), reserve=40)
    with pytest.raises(OutOfSlotsError, match="1 more KV-cache slots are needed, 0 of 40"):
        request.wait()
    assert engine.slots_in_use == 0


def test_by_default_a_request_waits_for_what_it_will_probably_use(engine: Engine) -> None:
    """A budget of the whole context does not keep others out."""
    big = tiny_engine(max_slots=4096, settings={"max_position_embeddings": 8192})
    with stepping(big) as until:
        requests = [submit(big, generating(big, prompt, 5), 4000) for prompt in PROMPTS]
        until(lambda: requests[3].passes > 1)
        assert [request.passes for request in requests] == [2, 2, 2, 2, 0, 0]
        until(lambda: all(request.done for request in requests))
    alone = [engine.generate(prompt, max_new_tokens=5).token_ids for prompt in PROMPTS]
    assert [request.result().token_ids for request in requests] == alone


def test_a_prefix_whose_users_were_put_back_is_emptied_and_fed_again(engine: Engine) -> None:
    """Its slots go to the oldest request too; whoever comes back first feeds it."""
    expected = [said(sharing(index)(engine)) for index in (1, 2)]
    small = tiny_engine(max_slots=230)
    with small.scheduler.paused():
        oldest = submit(small, generating(small, PROMPTS[0], 200), 220, expected=20)
        others = submitted(small, [sharing(index) for index in (1, 2)])
    assert len(oldest.wait().token_ids) == 200
    assert [said(request.wait()) for request in others] == expected
    assert others[0].preemptions > 0
    assert small.slots_in_use == 0


def test_a_shared_prefix_counts_once() -> None:
    """Requests that stand on one document leave room for another one."""
    engine = tiny_engine(max_slots=310)
    with stepping(engine) as until:
        requests = submitted(engine, [sharing(index, tokens=10) for index in range(4)])
        until(lambda: requests[3].passes > 0)
        assert [request.done for request in requests] == [False] * 4
        until(lambda: all(request.done for request in requests))
    assert [request.preemptions for request in requests] == [0] * 4
    assert engine.slots_in_use == 0
