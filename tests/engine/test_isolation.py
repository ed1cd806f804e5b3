"""No branch reaches another: not through keys and values, not through used slots, not as NaN."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from langchain_pos.engine import Completion, Engine
from langchain_pos.engine.forest.segments import Ledger, Segment
from langchain_pos.engine.forward.forward_pass import ForwardPass
from langchain_pos.errors import NonFiniteLogitsError
from tests.support.tiny import ids, said, tiny_engine

IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "sdpa": {"attn_implementation": "sdpa"},
    "eager": {"attn_implementation": "eager"},
    "parts": {},
    "fixed shapes": {"cuda_graphs": True},
}
POISON = 380
"""A token id that nothing else in these tests says."""


def prompt(count: int, seed: int) -> list[int]:
    """Token ids without the poisonous one."""
    return [token % POISON for token in ids(count, seed)]


def grow(forward: ForwardPass, *feeds: tuple[Segment, list[int]]) -> None:
    """Feed without sampling, 1,024 rows a pass."""
    for segment, tokens in feeds:
        for at in range(0, len(tokens), 1024):
            forward.run([(segment, tokens[at : at + 1024])], [])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["qwen2", "mistral", "gemma3_text"])
def test_overwritten_siblings_change_no_bit_at_4096_slots(name: str, implementation: str) -> None:
    """In a context of thousands, whatever lies in the siblings' slots is nothing to a branch."""
    settings = {"max_position_embeddings": 8192}
    if name != "qwen2":
        settings["sliding_window"] = 700
    engine = tiny_engine(name, settings=settings, **IMPLEMENTATIONS[implementation])
    forward, ledger = engine.forward, Ledger()
    root = forward.forest.root(ledger)
    grow(forward, (root, prompt(1500, 1)))
    branches = [forward.forest.fork(root) for _ in range(5)]
    for index in range(130):  # interleaved, as when they are decoded
        forward.run([(b, prompt(4, 10 * index + i)) for i, b in enumerate(branches)], [])
    assert 4100 <= forward.forest.extent < 4300
    if implementation == "parts":
        assert forward.in_parts
        forward.least_saved = -(1 << 40)
    for index, branch in enumerate(branches):
        siblings = [s for other in branches if other is not branch for s in other.slots]
        sibling = branches[index - 1]  # fed along, so that the prefix is shared in the pass
        asked = [(branch, prompt(1, index)), (sibling, prompt(1, index + 9))]
        before = forward.run(asked, [0])
        assert before.isfinite().all()
        kept = [(layer.keys.clone(), layer.values.clone()) for layer in forward.cache.layers]
        for value in (0.0, 30.0, -1e4):
            for segment in (branch, sibling):
                forward.forest.truncate(segment, segment.end - 1)
            forward.cache.overwrite(siblings, value)
            assert torch.equal(forward.run(asked, [0]), before)
        # One's own and the prefix's do count.
        for segment in (branch, sibling):
            forward.forest.truncate(segment, segment.end - 1)
        forward.cache.overwrite(branch.slots[-3:], 3.0)
        assert not torch.equal(forward.run(asked, [0]), before)
        with torch.inference_mode():
            forward.forest.truncate(sibling, sibling.end - 1)
            for layer, (keys, values) in zip(forward.cache.layers, kept, strict=True):
                layer.keys.copy_(keys)
                layer.values.copy_(values)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_used_slots_leak_nothing(implementation: str) -> None:
    """A request that takes the slots of one that ended answers as on a fresh engine."""
    asked, openings = prompt(30, 1), [prompt(n, n) for n in (4, 2, 6)]
    fresh = tiny_engine(**IMPLEMENTATIONS[implementation])
    expected = fresh.decode_branches(asked, openings, max_new_tokens=12)
    used = tiny_engine(**IMPLEMENTATIONS[implementation])
    for seed in range(3):
        used.decode_branches(
            prompt(50 + seed, seed), [prompt(3, 7), prompt(9, 8)], max_new_tokens=20 + seed
        )
    assert used.slots_in_use == 0
    again = used.decode_branches(asked, openings, max_new_tokens=12)
    assert said(again) == said(expected)


