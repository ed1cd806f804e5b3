"""Models with random weights in real shapes: what speed and memory need, and no download.

A forward pass costs the same whatever the weights say. What is written is noise, so benchmarks
that need real text force it (`benchmarks.replay`), and budgets alone end a sequence.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3_5TextConfig,
)

from langchain_pos.embedded import embedded_model_path
from langchain_pos.engine import Engine
from langchain_pos.engine.cpu.dtypes import dtype_on_a_cpu


@dataclass(frozen=True)
class Shape:
    """The numbers of a Qwen2.5 model that its speed depends on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    dtype: str = "bfloat16"

    def config(self) -> PretrainedConfig:
        """Transformers' configuration, without EOS."""
        return Qwen2Config(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


@dataclass(frozen=True)
class HybridShape(Shape):
    """The numbers of a Qwen3.5 model: of four layers, three keep a state.

    Its other numbers are those of its attention layers.
    """

    head: int = 256
    state_heads: int = 16
    state_head: int = 128

    def config(self) -> PretrainedConfig:
        """Transformers' configuration, without EOS."""
        return Qwen3_5TextConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            linear_num_key_heads=self.state_heads,
            linear_num_value_heads=self.state_heads,
            linear_key_head_dim=self.state_head,
            linear_value_head_dim=self.state_head,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e7,
                "partial_rotary_factor": 0.25,
            },
        )


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 128, 8192, tied=True, dtype="float32"),
    "qwen2.5-0.5b": Shape(896, 24, 14, 2, 4864, 151936, tied=True),
    "qwen2.5-7b": Shape(3584, 28, 28, 4, 18944, 152064, tied=False),
    "qwen2.5-14b": Shape(5120, 48, 40, 8, 13824, 152064, tied=False),
    "tiny-hybrid": HybridShape(
        64, 4, 4, 2, 128, 8192, tied=True, dtype="float32", head=16, state_heads=4, state_head=16
    ),
    "qwen3.5-0.8b": HybridShape(1024, 24, 8, 2, 3584, 248320, tied=True),
}
"""From the models' own config.json files; those called "tiny" are for tests."""


def random_model(
    name: str, device: str = "cpu", seed: int = 0, dtype: str = "auto"
) -> PreTrainedModel:
    """A model of a shape in `SHAPES`; its weights are filled in place, without a copy.

    Args:
        name: key of `SHAPES`.
        device: where it is made.
        seed: of the weights.
        dtype: of the weights; "auto" for the one that a checkpoint of that shape is loaded in.
    """
    shape = SHAPES[name]
    stored = getattr(torch, shape.dtype)
    if dtype == "auto" and torch.device(device).type == "cpu":
        dtype = dtype_on_a_cpu(stored)
    model = _empty(shape.config(), stored if dtype == "auto" else getattr(torch, dtype), device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter_name, weights in model.named_parameters():
            if weights.ndim > 1:
                weights.normal_(std=0.02, generator=generator)
            else:
                weights.fill_(1.0 if "norm" in parameter_name else 0.0)
    return model


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own over the same weights, with transformers' `sdpa` attention.

    Peers run on it, so that whatever the engine does to the model that it is given (attention,
    packed weights) does not reach them. Take it before the engine gets the model.

    One thing is mended in the peers' favour: transformers cuts the last hidden state out of a
    prefill as a view, and torch's CPU `linear` then copies the whole output matrix for each row
    (for ten rows of Qwen2.5-0.5B in bf16: twelve seconds, once in an answer).
    """
    shared = [*model.parameters(), *model.buffers()]
    other = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    other.set_attn_implementation("sdpa")
    output = other.get_output_embeddings()
    if output is not None:
        output.register_forward_pre_hook(_packed)
    return other


def _packed(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The hidden states with the strides of a tensor of their own."""
    (states,) = args
    return (states.clone(memory_format=torch.contiguous_format),)


def _empty(config: Any, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model in eval mode whose weights are whatever the memory holds."""
    model: PreTrainedModel
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.to_empty(device=device)
    _refill_buffers(model, device)
    model.tie_weights()
    model.eval().requires_grad_(False)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return model


def _refill_buffers(model: PreTrainedModel, device: str) -> None:
    """Rotary frequencies are made by their module, and no checkpoint holds them."""
    rotary = [name for name, module in model.named_modules() if hasattr(module, "inv_freq")]
    for name in rotary:
        parent, _, attribute = name.rpartition(".")
        old = model.get_submodule(name)
        with torch.device(device):
            new = type(old)(config=model.config)
        setattr(model.get_submodule(parent), attribute, new)


def shipped_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the shipped model; all its ids lie inside every shape's vocabulary."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(embedded_model_path()))
    return tokenizer


def engine_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pack_weights: bool = True,
    quantization: str | None = None,
) -> Engine:
    """An engine set up as `Engine.load` does by default, but that no prefill is spared.

    Every run asks the same again; with prompts kept for later, only the first would prefill.
    """
    return Engine(
        model,
        tokenizer,
        pack_weights=pack_weights,
        quantization=quantization,
        draft_rows=None,
        prefix_cache_tokens=0,
    )


def endless_engine(model: PreTrainedModel, quantization: str | None = None) -> Engine:
    """An engine in which only budgets end a sequence."""
    engine = engine_for(model, shipped_tokenizer(), quantization=quantization)
    engine.eos_token_ids = frozenset()
    return engine


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that one decoding step must read.

    An input embedding that is not tied to the output is left out: a step reads a row of it for
    each token. Ask before the engine gets the model: packed weights are no parameters.
    """
    total = sum(weights.nbytes for weights in model.parameters())
    embeddings: torch.nn.Parameter = model.get_input_embeddings().weight  # type: ignore[assignment]
    output = model.get_output_embeddings()
    tied = output is None or output.weight.data_ptr() == embeddings.data_ptr()
    return total if tied else total - embeddings.nbytes
