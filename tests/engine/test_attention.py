"""Attention with heads folded into rows."""

from __future__ import annotations

import pytest
import torch

from langchain_pos.engine.attention import fold_mask, folded_attention_forward

MODULE = torch.nn.Identity()


def obvious(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scale: float
) -> torch.Tensor:
    """Head by head and in float64: `[1, Q, H, D]`."""
    groups = query.shape[1] // key.shape[1]
    out = []
    for head in range(query.shape[1]):
        k, v = key[0, head // groups].double(), value[0, head // groups].double()
        scores = query[0, head].double() @ k.T * scale
        out.append(torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1) @ v)
    return torch.stack(out, dim=1)[None]


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (7, 1)])
@pytest.mark.parametrize(("rows", "slots"), [(1, 256), (5, 512), (32, 2048), (3, 300)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_folded_attention_is_the_obvious_loop(
    heads: tuple[int, int], rows: int, slots: int, scaling: float | None
) -> None:
    """Random masks, chunks of which a row sees nothing included."""
    torch.manual_seed(rows)
    query = torch.randn(1, heads[0], rows, 16)
    key, value = torch.randn(1, heads[1], slots, 16), torch.randn(1, heads[1], slots, 16)
    seen = torch.rand(rows, slots) < 0.05
    seen[:, 0] = True
    seen[0, 1:] = False
    expected = obvious(query, key, value, seen, scaling or 16**-0.5).float()
    mask = torch.zeros(1, 1, rows, slots).masked_fill(~seen, float("-inf"))
    mask = fold_mask(mask, heads[0] // heads[1])
    found, _ = folded_attention_forward(MODULE, query, key, value, mask, scaling=scaling)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
