"""Texts that a model with random weights writes under a grammar, without the model."""

from __future__ import annotations

import random
from functools import cache

import torch

from langchain_pos.engine.constraints import Constraint, ConstraintCompiler
from langchain_pos.engine.constraints.state import fill_masks
from tests.support.tokenizers import byte_level


@cache
def compiler() -> ConstraintCompiler:
    """Of the tests' byte-level tokenizer."""
    tokenizer = byte_level()
    return ConstraintCompiler(
        tokenizer, vocabulary=len(tokenizer), stop_token_ids=[tokenizer.eos_token_id or 0]
    )


def random_text(constraint: Constraint, seed: int, tokens: int = 400) -> str | None:
    """A text of random allowed tokens, more and more inclined to end; None where it has not ended.

    Written as a sequence writes: what is forced is taken as it is.
    """
    import xgrammar

    made = compiler()
    tokenizer, draw = byte_level(), random.Random(seed)
    end = tokenizer.eos_token_id or 0
    state = made.state(constraint)
    written = b""
    for step in range(tokens):
        if state.finished:
            return written.decode()
        forced = state.forced_text()
        if forced and state.accept_text(forced):
            written += forced.encode()
            continue
        bitmask = xgrammar.allocate_token_bitmask(1, len(tokenizer))
        fill_masks([state], bitmask, [0])
        bits = (bitmask[0][:, None] >> torch.arange(32)) & 1
        allowed = bits.flatten().nonzero().flatten().tolist()
        if not allowed:
            raise AssertionError(f"no token may follow {written!r}")
        closing = [i for i in allowed if i == end or made._tokens.tokens[i][:1] in b'"]}']
        late = closing and draw.random() < step / tokens + 0.05
        token_id = draw.choice(closing if late else allowed)
        if token_id == end:
            return written.decode()
        state.accept_token(token_id)
        written += made._tokens.tokens[token_id]
    return None
