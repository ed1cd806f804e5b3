"""States of the layers that carry one from token to token, through transformers' own modules.

A *mixer* is the module of such a layer: it asks the cache for a convolution window and a recurrent
state, and gives it new ones. transformers calls it with the pass's rows as one text. In its place
stands a `Mixer`, which lays the rows out as a batch of texts, one row of the batch for each piece
of a segment (`forest/states.py`), and calls the module's own code with a cache that holds the
states of this batch.

    rows of the pass    a b b c c c d         batches   [[a], [d]]  [[b, b]]  [[c, c, c]]
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import Cache, LinearAttentionLayer

from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.forest.states import Piece, StatePlan

Forward = Callable[[torch.Tensor, Cache], torch.Tensor]
"""A mixer: hidden states `[B, n, H]` and a cache, which it changes, to `[B, n, H']`."""


@dataclass(frozen=True)
class StateLayers:
    """The layers of a model that keep a state.

    Attributes:
        numbers: how many states each of them has, by its index; empty where none keeps any.
        nbytes: bytes of all layers' states for one text.
        cache: what the model calls the cache.
        use_cache: how it is called: some refuse a cache that is not of a class of their own, but
            for False, and use it all the same.
        attention: whether any layer has some.
    """

    numbers: dict[int, int]
    nbytes: int
    cache: str = "past_key_values"
    use_cache: bool = True
    attention: bool = True

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.numbers)


@dataclass(eq=False)
class StateBatch:
    """States of several texts, for all layers.

    Attributes:
        size: texts.
        layers: by the layer's index. The first dimension of all tensors is the text.
    """

    size: int
    layers: dict[int, LinearAttentionLayer] = field(default_factory=dict)

    def tensors(self) -> list[torch.Tensor]:
        """Everything that it holds."""
        return [
            states
            for layer in self.layers.values()
            for kind in (layer.conv_states, layer.recurrent_states)
            for states in kind.values()
            if states is not None
        ]


@dataclass(eq=False)
class TextState:
    """The state of one text in a batch.

    Attributes:
        batch: where it lies.
        row: which of its texts.
    """

    batch: StateBatch
    row: int

    def move_out(self) -> None:
        """Into a batch of its own: it is kept, and holds the others' memory no longer."""
        if self.batch.size > 1:
            batch = StateBatch(1)
            for index in self.batch.layers:
                batch.layers[index] = _gathered([(self.batch, [self.row])], index)
            self.batch, self.row = batch, 0

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(states[:1].nbytes for states in self.batch.tensors())

    def is_finite(self) -> bool:
        """Whether every number is one. Waits for the device."""
        return all(bool(s[self.row].isfinite().all()) for s in self.batch.tensors())

    @torch.inference_mode()
    def overwrite(self, value: float) -> None:
        """Set it to a number: how tests and the probe look for leaks."""
        for states in self.batch.tensors():
            states[self.row].fill_(value)


def _gathered(sources: Sequence[tuple[StateBatch, list[int]]], index: int) -> LinearAttentionLayer:
    """Copies of texts' states in one layer, as one batch.

    The mixers write into what they are given, so it is never the state itself.
    """
    first = sources[0][0].layers[index]
    layer = LinearAttentionLayer(number_of_states=first.number_of_states)
    layer.device, layer.dtype = first.device, first.dtype
    for number in range(first.number_of_states):
        for kind in ("conv_states", "recurrent_states"):
            if getattr(first, kind)[number] is None:
                continue
            found = []
            for batch, rows in sources:
                states = getattr(batch.layers[index], kind)[number]
                found.append(states[torch.tensor(rows, device=states.device)])
            getattr(layer, kind)[number] = found[0] if len(found) == 1 else torch.cat(found)
            getattr(layer, f"is_{kind}_initialized")[number] = True
        layer.conv_kernel_size[number] = first.conv_kernel_size[number]
        layer.has_previous_state[number] = first.has_previous_state[number]
    return layer


