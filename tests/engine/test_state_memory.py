"""What states take is counted before it is taken, as KV-cache slots are."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from langchain_pos import ParallelReasoningLLM
from langchain_pos.engine import Engine, sizing
from langchain_pos.engine import engine as engine_module
from langchain_pos.engine.cache.states import StateBatch
from langchain_pos.engine.forest.states import StatePlan
from langchain_pos.errors import InvalidRequestError, OutOfSlotsError
from tests.support.scripted import BARE, SMALL
from tests.support.tiny import ids, said, tiny_engine

LONG = {"max_position_embeddings": 8192}
OPENINGS = [ids(length, seed=length) for length in (3, 1, 5, 2, 4, 1, 2, 3, 3)]
STEPS = [f"step {number}" for number in range(6)]


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5", "jamba"])
def test_states_never_take_more_than_is_counted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In any pass of long prompts, branches, and guesses some of which are wrong."""
    born: weakref.WeakSet[StateBatch] = weakref.WeakSet()
    shares, settle, make = [], StatePlan.settle, StateBatch.__init__

    def made(batch: StateBatch, *args: Any, **kwargs: Any) -> None:
        make(batch, *args, **kwargs)
        born.add(batch)

    def measured(plan: StatePlan) -> None:
        counted = tested.forward.forest.pool.for_states * tested.forward.cache.slot_bytes
        held = sum(states.nbytes for batch in list(born) for states in batch.tensors())
        shares.append(held / counted)
        settle(plan)

    tested = tiny_engine(name, settings=LONG, prefix_cache_tokens=0)
    monkeypatch.setattr(StateBatch, "__init__", made)
    monkeypatch.setattr(StatePlan, "settle", measured)
    word = ids(6, seed=1)  # comes again and again, so that there are guesses
    prompt = [*ids(1100, seed=2), *word * 6]
    tested.decode_branches(prompt, [[*word[:3]], *OPENINGS], max_new_tokens=24)
    for length in (40, 7):
        tested.generate(word * length, max_new_tokens=60)
    assert len(shares) > 40
    assert 0.3 < max(shares) <= 1
    assert tested.forward.forest.pool.for_states == 0


def test_more_branches_than_fit_are_refused_before_any_pass() -> None:
    """With the numbers; fewer at a time are served, and so are as many in more slots."""
    tested = tiny_engine("qwen3_5", max_slots=1000)
    with pytest.raises(
        OutOfSlotsError, match=r"99 KV-cache slots .* and 1152 for the states of 10 segments"
    ):
        tested.decode_branches(ids(9), OPENINGS, max_new_tokens=5)
    assert tested.forward.count == 0
    found = tested.decode_branches(ids(9), OPENINGS, max_new_tokens=5, max_parallel=4)
    roomy = tiny_engine("qwen3_5", max_slots=2000)
    assert said(found) == said(roomy.decode_branches(ids(9), OPENINGS, max_new_tokens=5))


def test_an_engine_that_holds_no_state_at_all_is_refused() -> None:
    """When it is made, not when the first question comes."""
    with pytest.raises(OutOfSlotsError, match=r"max_slots=90: the states of one segment .* 96"):
        tiny_engine("qwen3_5", max_slots=90)


