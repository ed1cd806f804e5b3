"""What goes wrong inside a pass: interrupts, memory, broken models. The engine goes on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from langchain_pos.engine import Engine
from langchain_pos.engine.cache.key_values import SlotLayer
from langchain_pos.engine.completion import Completion
from langchain_pos.errors import OutOfSlotsError, RequestCancelled
from tests.support.engine_requests import generating
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


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("call", [1, 2, 6])
def test_an_interrupt_leaves_the_engine_clean(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: int, call: int
) -> None:
    """Control-C in a pass ends the request of him who waits; another one's goes on unharmed."""
    alone, other = (engine.generate(p, max_new_tokens=12) for p in (PROMPT, LONG))
    interrupted = submit(engine, generating(engine, PROMPT, 12))
    bystander = submit(engine, generating(engine, LONG, 12), reserve=80)
    fail_at(monkeypatch, *places(engine)[place], call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.scheduler.run(interrupted)
    assert interrupted.done
    assert isinstance(interrupted.error, RequestCancelled)
    assert not bystander.done
    assert engine.slots_in_use == (0 if call == 1 else len(LONG) + call - 2)
    assert said(engine.scheduler.run(bystander)) == said(other)
    assert engine.slots_in_use == 0
    assert said(engine.generate(PROMPT, max_new_tokens=12)) == said(alone)


def test_an_interrupt_inside_another_request_ends_that_one_too(engine: Engine) -> None:
    """An interrupted generator cannot go on; its own caller is told, and does not wait forever."""

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    mine = submit(engine, generating(engine, PROMPT, 12))
    hit = submit(engine, generating(engine, LONG, 12), reserve=80)
    hit.emit = interrupt  # type: ignore[method-assign]
    hit._steps = generating(engine, LONG, 12)(hit)
    with pytest.raises(KeyboardInterrupt):
        engine.scheduler.run(mine)
    assert engine.slots_in_use == 0
    with pytest.raises(RequestCancelled, match="interrupted"):
        engine.scheduler.run(hit)


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
    small = submit(engine, generating(engine, PROMPT, 12))
    large = submit(engine, generating(engine, LONG, 12), reserve=80)
    fail_at(monkeypatch, *places(engine)[place], call, error)
    assert said(engine.scheduler.run(small)) == said(alone)
    with pytest.raises(OutOfSlotsError, match=r"out of memory.*smaller budgets"):
        engine.scheduler.run(large)
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
    small = submit(engine, generating(engine, PROMPT, 12))
    large = submit(engine, generating(engine, ids(1200), 12), reserve=1300)
    assert said(engine.scheduler.run(small)) == said(alone)
    with pytest.raises(OutOfSlotsError):
        engine.scheduler.run(large)
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
    requests = [submit(engine, generating(engine, prompt, 9)) for prompt in (PROMPT, PROMPT[4:])]
    fail_at(monkeypatch, *places(engine)[1], 4, ZeroDivisionError("model"))
    for request in requests:
        with pytest.raises(ZeroDivisionError):
            engine.scheduler.run(request)
    assert engine.slots_in_use == 0
    assert said(engine.generate(PROMPT, max_new_tokens=12)) == said(alone)


def test_out_of_memory_is_thrown_into_the_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may catch the error and go on with less."""

    def steps(request: Any) -> Any:
        try:
            yield from generating(engine, LONG, 12)(request)
        except OutOfSlotsError:
            for segment in list(request.ledger.segments):
                engine.release(segment)
        return (yield from generating(engine, PROMPT, 12)(request))

    fail_at(monkeypatch, *places(engine)[0], 3, NO_MEMORY[0])
    done: Completion = engine.scheduler.run(submit(engine, steps, reserve=80))
    assert done.token_ids == engine.generate(PROMPT, max_new_tokens=12).token_ids


def test_errors_while_a_request_is_closed_are_its_own(engine: Engine) -> None:
    """A request that fails while it is cancelled leaves nothing behind."""

    def stubborn(request: Any) -> Any:
        try:
            yield from generating(engine, PROMPT, 12)(request)
        finally:
            raise OSError("while closing")

    request = submit(engine, stubborn)
    engine.scheduler.wait(lambda: request.passes > 1)
    engine.scheduler.cancel(request)
    assert request.done
    assert isinstance(request.error, RequestCancelled)
    assert engine.slots_in_use == 0


def test_a_callers_callback_that_raises_ends_its_own_request(engine: Engine) -> None:
    """What a caller's code raises comes back to the caller."""

    def broken(text: str) -> None:
        raise LookupError(text)

    steps: Callable[..., Any] = generating(engine, PROMPT, 12)
    request = submit(engine, steps)
    request.emit = broken  # type: ignore[method-assign]
    request._steps = steps(request)
    other = submit(engine, generating(engine, LONG, 12), reserve=80)
    with pytest.raises(LookupError):
        engine.scheduler.run(request)
    assert len(engine.scheduler.run(other).token_ids) == 12
