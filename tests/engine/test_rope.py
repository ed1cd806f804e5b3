"""RoPE with several sets of frequencies: no request changes another one's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from langchain_pos.engine import Engine
from langchain_pos.engine import engine as front
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.engine.rope import RopeRange
from langchain_pos.errors import ContextLengthError, InvalidRequestError, UnsupportedModelError
from tests.support.families import TRAINED
from tests.support.tiny import greedy_reference, ids, tiny_engine, tiny_model

KINDS = {
    "phi3 (longrope)": TRAINED,
    "phimoe (longrope)": TRAINED,
    "llama (dynamic)": 512,
}
SHORT = ids(20)


def beside(engine: Engine, length: int) -> torch.Tensor:
    """The logits after `SHORT`, in one pass with a segment of so many tokens."""
    forest = engine.forward.forest
    root, other = forest.root(Ledger()), forest.root(Ledger())
    logits = engine.forward.run([(root, SHORT), (other, ids(length, seed=3))], [0]).clone()
    forest.release(root)
    forest.release(other)
    return logits


@pytest.mark.parametrize("name", KINDS)
def test_a_longer_request_beside_it_changes_nothing(name: str) -> None:
    """Not even one that overruns the positions that the frequencies cover."""
    engine = tiny_engine(name)
    alone = beside(engine, 5)
    for length in (KINDS[name] - 1, KINDS[name] + 80):
        torch.testing.assert_close(beside(engine, length), alone, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(beside(engine, 5), alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_the_context_ends_where_the_frequencies_do(name: str) -> None:
    """Up to there it is transformers' text; beyond, the error says how to reach further."""
    engine, trained = tiny_engine(name), KINDS[name]
    assert engine.context_length == trained
    prompt = ids(trained - 6)
    expected = greedy_reference(tiny_model(name, vocab_size=384), prompt, 6)
    assert list(engine.generate(prompt, max_new_tokens=6).token_ids) == expected
    further = "512" if name == "phi3 (longrope)" else "2048"
    if "phimoe" in name:
        further = "512"
    with pytest.raises(
        ContextLengthError, match=f"{trained} positions .*rope_factors='long' covers {further}"
    ):
        engine.generate(prompt, max_new_tokens=7)
    assert "rope_factors='long'" in engine.describe()["positions"]


@pytest.mark.parametrize(
    ("name", "positions"), [("phi3 (longrope)", 512), ("llama (dynamic)", 2048)]
)
def test_the_long_factors_serve_the_whole_context(name: str, positions: int) -> None:
    """The text of a long prompt is transformers' own, and that of a short one stays as it is."""
    engine = tiny_engine(name, rope_factors="long")
    assert engine.context_length == positions
    alone = beside(engine, 5)
    torch.testing.assert_close(beside(engine, 300), alone, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(beside(tiny_engine(name), 5), alone, atol=1e-2)
    if name == "phi3 (longrope)":
        prompt = ids(100)
        expected = greedy_reference(tiny_model(name, vocab_size=384), prompt, 6)
        assert list(engine.generate(prompt, max_new_tokens=6).token_ids) == expected
    assert "rope_factors='short'" in engine.describe()["positions"]


def test_a_model_that_has_served_a_long_text_before_is_set_back() -> None:
    """Transformers leaves the frequencies of the last pass in the model."""
    expected = beside(tiny_engine("llama (dynamic)"), 5)
    model = tiny_model("llama (dynamic)", vocab_size=384)
    with torch.no_grad():
        model(torch.tensor([ids(600)]))
    engine = Engine(model, tiny_engine().tokenizer)
    torch.testing.assert_close(beside(engine, 5), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["phi3 (longrope)", "phimoe (longrope)"])
def test_the_probe_refuses_frequencies_that_follow_the_longest_request(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So also those of a model whose own code chooses them, which nothing here can fix."""
    monkeypatch.setattr(front, "fix_frequencies", lambda model, factors: RopeRange())
    with pytest.raises(UnsupportedModelError, match="token at position 511 changes what comes"):
        tiny_engine(name)


def test_models_with_one_set_are_left_alone() -> None:
    """Their limit is their own, and there is nothing to choose."""
    for factors in ("short", "long"):
        engine = tiny_engine("qwen2", rope_factors=factors)
        assert engine.describe()["positions"] == "512"


@pytest.mark.parametrize("given", ["medium", "", None])
def test_there_are_two_sets(given: Any) -> None:
    """The error names what was given, and what is allowed."""
    with pytest.raises(InvalidRequestError, match=r"rope_factors=.*'short' and 'long'"):
        tiny_engine(rope_factors=given)


def test_long_factors_that_cannot_be_fixed_are_refused() -> None:
    """Phi-MoE computes its frequencies anew in each pass."""
    with pytest.raises(UnsupportedModelError, match=r"phimoe .*rope_factors at 'short'"):
        tiny_engine("phimoe (longrope)", rope_factors="long")
