"""Whether a tokenizer and a model agree on the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_pos.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens_beyond(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> dict[str, int]:
    """The tokenizer's added tokens without an embedding in the model: they can never be fed.

    Args:
        tokenizer: a fast tokenizer.
        vocabulary: number of the model's embeddings.

    Raises:
        UnsupportedModelError: they include ordinary tokens, which any text may contain.
    """
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= vocabulary}
    ordinary = sorted(set(beyond) - set(tokenizer.get_added_vocab()), key=beyond.__getitem__)
    if ordinary:
        named = ", ".join(f"{token!r} ({beyond[token]})" for token in ordinary[:3])
        raise UnsupportedModelError(
            f"the tokenizer has {len(ordinary)} tokens, such as {named}, that the model has no "
            f"embedding for: it has {vocabulary}. Use the tokenizer that belongs to the model"
        )
    return beyond