def test_the_default_number_of_slots_holds_the_states_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the memory is for keys, values and states together."""
    monkeypatch.setattr(sizing, "available_memory", lambda device: 1 << 20)
    tested = tiny_engine("qwen3_5")
    pool, size = tested.forward.forest.pool, tested.forward.cache.slot_bytes
    tested.decode_branches(ids(9), OPENINGS, max_new_tokens=5)
    assert pool.total == (1 << 19) // tested.forward.cache.slot_bytes
    most = next(n for n in range(100) if pool.room(n) < 100) - 1
    assert (100 + pool.states(100, most)) * size <= 1 << 19
    with pytest.raises(OutOfSlotsError, match="raise max_slots"):
        tested.decode_branches(ids(9), OPENINGS * 10, max_new_tokens=9)


def asking(name: str = "qwen3_5", max_slots: int = 1 << 20, **fields: Any) -> ParallelReasoningLLM:
    """A runnable over a tiny hybrid model."""
    tested: Engine = tiny_engine(name, max_slots=max_slots, eos=True)
    return ParallelReasoningLLM.from_engine(tested, **{"prompts": BARE, **SMALL, **fields})


def test_a_question_writes_fewer_branches_at_once_where_states_do_not_fit() -> None:
    """The same texts in more passes, and never more slots than there are."""
    ask = {"question": "Who?", "steps": STEPS}
    many, few = asking(), asking(max_slots=1000)
    one, other = many.invoke(ask), few.invoke(ask)
    assert [b.text for b in one.branches] == [b.text for b in other.branches]
    assert one.peak_slots > 6 * 96  # states of six branches
    assert other.peak_slots <= 1000
    assert other.forward_passes.expand > one.forward_passes.expand
    assert few.engine.forward.forest.pool.for_states == 0


def test_a_question_that_does_not_fit_with_its_states_is_refused_before_any_pass() -> None:
    """The message has what is left for text, and beside what."""
    llm = asking(max_slots=450)
    with pytest.raises(OutOfSlotsError, match="KV-cache slots beside the states of 2 segments"):
        llm.invoke("long " * 40)
    assert llm.engine.forward.count == 0


def test_a_join_without_a_second_prefill_is_refused_before_any_pass() -> None:
    """A state that has read all branches exists nowhere."""
    llm = asking(join="reuse")
    for ask in ("Who?", {"question": "Who?", "steps": STEPS}):
        with pytest.raises(InvalidRequestError, match='is join="reprefill"'):
            llm.invoke(ask)
    assert llm.engine.forward.count == 0
    assert llm.invoke("Who?", join="reprefill").conclusion


def test_requests_wait_for_the_states_of_others() -> None:
    """A request that would only fit without states begins when there is room for them."""
    tested = tiny_engine("qwen3_5", max_slots=900)
    plain = [tested.generate(ids(9, n), max_new_tokens=20, drafts=False) for n in range(8)]
    with tested.scheduler.paused():
        requests = []
        run = tested.run
        tested.run = lambda make, **kw: requests.append(tested.scheduler.submit(make, **kw))  # type: ignore[method-assign, assignment, misc, return-value]
        for n in range(8):
            tested.generate(ids(9, n), max_new_tokens=20, drafts=False)
        tested.run = run  # type: ignore[method-assign]
    passes = tested.forward.count
    assert [said(request.wait()) for request in requests] == [said(each) for each in plain]
    assert all(request.preemptions == 0 for request in requests)
    # A request takes 29 slots and 96 for states: seven run together, and the eighth waits.
    assert 40 <= tested.forward.count - passes < 60


def test_requests_whose_states_do_not_fit_together_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody knew how many branches there would be; what they write is what each writes alone."""
    monkeypatch.setattr(engine_module, "ROOM", 4)
    prompts = [ids(9 + n, seed=40 + n) for n in range(4)]
    roomy = tiny_engine("qwen3_5")
    expected = [said(roomy.decode_branches(p, OPENINGS[:7], max_new_tokens=8)) for p in prompts]
    tested, requests = tiny_engine("qwen3_5", max_slots=1400), []

    def queue(make: Any, *, segments: int, **settings: Any) -> Any:
        assert segments == 8
        requests.append(tested.scheduler.submit(make, **settings))

    run, tested.run = tested.run, queue  # type: ignore[method-assign]
    with tested.scheduler.paused():
        for prompt in prompts:
            tested.decode_branches(prompt, OPENINGS[:7], max_new_tokens=8)
    tested.run = run  # type: ignore[method-assign]
    assert [said(request.wait()) for request in requests] == expected
    assert requests[0].preemptions == 0
    assert sum(request.preemptions for request in requests) > 0
    assert tested.forward.forest.pool.free == 1400
