"""One set of RoPE frequencies for all requests of an engine.

The RoPE types `longrope` (Phi-3, 3.5 and 4 mini) and `dynamic` have two or more sets of
frequencies: for texts of the length that the model was trained on, and for longer ones.
transformers chooses by the largest position of the forward pass. Here a pass holds many requests,
so a short request's logits would change because a longer one runs beside it, and halfway through
its own text the keys in the cache would no longer match. Hence one set is chosen when a model is
loaded, and the context is limited to what that set covers, as in vLLM.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from langchain_pos.errors import InvalidRequestError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RopeFactors = Literal["short", "long"]


@dataclass(frozen=True)
class RopeRange:
    """The range of the chosen frequencies.

    Attributes:
        positions: covered; None if the model has one set of frequencies and no limit applies.
        note: which set it is and how to get the other; empty if there is only one.
    """

    positions: int | None = None
    note: str = ""


def fix_frequencies(model: PreTrainedModel, factors: RopeFactors) -> RopeRange:
    """Fix the frequencies of a model whose RoPE would choose them by the longest request.

    Args:
        model: changed in place; models with one set of frequencies are left unchanged.
        factors: "short", as in the model's original training; or "long", which reaches further
            and is less exact for short texts.

    Raises:
        InvalidRequestError: `factors` is neither.
        UnsupportedModelError: the model has no long set that can be fixed.
    """
    if factors not in ("short", "long"):
        raise InvalidRequestError(f"rope_factors={factors!r}; allowed are 'short' and 'long'")
    covered: list[tuple[int, int]] = []
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        for layer_type, rope_type in (types if isinstance(types, dict) else {None: types}).items():
            if isinstance(rope_type, str) and (rope_type == "longrope" or "dynamic" in rope_type):
                covered.append(_fix(module, layer_type, rope_type, factors))
    if not covered:
        return RopeRange()
    short, long = min(reach for reach, _ in covered), min(reach for _, reach in covered)
    if factors == "long":
        return RopeRange(long, f"the long RoPE factors; rope_factors='short' covers {short}")
    note = f"the short RoPE factors; rope_factors='long' covers {long}, with the long ones"
    return RopeRange(short, note if long > short else "")


def _fix(
    module: Any, layer_type: str | None, rope_type: str, factors: RopeFactors
) -> tuple[int, int]:
    """Fix one module's frequencies.

    Returns:
        the positions that its short and its long set cover.
    """
    config = module.config
    rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    prefix = "" if layer_type is None else f"{layer_type}_"
    if rope_type == "longrope":
        reach = int(rope["original_max_position_embeddings"]), int(config.max_position_embeddings)
    else:
        most = int(config.max_position_embeddings)
        reach = most, int(most * rope.get("factor", 1.0))
    frequencies = getattr(module, f"{prefix}original_inv_freq")
    if "long_mscale" in rope:  # Phi-MoE, which also scales by the longest request
        if factors == "long":
            raise UnsupportedModelError(
                f"{config.model_type} cannot be fixed to its long RoPE factors; leave rope_factors "
                f"at 'short', for texts of up to {reach[0]} positions"
            )
        module.config = copy.deepcopy(config)
        module.config.rope_parameters["long_mscale"] = rope["short_mscale"]
    elif factors == "long":
        kwargs = {} if layer_type is None else {"layer_type": layer_type}
        frequencies, scaling = ROPE_INIT_FUNCTIONS[rope_type](
            config, frequencies.device, seq_len=reach[1], **kwargs
        )
        setattr(module, f"{prefix}attention_scaling", scaling)
    with torch.no_grad():
        current = getattr(module, f"{prefix}inv_freq")
        module.register_buffer(f"{prefix}inv_freq", frequencies.to(current.device), False)
    # transformers chooses the frequencies anew in each pass for certain types only.
    fixed = f"fixed {factors} factors"
    module.rope_type = fixed if layer_type is None else {**module.rope_type, layer_type: fixed}
    return reach
