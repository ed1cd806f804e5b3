"""The modules that carry a state from token to token: found in a model, and wrapped.

Which layers keep states follows from the cache layers that the configuration asks for, which
modules are their mixers from who asks the cache for a state: no model is known by its name.
"""

from __future__ import annotations

import inspect
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

from langchain_pos.engine.cache.states import (
    ByOtherNames,
    PassStates,
    StateBatch,
    StateCache,
    StateLayers,
    TextState,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CACHES = ("cache_params", "past_key_values")
"""What mixers, and models, call the cache."""
_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD


def keeps_state(layer_type: str) -> bool:
    """Whether a layer of transformers' type carries a state from token to token."""
    kind = DYNAMIC_LAYER_TYPE_MAPPING.get(layer_type, object)
    return issubclass(kind, LinearAttentionCacheLayerMixin)


def attends(layer_type: str) -> bool:
    """Whether a layer of transformers' type has keys and values."""
    return issubclass(DYNAMIC_LAYER_TYPE_MAPPING.get(layer_type, object), CacheLayerMixin)


def has_state(config: Any) -> bool:
    """Whether a model of this configuration has layers that do."""
    return any(map(keeps_state, layer_types(config)))


def has_attention(config: Any) -> bool:
    """Whether it has layers with keys and values."""
    types = layer_types(config)
    return not types or any(map(attends, types))


def layer_types(config: Any) -> list[str]:
    """The types of its layers, where they are named."""
    text = config.get_text_config(decoder=True)
    return list(getattr(text, "layer_types", None) or ())


class Mixer:
    """Stands in a mixer's place; see `states.py`. Other caches pass through.

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
        _, *others = self._signature.parameters.values()  # the hidden states come first
        missing = {p.name: None for p in others if p.default is p.empty and p.kind is _NAMED}
        for parts in ([hidden], [hidden[:, :-2], hidden[:, -2:]]):
            layer = LinearAttentionLayer()
            given = {self._cache: StateCache(layer, self._index), **missing}
            for part in parts:
                self._forward(part, **given)
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


class _Spy(ByOtherNames, DynamicCache):
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
    cache = next(name for name in _CACHES if name in inspect.signature(model.forward).parameters)
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
        use_cache = True
        try:
            model(input_ids=ids, use_cache=True, **{cache: spy})
        except ValueError:  # it wants a cache of a class of its own
            running.clear()
            use_cache = False
            model(input_ids=ids, use_cache=False, **{cache: spy})
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
    nbytes = TextState(StateBatch(1, layers), 0).nbytes
    return StateLayers(states, nbytes, cache, use_cache, has_attention(model.config))
