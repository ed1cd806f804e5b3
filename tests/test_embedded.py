"""The shipped folder: complete, small, and loadable by transformers alone."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from langchain_pos.embedded import embedded_model_path


def test_the_folder_is_small_and_holds_safetensors_only() -> None:
    """Under 16 MB in all; no pickled weights."""
    files = [f for f in embedded_model_path().iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 16_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        f.name for f in files
    }
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


def test_the_model_loads_and_gives_finite_logits() -> None:
    """In bf16, with every weight present."""
    model, info = AutoModelForCausalLM.from_pretrained(
        embedded_model_path(), use_safetensors=True, output_loading_info=True
    )
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[3, 300, 301]])).logits
    assert torch.isfinite(logits).all()
    assert model.config.max_position_embeddings == 8192
