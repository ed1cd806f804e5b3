"""States of the layers that carry one from token to token, through transformers' own modules.

A *mixer* is the module of such a layer: it asks the cache for a convolution window and a recurrent
state, and gives it new ones. transformers calls it with the pass's rows as one text. In its place
stands a `Mixer`, which lays the rows out as a batch of texts, one row of the batch for each piece
of a segment (`forest/states.py`), and calls the module's own code with a cache that holds the
states of this batch.

    rows of the pass    a b b c c c d         batches   [[a], [d]]  [[b, b]]  [[c, c, c]]

Which layers keep states follows from the cache layers that the configuration asks for, which
modules are their mixers from who asks the cache for a state: no model is known by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from langchain_pos.engine.forest.segments import Segment
from langchain_pos.engine.forest.states import Piece, StatePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CACHES = ("cache_params", "past_key_values")
"""What mixers call the cache."""

Forward = Callable[[torch.Tensor, Cache], torch.Tensor]
"""A mixer: hidden states `[B, n, H]` and a cache, which it changes, to `[B, n, H']`."""


def keeps_state(layer_type: str) -> bool:
    """Whether a layer of transformers' type carries a state from token to token."""
    kind = DYNAMIC_LAYER_TYPE_MAPPING.get(layer_type, object)
    return issubclass(kind, LinearAttentionCacheLayerMixin)


def attends(layer_type: str) -> bool:
    """Whether a layer of transformers' type has keys and values."""
    return issubclass(DYNAMIC_LAYER_TYPE_MAPPING.get(layer_type, object), CacheLayerMixin)


def has_state(config: Any) -> bool:
    """Whether a model of this configuration has layers that do."""
    text = config.get_text_config(decoder=True)
    return any(map(keeps_state, getattr(text, "layer_types", None) or ()))


@dataclass(frozen=True)
class StateLayers:
    """The layers of a model that keep a state.

    Attributes:
        numbers: how many states each of them has, by its index; empty where none keeps any.
        nbytes: bytes of all layers' states for one text.
    """

    numbers: dict[int, int]
    nbytes: int

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

    def keep(self) -> None:
        """See `State`."""
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
        for pieces in plan.groups():
            batch = StateBatch(len(pieces))
            for row, piece in enumerate(pieces):
                piece.after = TextState(batch, row)
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
            cache = _cache_of(layer, index)
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


def _cache_of(layer: LinearAttentionLayer, index: int) -> Cache:
    """A cache for one layer's mixer."""
    others = [LinearAttentionLayer()] * index
    return Cache(layers=[*others, layer])


def _sources(pieces: Sequence[Piece]) -> list[tuple[StateBatch, list[int]]]:
    """Batches and rows that the pieces go on from; neighbours of one batch together."""
    found: list[tuple[StateBatch, list[int]]] = []
    for piece in pieces:
        state = piece.before.after if isinstance(piece.before, Piece) else piece.before
        if state is None:
            continue
        if not isinstance(state, TextState):
            raise TypeError(f"a {type(state).__name__} is no state of this cache")
        if not found or found[-1][0] is not state.batch:
            found.append((state.batch, []))
        found[-1][1].append(state.row)
    return found


