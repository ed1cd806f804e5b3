"""Drawing: the token that a random number falls on, found by blocks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langchain_pos.engine import drawing
from langchain_pos.engine.drawing import inverse_cdf, likeliest


def draw(weights: torch.Tensor, *u: float) -> list[int]:
    """One token for each number."""
    rows = weights.expand(len(u), -1).contiguous()
    return inverse_cdf(rows, torch.tensor(u, dtype=torch.float64)).tolist()


@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 5, 127, 128, 129, 1000]),
    st.sampled_from([0.1, 1.0, 20.0]),
    st.floats(0, 1, exclude_max=True),
)
def test_the_draw_is_the_first_token_beyond_u(
    seed: int, width: int, spread: float, u: float
) -> None:
    """Walking along the probabilities, the draw is the token that `u` falls into."""
    logits = spread * torch.randn(width, generator=torch.Generator().manual_seed(seed))
    (token,) = draw((logits - logits.max()).exp(), u)
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1).tolist()
    assert cumulative[token] >= u * cumulative[-1] - 1e-6
    assert token == 0 or cumulative[token - 1] <= u * cumulative[-1] + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [5, 128, 640, 700])
def test_what_is_excluded_is_never_drawn(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int
) -> None:
    """Neither u = 0 nor u just below 1, which float32 rounds to 1, hits a weight of 0."""
    monkeypatch.setattr(drawing, "precise_dtype", lambda device: dtype)
    for one, other in ((1, 3), (0, width - 1), (width // 2, width // 2 + 1)):
        weights = torch.zeros(1, width)
        weights[0, one], weights[0, other] = 0.3, 0.9
        assert draw(weights, 0, 1 - 2**-53) == [one, other]


def test_rare_tokens_of_a_wide_vocabulary_are_drawn() -> None:
    """Sums in float32 over 150,000 tokens would lose them."""
    weights = torch.full((1, 150_000), 1e-7)
    weights[0, 0] = 1.0
    total = float(weights.double().sum())
    for token in (1, 77_777, 149_999):
        u = (1 + (token - 0.5) * 1e-7) / total
        assert abs(draw(weights, u)[0] - token) <= 2


@pytest.mark.parametrize("width", [5, 1024, 1030])
def test_the_likeliest_is_the_first_of_equals(width: int) -> None:
    """As `argmax`, and NaN is found."""
    logits = torch.randint(0, 4, (40, width), generator=torch.Generator().manual_seed(3)).float()
    logits[7, width - 1] = 9
    best, tokens = likeliest(logits)
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.equal(best, logits.amax(-1))
    logits[3, 2] = math.nan
    assert likeliest(logits)[0].isnan().nonzero().tolist() == [[3]]


def test_apples_gpus_are_not_given_float64() -> None:
    """They have none."""
    assert drawing.precise_dtype(torch.device("mps")) == torch.float32
    assert drawing.precise_dtype(torch.device("cpu")) == torch.float64
