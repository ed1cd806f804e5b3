"""Stop sequences: those that mean nothing are refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from langchain_pos.engine import Engine
from langchain_pos.engine.tokenization.stopping import StoppedText
from langchain_pos.errors import InvalidRequestError
from tests.support.tiny import ids, tiny_engine

WAYS: list[Callable[[Engine, Any], Any]] = [
    lambda engine, stop: engine.generate(ids(5), max_new_tokens=4, stop=stop),
    lambda engine, stop: engine.decode_branches(ids(5), [[7], [8]], max_new_tokens=4, stop=stop),
    lambda engine, stop: StoppedText(stop),
]


@pytest.mark.parametrize("way", WAYS, ids=["generate", "decode_branches", "text"])
@pytest.mark.parametrize(
    ("stop", "said"), [([""], "has an empty text"), (["x", ""], "empty"), ("END", "give a list")]
)
def test_stop_texts_that_mean_nothing_are_refused(
    way: Callable[[Engine, Any], Any], stop: Any, said: str
) -> None:
    """An empty one would end every answer at once; a bare text, at each of its letters."""
    engine = tiny_engine()
    with pytest.raises(InvalidRequestError, match=said):
        way(engine, stop)
    assert engine.forward.count == tiny_engine().forward.count, "nothing was fed"


def test_no_stop_texts_are_none() -> None:
    """An empty list is as good as none."""
    engine = tiny_engine()
    assert len(engine.generate(ids(5), max_new_tokens=4, stop=[]).token_ids) == 4
