"""The small model that ships with the package; `README.md` beside this file is its model card."""

from __future__ import annotations

from pathlib import Path


def embedded_model_path() -> Path:
    """Return the folder of the shipped model: config, safetensors, tokenizer and chat template.

    Returns:
        A folder that `transformers` loads without a download.
    """
    return Path(__file__).resolve().parent
