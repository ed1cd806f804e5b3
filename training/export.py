"""Write a checkpoint as a folder that transformers loads: `python -m training.export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from training.model import Shape, Weights
from training.tokenizer import END, PAD, save_tokenizer

EMBEDDED = Path(__file__).parent.parent / "langchain_pos" / "embedded"
MAX_POSITIONS = 8192


def to_state_dict(
    weights: Weights, shape: Shape, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Return the weights under the names of transformers' Qwen2ForCausalLM."""
    state = {
        "model.embed_tokens.weight": weights["embed"],
        "model.norm.weight": weights["norm_final"],
    }
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        for name, part, bias in zip(
            "qkv", weights["qkv"][i].chunk(3), weights["qkv_bias"][i].chunk(3), strict=True
        ):
            state[f"{prefix}self_attn.{name}_proj.weight"] = part
            state[f"{prefix}self_attn.{name}_proj.bias"] = bias
        gate, up = weights["gate_up"][i].chunk(2)
        state |= {
            f"{prefix}self_attn.o_proj.weight": weights["out"][i],
            f"{prefix}mlp.gate_proj.weight": gate,
            f"{prefix}mlp.up_proj.weight": up,
            f"{prefix}mlp.down_proj.weight": weights["down"][i],
            f"{prefix}input_layernorm.weight": weights["norm_attn"][i],
            f"{prefix}post_attention_layernorm.weight": weights["norm_mlp"][i],
        }
    return {
        name: tensor.detach().to("cpu", dtype).contiguous().clone()
        for name, tensor in state.items()
    }


def to_config(shape: Shape, end: int, pad: int) -> dict[str, object]:
    """Return the contents of `config.json`."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": pad,
        "dtype": "bfloat16",
        "eight_bits_suffice": True,
    }


def export(checkpoint: Path, tokenizer_file: Path, folder: Path) -> None:
    """Write config, weights (bf16 safetensors), tokenizer and generation settings into `folder`."""
    saved = torch.load(checkpoint, map_location="cpu")
    shape = Shape(**saved["shape"])
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    save_tokenizer(tokenizer, folder, MAX_POSITIONS)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    (folder / "config.json").write_text(json.dumps(to_config(shape, end, pad), indent=2) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": False, "eos_token_id": end, "pad_token_id": pad}, indent=2) + "\n"
    )
    target = folder / "model.safetensors"
    save_file(
        to_state_dict(saved["weights"], shape),
        target,
        metadata={"format": "pt"},
    )


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    runs = Path(__file__).parent / "runs" / "default"
    parser.add_argument("--checkpoint", type=Path, default=runs / "checkpoint.pt")
    parser.add_argument("--tokenizer", type=Path, default=runs / "tokenizer.json")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()
    export(args.checkpoint, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
