"""What goes wrong inside a pass: interrupts, memory, broken models. The engine goes on."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from langchain_pos.engine import Engine
from langchain_pos.engine.cache.key_values import SlotLayer
from langchain_pos.engine.completion import Completion
from langchain_pos.engine.decoding.sequence import Feed, feed
from langchain_pos.errors import OutOfSlotsError, RequestCancelled
from tests.support.scheduling import generating, stepping
from tests.support.tiny import ids, said, submit, tiny_engine

PROMPT, LONG = ids(20, seed=9), ids(60, seed=4)
NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine whose sequences use their whole budget."""
    return tiny_engine()


def fail_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: BaseException
) -> None:
    """The given call of a function raises instead, once; inside the model: after its first half."""
    original, calls = getattr(owner, name), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def places(engine: Engine) -> list[tuple[Any, str]]:
    """Where a pass can break: before any layer, between layers, and while sampling."""
    layers = engine.model.model.layers
    return [(engine.model, "forward"), (layers[1], "forward"), (engine.scheduler, "sampler")]


class Unforeseen(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("call", [1, 2, 6])
def test_what_nobody_foresaw_in_a_pass_ends_all_requests_and_the_next_is_served(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: int, call: int
) -> None:
    """The thread that drives goes on; whoever waits gets the error, and no slot is lost."""
    alone = engine.generate(PROMPT, max_new_tokens=12)
    fail_at(monkeypatch, *places(engine)[place], call, Unforeseen("once"))
    with engine.scheduler.paused():
        requests = [submit(engine, generating(engine, p, 12), 80) for p in (PROMPT, LONG)]
    for request in requests:
        with pytest.raises(Unforeseen, match="once"):
            request.wait(timeout=60)
    assert engine.slots_in_use == 0
    assert said(engine.generate(PROMPT, max_new_tokens=12)) == said(alone)


@pytest.mark.parametrize("waiting", [False, True])
def test_an_error_of_the_scheduler_ends_all_requests_and_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch, *, waiting: bool
) -> None:
    """Also those that wait for slots."""
    engine = tiny_engine(max_slots=100)
    alone = engine.generate(PROMPT, max_new_tokens=12)
    fail_at(monkeypatch, engine.scheduler.budget, "fill", 3, ZeroDivisionError("mine"))
    with engine.scheduler.paused():
        reserve = 80 if waiting else 40
        requests = [submit(engine, generating(engine, PROMPT, 12), reserve) for _ in range(2)]
    for request in requests:
        with pytest.raises(ZeroDivisionError):
            request.wait(timeout=60)
    assert [request.passes for request in requests] == ([2, 0] if waiting else [2, 2])
    assert engine.slots_in_use == 0
    assert said(engine.generate(PROMPT, max_new_tokens=12)) == said(alone)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_error_while_segments_are_released_is_told_and_leaves_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The owner does not wait for ever, its other segments go, and so do their slots."""

    async def steps(request: Any) -> None:
        root = engine.scheduler.root(request)
        children = [engine.fork(root, at=5) for _ in range(2)]
        await feed([Feed(root, PROMPT[:5]), *(Feed(child, PROMPT[5:9]) for child in children)])

    other = tiny_engine().generate(LONG, max_new_tokens=12)
    fail_at(monkeypatch, engine.forward.forest, "release", call, ZeroDivisionError("release"))
    with engine.scheduler.paused():
        request = submit(engine, steps)
        bystander = submit(engine, generating(engine, LONG, 12), 80)
    with pytest.raises(ZeroDivisionError, match="release"):
        request.wait(timeout=60)
    assert said(bystander.wait(timeout=60)) == said(other)
    assert engine.slots_in_use == 0


def test_what_nobody_foresaw_in_a_request_is_its_own(engine: Engine) -> None:
    """Its caller gets it; the others do not notice."""
    other = engine.generate(LONG, max_new_tokens=12)

    def unforeseen(text: str) -> None:
        raise Unforeseen

    with engine.scheduler.paused():
        hit = submit(engine, generating(engine, PROMPT, 12))
        hit.emit = unforeseen  # type: ignore[method-assign]
        bystander = submit(engine, generating(engine, LONG, 12), 80)
    with pytest.raises(Unforeseen):
        hit.wait(timeout=60)
    assert said(bystander.wait()) == said(other)
    assert engine.slots_in_use == 0


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("call", [1, 2, 5])
def test_without_memory_the_largest_request_fails(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
    call: int,
    error: Exception,
) -> None:
    """Out of memory ends the request that holds most; the others do not lose a token."""
    alone = engine.generate(PROMPT, max_new_tokens=12)
    fail_at(monkeypatch, *places(engine)[place], call, error)
    with engine.scheduler.paused():
        small = submit(engine, generating(engine, PROMPT, 12))
        large = submit(engine, generating(engine, LONG, 12), reserve=80)
    assert said(small.wait()) == said(alone)
    with pytest.raises(OutOfSlotsError, match=r"out of memory.*smaller budgets"):
        large.wait()
    assert engine.slots_in_use == 0
    monkeypatch.undo()
    assert said(engine.generate(PROMPT, max_new_tokens=12)) == said(alone)


def test_an_error_for_want_of_memory_holds_no_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller may keep the error; the tensors of the pass that failed are gone."""
    layer, held = engine.model.model.layers[1], []

    def failing(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        held.append(weakref.ref(hidden_states))
        raise NO_MEMORY[0]

    monkeypatch.setattr(layer, "forward", failing)
    with pytest.raises(OutOfSlotsError) as kept:
        engine.generate(PROMPT, max_new_tokens=12)
    gc.collect()
    assert kept.value
    assert [reference() for reference in held] == [None]


def test_without_memory_for_more_slots_the_engine_keeps_those_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the cache cannot grow, what fits into it is still served, then and later."""
    engine = tiny_engine(settings={"max_position_embeddings": 4096})
    alone = engine.generate(PROMPT, max_new_tokens=12)
    allocate = SlotLayer._allocate
    asked: list[int] = []

    def scarce(layer: SlotLayer, states: torch.Tensor) -> torch.Tensor:
        asked.append(layer._pass.capacity)
        if layer._pass.capacity > 1024:
            raise torch.OutOfMemoryError("no more")
        return allocate(layer, states)

    monkeypatch.setattr(SlotLayer, "_allocate", scarce)
    with engine.scheduler.paused():
        small = submit(engine, generating(engine, PROMPT, 12))
        large = submit(engine, generating(engine, ids(1200), 12), reserve=1300)
    assert said(small.wait()) == said(alone)
    with pytest.raises(OutOfSlotsError):
        large.wait()
    for _ in range(2):
        assert said(engine.generate(PROMPT, max_new_tokens=12)) == said(alone)
    assert max(asked) == 2048
    monkeypatch.undo()
    assert len(engine.generate(ids(1200), max_new_tokens=2).token_ids) == 2


def test_a_broken_model_fails_those_in_the_pass_and_no_later_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the model's own code reaches the callers whose tokens were in the pass."""
    alone = engine.generate(PROMPT, max_new_tokens=12)
    fail_at(monkeypatch, *places(engine)[1], 4, ZeroDivisionError("model"))
    with engine.scheduler.paused():
        prompts = (PROMPT, PROMPT[4:])
        requests = [submit(engine, generating(engine, prompt, 9)) for prompt in prompts]
    for request in requests:
        with pytest.raises(ZeroDivisionError):
            request.wait()
    assert engine.slots_in_use == 0
    assert said(engine.generate(PROMPT, max_new_tokens=12)) == said(alone)


def test_out_of_memory_is_thrown_into_the_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may catch the error and go on with less."""

    async def steps(request: Any) -> Any:
        try:
            await generating(engine, LONG, 12)(request)
        except OutOfSlotsError:
            for segment in list(request.ledger.segments):
                engine.release(segment)
        return await generating(engine, PROMPT, 12)(request)

    fail_at(monkeypatch, *places(engine)[0], 3, NO_MEMORY[0])
    done: Completion = submit(engine, steps, reserve=80).wait()
    assert done.token_ids == engine.generate(PROMPT, max_new_tokens=12).token_ids


def test_errors_while_a_request_is_closed_are_its_own(engine: Engine) -> None:
    """A request that fails while it is cancelled leaves nothing behind."""

    async def stubborn(request: Any) -> Any:
        try:
            await generating(engine, PROMPT, 12)(request)
        finally:
            raise OSError("while closing")

    with stepping(engine) as until:
        request = submit(engine, stubborn)
        until(lambda: request.passes > 1)
        request.cancel()
        until(lambda: request.done)
    assert isinstance(request.error, RequestCancelled)
    assert engine.slots_in_use == 0


def test_a_callers_callback_that_raises_ends_its_own_request(engine: Engine) -> None:
    """What a caller's code raises comes back to the caller."""

    def broken(text: str) -> None:
        raise LookupError(text)

    with engine.scheduler.paused():
        request = submit(engine, generating(engine, PROMPT, 12))
        request.emit = broken  # type: ignore[method-assign]
    other = submit(engine, generating(engine, LONG, 12), reserve=80)
    with pytest.raises(LookupError):
        request.wait()
    assert len(other.wait().token_ids) == 12