@dataclass
class _Group:
    """Pieces of equal length: a batch for the mixers.

    Attributes:
        rows: of the pass, int64 `[B * n]`.
        size: B.
        sources: where their states come from, in the order of the pieces; none at a text's begin.
        batch: what becomes of them.
    """

    rows: torch.Tensor
    size: int
    sources: list[tuple[StateBatch, list[int]]]
    batch: StateBatch


class PassStates:
    """The states of one pass, and where its rows go.

    Args:
        plan: the pieces; every one of them is given its state.
        rows: the row of each position that is fed of a segment.
        layers: that keep a state.
        device: of the rows.

    Attributes:
        made: the states after the pass, as long as anybody holds them.
    """

    def __init__(
        self,
        plan: StatePlan,
        rows: dict[Segment, dict[int, int]],
        layers: StateLayers,
        device: torch.device,
    ) -> None:
        self._layers = layers
        self._groups: list[_Group] = []
        self.made: weakref.WeakSet[TextState] = weakref.WeakSet()
        for pieces in plan.groups():
            batch = StateBatch(len(pieces))
            for row, piece in enumerate(pieces):
                piece.after = state = TextState(batch, row)
                self.made.add(state)
            where = [rows[p.segment][at] for p in pieces for at in range(p.begin, p.end)]
            self._groups.append(
                _Group(torch.tensor(where).to(device), len(pieces), _sources(pieces), batch)
            )

    def mix(
        self,
        index: int,
        forward: Forward,
        hidden: torch.Tensor,
        *,
        stepwise: bool = False,
    ) -> torch.Tensor:
        """One layer's mixer over all pieces.

        Args:
            index: of the layer.
            forward: the mixer.
            hidden: of the pass, `[1, Q, H]`.
            stepwise: it can go on from a state by one token only.

        Returns:
            `[1, Q, H']`.
        """
        mixed: torch.Tensor | None = None
        for group in self._groups:
            rows = group.rows.to(hidden.device)
            if group.sources:
                layer = _gathered(group.sources, index)
            else:
                layer = LinearAttentionLayer(number_of_states=self._layers.numbers[index])
            cache = StateCache(layer, index)
            batch = hidden[0].index_select(0, rows).unflatten(0, (group.size, -1))
            if stepwise and group.sources:
                steps = [forward(token, cache) for token in batch.split(1, dim=1)]
                output = torch.cat(steps, dim=1).flatten(0, 1)
            else:
                output = forward(batch, cache).flatten(0, 1)
            group.batch.layers[index] = layer
            if mixed is None:
                mixed = output.new_empty(1, hidden.shape[1], output.shape[-1])
            mixed[0].index_copy_(0, rows, output)
        if mixed is None:
            raise RuntimeError("a pass has rows")
        return mixed


class ByOtherNames:
    """A recurrent state by the names that some models have for it."""

    def get_linear_cache(self: Any, layer_idx: int) -> torch.Tensor | None:
        """See `Cache.get_recurrent_state`."""
        return self.get_recurrent_state(layer_idx)  # type: ignore[no-any-return]

    def set_linear_cache(self: Any, layer_idx: int, linear_cache: torch.Tensor) -> None:
        """See `Cache.update_recurrent_state`."""
        self.update_recurrent_state(linear_cache, layer_idx)
        self.layers[layer_idx].has_previous_state[0] = True  # else a convolution says so


class StateCache(ByOtherNames, Cache):
    """A cache for one layer's mixer."""

    def __init__(self, layer: LinearAttentionLayer, index: int) -> None:
        super().__init__(layers=[*[LinearAttentionLayer()] * index, layer])


def _sources(pieces: Sequence[Piece]) -> list[tuple[StateBatch, list[int]]]:
    """Batches and rows that the pieces go on from; neighbours of one batch together."""
    found: list[tuple[StateBatch, list[int]]] = []
    for piece in pieces:
        state = piece.before.after if isinstance(piece.before, Piece) else piece.before
        if state is None:
            continue
        if not isinstance(state, TextState):
            raise TypeError(f"a {type(state).__name__} is not a state of this cache")
        if not found or found[-1][0] is not state.batch:
            found.append((state.batch, []))
        found[-1][1].append(state.row)
    return found
