"""The probe notices a state that is not a segment's own, wherever that would come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from langchain_pos.engine import Engine
from langchain_pos.engine.cache import states as states_module
from langchain_pos.engine.cache.states import PassStates, StateBatch
from langchain_pos.engine.forest.segments import Segment, SegmentForest
from langchain_pos.engine.forest.state import State
from langchain_pos.engine.forest.states import Piece
from langchain_pos.errors import UnsupportedModelError
from tests.support.tiny import tiny_engine
from tests.support.tokenizers import byte_level

Patch = pytest.MonkeyPatch
Sources = list[tuple[StateBatch, list[int]]]
_sources = states_module._sources


def siblings(patch: Patch) -> None:
    """Branches of a batch go on from one another's states."""
    patch.setattr(states_module, "_sources", lambda pieces: _sources(pieces)[::-1])


def chunks(patch: Patch) -> None:
    """A prompt's later chunk begins as if nothing had come before it."""

    def sources(pieces: Sequence[Piece]) -> Sources:
        return _sources(pieces) if pieces[0].end - pieces[0].begin == 1 else []

    patch.setattr(states_module, "_sources", sources)


def drafts(patch: Patch) -> None:
    """The states after rejected guesses stay."""

    def forget(segment: Segment, end: int) -> None:
        del segment.tokens[end - segment.start :]

    patch.setattr(Segment, "forget", forget)


def numbers(patch: Patch) -> None:
    """Whoever gets the number of a segment that has left gets its states too."""
    left: dict[int, dict[int, State]] = {}
    fork: Callable[..., Segment] = SegmentForest.fork
    release = SegmentForest.release

    def released(forest: SegmentForest, segment: Segment) -> None:
        left[segment.id] = segment.states
        release(forest, segment)

    def forked(forest: SegmentForest, *args: object, **kwargs: object) -> Segment:
        child = fork(forest, *args, **kwargs)
        child.states |= left.get(child.id, {})
        return child

    patch.setattr(SegmentForest, "release", released)
    patch.setattr(SegmentForest, "fork", forked)


def writing(patch: Patch) -> None:
    """What goes on from a state writes into it, so that it is another one for the next."""
    mix = PassStates.mix

    def written(passing: PassStates, index: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        mixed = mix(passing, index, *args, **kwargs)
        for group in passing._groups:
            for batch, _ in group.sources:
                for states in StateBatch(1, {index: batch.layers[index]}).tensors():
                    states.add_(1.0)
        return mixed

    patch.setattr(PassStates, "mix", written)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5", "bamba", "mamba"])
@pytest.mark.parametrize("fault", [siblings, chunks, drafts, numbers, writing])
def test_a_model_whose_states_get_mixed_up_is_refused(
    monkeypatch: Patch, fault: Callable[[Patch], None], name: str
) -> None:
    """In company, over a chunk's border, after wrong guesses, after others have left."""
    model = tiny_engine(name).model
    fault(monkeypatch)
    with pytest.raises(UnsupportedModelError, match="does not keep branches apart"):
        Engine(model, byte_level())
