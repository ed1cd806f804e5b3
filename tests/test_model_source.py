"""Which engine answers: loaded once in a process, shared, and let go."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest

from langchain_pos import ChatParallelReasoning, ParallelReasoningLLM


def test_instances_of_one_model_share_its_weights() -> None:
    """The runnable and the chat model, made independently; other settings are another engine."""
    runnable, chat = ParallelReasoningLLM(), ChatParallelReasoning()
    assert runnable.engine is chat.engine is ParallelReasoningLLM().engine
    assert ParallelReasoningLLM(max_slots=999).engine is not runnable.engine


def test_what_nobody_holds_is_freed() -> None:
    """The process-wide cache keeps nothing alive by itself."""
    runnable = ParallelReasoningLLM(max_slots=1234)
    runnable.invoke("Who?", mode="sequential", max_sequential_tokens=2)
    engine = weakref.ref(runnable.engine)
    del runnable
    gc.collect()
    assert engine() is None


def test_close_lets_go_and_the_next_call_loads_again() -> None:
    """Others that share the model keep it."""
    one, other = ParallelReasoningLLM(max_slots=1235), ParallelReasoningLLM(max_slots=1235)
    engine = weakref.ref(one.engine)
    assert other.engine is engine()
    one.close()
    assert other.engine is engine()
    other.close()
    assert engine() is None
    assert one.invoke("Who?", mode="sequential", max_sequential_tokens=2).conclusion is not None


def test_a_given_model_stays() -> None:
    """It is the caller's to let go of."""
    engine = ParallelReasoningLLM().engine
    given = ChatParallelReasoning.from_engine(engine)
    given.close()
    assert given.engine is engine


def test_an_idle_model_is_let_go() -> None:
    """After `keep_alive` seconds without a call."""
    runnable = ParallelReasoningLLM(max_slots=1236, keep_alive=0.05)
    engine = weakref.ref(runnable.engine)
    while engine() is not None:
        time.sleep(0.01)
    assert runnable.engine is not None


@pytest.mark.parametrize("kind", [ParallelReasoningLLM, ChatParallelReasoning])
def test_loading_is_logged(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What, where, in which dtype; under the package's own logger."""
    caplog.set_level("INFO", logger="langchain_pos")
    assert kind(max_slots=2000 + len(kind.__name__)).engine
    said = [each.getMessage() for each in caplog.records if each.name == "langchain_pos"]
    assert sum("on cpu as torch." in message for message in said) == 1
