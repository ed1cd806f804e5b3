"""The small model that ships with the package; `README.md` beside this file is its model card."""

from __future__ import annotations

from pathlib import Path

SHIPPED_MODEL_NOTE = (
    "this is the demonstration model that ships with langchain-pos; it answers four kinds of "
    "questions about records in the prompt: students and GPAs, items and prices, documents and "
    "facts, numbers and divisibility"
)
"""What is said once wherever it answers because no other model is named."""


def embedded_model_path() -> Path:
    """Return the folder of the shipped model: config, safetensors, tokenizer and chat template.

    Returns:
        A folder that `transformers` loads without a download.
    """
    return Path(__file__).resolve().parent
