"""Attention with heads folded into rows, and with the slots split into chunks."""

from __future__ import annotations

import pytest
import torch

from langchain_pos.engine.attention import (
    SPLIT,
    chunks_for,
    fold_mask,
    folded_attention_forward,
    split_attention_forward,
)
from tests.engine.tiny import ids, tiny_engine

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
def test_both_ways_are_the_obvious_loop(
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
    for attend in (folded_attention_forward, split_attention_forward):
        mask = torch.zeros(1, 1, rows, slots).masked_fill(~seen, float("-inf"))
        mask = fold_mask(mask, heads[0] // heads[1])
        found, _ = attend(MODULE, query, key, value, mask, scaling=scaling)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_chunks_divide_the_slots_and_are_many_for_few_rows() -> None:
    """Never below 64 slots, none for a prefill's many rows or for an odd number of slots."""
    assert chunks_for(7, 2048) == 16
    assert chunks_for(224, 2048) == 16
    assert chunks_for(1024, 2048) == 4
    assert chunks_for(1 << 14, 2048) == 1
    assert chunks_for(7, 300) == 1
    assert chunks_for(7, 256) == 4
    for rows in (1, 30, 300):
        for slots in (256, 768, 1536, 4096):
            assert slots % chunks_for(rows, slots) == 0
            assert slots // chunks_for(rows, slots) >= 64


@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma3_text", "olmo2"])
def test_split_attention_serves_a_whole_engine(name: str) -> None:
    """With fixed shapes, where it splits: the tokens are those of the folded way."""
    prefix, openings = ids(400, seed=5), [ids(3, seed=s) for s in range(6)]
    folded = tiny_engine(name, cuda_graphs=True).decode_branches(
        prefix, openings, max_new_tokens=12
    )
    engine = tiny_engine(name, cuda_graphs=True, attn_implementation=SPLIT)
    assert engine.decode_branches(prefix, openings, max_new_tokens=12) == folded