class Mixer:
    """Stands in a mixer's place; see the top of this file. Other caches pass through.

    Args:
        module: the mixer, whose `forward` it becomes.
        hidden: states of a few tokens to try it with, `[1, n, H]`.

    Attributes:
        stepwise: it can go on from a state by one token only. transformers' Mamba forgets its state
            before several.
    """

    def __init__(self, module: torch.nn.Module, hidden: torch.Tensor) -> None:
        self._forward = module.forward
        self._signature = inspect.signature(module.forward)
        self._index = int(module.layer_idx)  # type: ignore[arg-type]
        self._cache = next(name for name in _CACHES if name in self._signature.parameters)
        self.stepwise = self._forgets(hidden)

    def _forgets(self, hidden: torch.Tensor) -> bool:
        """Whether several tokens after a state come out otherwise than all tokens together."""
        found = []
        for parts in ([hidden], [hidden[:, :-2], hidden[:, -2:]]):
            layer = LinearAttentionLayer()
            cache = _cache_of(layer, self._index)
            for part in parts:
                self._forward(part, **{self._cache: cache})
            found.append(layer.recurrent_states[0])
        whole, resumed = found
        if whole is None or resumed is None:
            return False  # a convolution only
        return bool((whole - resumed).abs().max() > 0.05 * whole.abs().max())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's `forward`."""
        given = self._signature.bind(*args, **kwargs)
        states = getattr(given.arguments.get(self._cache), "states", None)
        if not isinstance(states, PassStates):
            return self._forward(*args, **kwargs)
        if "attention_mask" in self._signature.parameters:
            given.arguments["attention_mask"] = None  # nothing here is padding
        name = next(iter(given.arguments))  # the hidden states come first
        others: list[Any] = []

        def forward(batch: torch.Tensor, cache: Cache) -> torch.Tensor:
            given.arguments[name], given.arguments[self._cache] = batch, cache
            output = self._forward(*given.args, **given.kwargs)
            if isinstance(output, tuple):
                output, *others[:] = output
            return output  # type: ignore[no-any-return]

        hidden = given.arguments[name]
        mixed = states.mix(self._index, forward, hidden, stepwise=self.stepwise)
        return (mixed, *[None] * len(others)) if others else mixed


class _Spy(DynamicCache):
    """A cache that notes which module asks for a state."""

    def __init__(self, config: Any, running: list[torch.nn.Module]) -> None:
        super().__init__(config=config)
        self.mixers: dict[int, torch.nn.Module] = {}
        self._running = running

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """See `Cache`."""
        self.mixers[layer_idx] = self._running[-1]
        return super().get_conv_state(layer_idx, state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """See `Cache`."""
        self.mixers[layer_idx] = self._running[-1]
        return super().get_recurrent_state(layer_idx, state_idx)


@torch.inference_mode()
def wrap_mixers(model: PreTrainedModel) -> StateLayers:
    """Put a `Mixer` in the place of every mixer of a model. Safe to call again.

    Returns:
        the layers that keep a state.

    Raises:
        ValueError: a layer that should keep a state asks the cache for none.
    """
    if not has_state(model.config):
        return StateLayers({}, 0)
    running: list[torch.nn.Module] = []
    spy = _Spy(model.config, running)
    layers = {
        index: layer
        for index, layer in enumerate(spy.layers)
        if isinstance(layer, LinearAttentionLayer)
    }
    states = {index: layer.number_of_states for index, layer in layers.items()}

    def enter(module: torch.nn.Module, _: Any) -> None:
        running.append(module)

    def leave(*_: Any) -> None:
        running.pop()

    hooks = []
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        device = model.get_input_embeddings().weight.device
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)  # type: ignore[arg-type]
        model(input_ids=ids, past_key_values=spy, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := sorted(set(states) - set(spy.mixers)):
        raise ValueError(f"layers {missing} keep a state, but ask the cache for none")
    width = model.config.get_text_config(decoder=True).hidden_size
    noise = torch.randn(1, 8, width, generator=torch.Generator().manual_seed(3))
    for module in spy.mixers.values():
        if not isinstance(module.forward, Mixer):
            module.forward = Mixer(module, noise.to(next(module.parameters())))
    # One layer may forget so fast by itself that nothing is seen there; all have the same code.
    wrapped = [module.forward for module in spy.mixers.values()]
    stepwise = any(isinstance(mixer, Mixer) and mixer.stepwise for mixer in wrapped)
    for mixer in wrapped:
        if isinstance(mixer, Mixer):
            mixer.stepwise = stepwise
    return StateLayers(states, TextState(StateBatch(1, layers), 0).nbytes)
