"""A tiny llama as a GGUF file, and the real models that may lie beside the repository."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.support.tiny import tiny_model
from tests.support.tokenizers import EOS, byte_level

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def tiny_llama() -> PreTrainedModel:
    """The model that `write_gguf` writes."""
    settings = {
        "vocab_size": len(byte_level()),
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
    }
    return tiny_model("llama", **settings).eval()


def write_gguf(file: Path, *, quantised: bool = False, architecture: str = "llama") -> Path:
    """Write `tiny_llama` as llama.cpp's converter would, in F32 or with Q8_0 matrices."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    model = tiny_llama()
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(byte_level().backend_tokenizer.to_str())
    vocabulary = sorted(state["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token == EOS else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_eos_token_id(byte_level().eos_token_id)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        data = _rotated(name, tensor, config).float().numpy()
        kind = gguf.GGMLQuantizationType.F32
        if quantised and data.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(np.ascontiguousarray(data), kind)
        writer.add_tensor(_name(name), np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    inner = name.removesuffix(".weight")
    if inner in _OUTSIDE:
        return f"{_OUTSIDE[inner]}.weight"
    _, _, layer, rest = inner.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _rotated(name: str, tensor: torch.Tensor, config: object) -> torch.Tensor:
    """Queries and keys in llama.cpp's order, the two of a RoPE pair next to each other."""
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    heads = getattr(config, "num_attention_heads" if "q_proj" in name else "num_key_value_heads")
    half = tensor.shape[0] // heads // 2
    return tensor.view(heads, 2, half, -1).transpose(1, 2).reshape(tensor.shape)


def real_model(name: str) -> Path:
    """The folder of a real model, with `model.gguf` and `hf`; skips where there is none."""
    beside = Path(__file__).resolve().parents[3] / "real_models"
    folder = Path(os.environ.get("REAL_MODELS", beside)) / name
    if not (folder / "model.gguf").is_file():
        pytest.skip(f"no real model at {folder}")
    return folder