def engine_without_poison(**kwargs: Any) -> Engine:
    """An engine whose model never says the poisonous token."""
    engine = tiny_engine(**kwargs)
    with torch.no_grad():
        engine.model.lm_head.weight[POISON] = 0
    return engine


@contextmanager
def poisoned(engine: Engine, layer: int | None, value: float = float("nan")) -> Iterator[None]:
    """The poisonous token turns into `value`: as its embedding, or as one layer's output."""
    fed: list[torch.Tensor] = []

    def remember(module: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        fed[:] = [args[0] == POISON]
        if layer is None:
            output[fed[0]] = value

    def spoil(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        output[fed[0]] = value

    inner = engine.model.model
    hooks = [inner.embed_tokens.register_forward_hook(remember)]
    if layer is not None:
        hooks.append(inner.layers[layer].mlp.register_forward_hook(spoil))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("layer", "value"),
    [(None, float("nan")), (0, float("nan")), (1, float("inf")), (2, float("nan"))],
)
def test_nan_of_one_branch_reaches_no_other(
    implementation: str, layer: int | None, value: float
) -> None:
    """The branch that turned to NaN ends with an error; the others are what they always were."""
    engine = engine_without_poison(**IMPLEMENTATIONS[implementation])
    openings = [prompt(3, 1), [*prompt(2, 2), POISON], prompt(4, 3)]
    expected = engine.decode_branches(prompt(20, 9), openings, max_new_tokens=10)
    with poisoned(engine, layer, value):
        done = engine.decode_branches(prompt(20, 9), openings, max_new_tokens=10)
    assert said([done[0], done[2]]) == said([expected[0], expected[2]])
    assert (done[1].finish_reason, done[1].token_ids) == ("error", ())
    assert "NaN" in (done[1].error or "")
    assert engine.slots_in_use == 0
    # Nothing of it stays behind.
    again = engine.decode_branches(prompt(20, 9), openings, max_new_tokens=10)
    assert said(again) == said(expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_in_the_prompt_fails_all_that_see_it_and_no_one_else(implementation: str) -> None:
    """NaN in a prompt fed in chunks, without anything sampled, is still noticed by its branches."""
    engine = engine_without_poison(**IMPLEMENTATIONS[implementation], max_rows=8)
    healthy, openings = prompt(20, 9), [prompt(3, 1), prompt(5, 2)]
    expected = engine.decode_branches(healthy, openings, max_new_tokens=10)
    spoilt = [*prompt(9, 4), POISON, *prompt(15, 5)]
    with poisoned(engine, 0):
        done: dict[str, list[Completion]] = {}

        def ask(name: str, prefix: list[int]) -> None:
            done[name] = engine.decode_branches(prefix, openings, max_new_tokens=10)

        threads = [
            threading.Thread(target=ask, args=args)
            for args in (("spoilt", spoilt), ("healthy", healthy))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(NonFiniteLogitsError, match="another dtype"):
            engine.generate(spoilt, max_new_tokens=5)
    assert said(done["healthy"]) == said(expected)
    assert [branch.finish_reason for branch in done["spoilt"]] == ["error", "error"]
    assert engine.slots_in_use == 0


def test_infinite_keys_with_finite_states_are_noticed() -> None:
    """A projection that overflows is an error for its sequence, not a silent zero."""
    engine = engine_without_poison()
    openings = [[*prompt(2, 2), POISON, *prompt(2, 4)], prompt(4, 3)]
    expected = engine.decode_branches(prompt(20, 9), openings, max_new_tokens=6)
    fed: list[torch.Tensor] = []
    model = engine.model.model
    hooks = [
        model.embed_tokens.register_forward_hook(
            lambda module, args, output: fed.__setitem__(slice(None), [args[0] == POISON])
        ),
        model.layers[1].self_attn.k_proj.register_forward_hook(
            lambda module, args, output: output.masked_fill(fed[0][..., None], float("inf"))
        ),
    ]
    done = engine.decode_branches(prompt(20, 9), openings, max_new_tokens=6)
    for hook in hooks:
        hook.remove()
    assert done[0].finish_reason == "error"
    assert said(done[1]) == said(expected[1])
