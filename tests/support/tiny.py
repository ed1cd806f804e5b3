"""Tiny engines and token ids for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from langchain_pos.engine import Completion, Engine
from langchain_pos.engine.decoding.sequence import Feed, Steps, feed
from langchain_pos.engine.scheduler.request import Request
from tests.support.families import SUPPORTED, VOCABULARY, Family
from tests.support.tokenizers import byte_level

BY_NAME: dict[str, Family] = {family.name: family for family in SUPPORTED}


def tiny_model(name: str = "qwen2", seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A model of one of the supported families."""
    return BY_NAME[name].model(seed, **settings)


def tiny_engine(
    name: str = "qwen2",
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    settings: dict[str, Any] | None = None,
    eos: bool = False,
    **kwargs: Any,
) -> Engine:
    """An engine around a tiny model; without EOS every sequence uses its whole budget."""
    tokenizer = tokenizer or byte_level()
    model = tiny_model(name, seed, **{"vocab_size": len(tokenizer), **(settings or {})})
    engine = Engine(model, tokenizer, **kwargs)
    if not eos:
        engine.eos_token_ids = frozenset()
    return engine


def ids(count: int, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()


def greedy_reference(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers' own `generate` writes."""
    output = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def said(result: Completion | Sequence[Completion]) -> list[tuple[Any, ...]]:
    """What completions say, without how many passes and guesses it took: that is the company's."""
    completions = [result] if isinstance(result, Completion) else result
    return [(c.token_ids, c.text, c.finish_reason, c.usage, c.stop, c.error) for c in completions]


def submit(
    engine: Engine, steps: Callable[[Request[Any]], Steps[Any]], reserve: int = 64, **kwargs: Any
) -> Request[Any]:
    """Queue a request that a test writes out itself."""
    return engine.scheduler.submit(steps, reserve=reserve, **kwargs)


def feeding(engine: Engine, token_ids: Sequence[int], times: int) -> Callable[..., Steps[int]]:
    """A request that feeds the same tokens again and again, and returns how often it did."""

    async def steps(request: Request[Any]) -> int:
        root = engine.scheduler.root(request)
        for _ in range(times):
            await feed([Feed(root, token_ids)])
        return times

    return steps
