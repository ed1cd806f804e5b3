"""Packing and the lean forward pass against their obvious forms."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from langchain_pos.embedded import embedded_model_path
from training import fast_attention
from training.curriculum import BUCKETS
from training.decode import Decoder
from training.export import to_config, to_state_dict
from training.model import Shape, forward, init_weights, rope_tables
from training.packing import APART, ROOT, TITLE, Batch, Bucket, Packer, fork_mask

SMALL = Shape(layers=2, hidden=64, heads=2, feed_forward=96)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """A small batch of the shortest problems."""
    packer = Packer(Tokenizer.from_file(str(embedded_model_path() / "tokenizer.json")))
    return packer.batch(3, Bucket(2, 128, 192, (1, 3), ("tiny",)))


def _mask(batch: Batch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return fork_mask(
        torch.from_numpy(batch.segments), torch.from_numpy(batch.parents), batch.root, dtype
    )


def test_the_mask_equals_a_loop_over_ancestors(batch: Batch) -> None:
    """A fork slot sees its own segment so far, its parent, and the root, unless it stands apart."""
    mask = _mask(batch) == 0
    for row in range(len(batch.tokens)):
        parent = {
            int(s): int(p)
            for s, p in zip(batch.segments[row, batch.root :], batch.parents[row], strict=True)
        }
        for query in range(batch.parents.shape[1]):
            own = int(batch.segments[row, batch.root + query])
            if own == -1:
                continue
            chain, segment = [], own
            while segment != ROOT and parent[segment] != APART:
                segment = parent[segment]
                chain.append(segment)
            expected = [
                (int(s) == own and slot <= batch.root + query) or int(s) in chain
                for slot, s in enumerate(batch.segments[row])
            ]
            assert mask[row, 0, query].tolist() == expected


def test_positions_restart_at_the_fork(batch: Batch) -> None:
    """Every child of a segment begins right behind it."""
    segments, positions = batch.segments[0], batch.positions[0]
    for segment in range(1, segments.max() + 1):
        slots = (segments == segment).nonzero()[0]
        parent = batch.parents[0][slots[0] - batch.root]
        if parent != APART:
            assert positions[slots[0]] > positions[(segments == parent).nonzero()[0][-1]]
        if parent > ROOT:
            assert positions[slots[0]] == positions[(segments == parent).nonzero()[0][-1]] + 1


def test_targets_are_the_next_tokens_of_the_segment(batch: Batch) -> None:
    """Nothing is asked across segments, except that a fork begins with `####`."""
    for row in range(len(batch.tokens)):
        for query in (batch.weights[row] > 0).nonzero()[0]:
            slot = batch.root + query
            same = slot + 1 < batch.tokens.shape[1] and (
                batch.segments[row, slot] == batch.segments[row, slot + 1]
            )
            following = batch.tokens[row, slot + 1] if slot + 1 < batch.tokens.shape[1] else None
            if same:
                assert batch.targets[row, query] == following
            else:
                assert batch.segments[row, slot] in batch.parents[row]


def test_the_lean_forward_is_transformers_forward(batch: Batch) -> None:
    """The exported weights in Qwen2ForCausalLM give the same logits under the same mask."""
    weights = init_weights(SMALL, torch.Generator().manual_seed(0))
    weights = {
        n: w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
        for n, w in weights.items()
    }
    settings = {
        k: v for k, v in to_config(SMALL, 1, 0).items() if k not in ("architectures", "model_type")
    }
    model = Qwen2ForCausalLM(Qwen2Config(**settings)).float().eval()
    model.load_state_dict(to_state_dict(weights, SMALL, torch.float32), strict=False)
    model.tie_weights()
    tokens, positions = torch.from_numpy(batch.tokens), torch.from_numpy(batch.positions)
    mask, root, total = _mask(batch), batch.root, tokens.shape[1]
    cos, sin = rope_tables(SMALL, positions, torch.float32)
    lean = forward(weights, SMALL, tokens, cos, sin, mask, root) @ weights["embed"].T
    full = torch.zeros(len(tokens), 1, total, total, dtype=torch.bool)
    full[:, :, :root, :root] = torch.ones(root, root, dtype=torch.bool).tril()
    full[:, :, root:] = mask == 0
    with torch.no_grad():
        theirs = model(input_ids=tokens, position_ids=positions, attention_mask=full).logits
    torch.testing.assert_close(lean, theirs[:, root:], atol=1e-3, rtol=1e-3)


def test_the_fast_backward_is_the_true_gradient() -> None:
    """The compiled backward agrees with autograd in fp32 to bf16's precision."""
    if not fast_attention.available("cpu", torch.bfloat16):
        pytest.skip("no compiler here")
    make = torch.Generator().manual_seed(0)
    q, k, v, out = (torch.randn(2, 2, n, 32, generator=make).bfloat16() for n in (40, 72, 72, 40))
    mask = torch.zeros(2, 1, 40, 72).masked_fill_(
        torch.rand(2, 1, 40, 72, generator=make) < 0.3, float("-inf")
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    for queries, given in ((40, mask), (72, None)):
        if queries == 72:
            inputs[0] = torch.randn(2, 2, 72, 32, generator=make).bfloat16().requires_grad_()
            out = torch.randn(2, 2, 72, 32, generator=make).bfloat16()
        wide = [x.detach().float().requires_grad_() for x in inputs]
        fast = fast_attention.attention(*inputs, None if given is None else given.bfloat16(), True)
        slow = fast_attention.attention(*wide, given, False)
        mine = torch.autograd.grad(fast, inputs, out)
        true = torch.autograd.grad(slow, wide, out.float())
        for a, b in zip(mine, true, strict=True):
            assert (a.float() - b).norm() / b.norm() < 0.02


def test_branches_decoded_together_are_branches_decoded_alone() -> None:
    """The measuring decoder isolates branches and gives each the position behind the fork."""
    decoder = Decoder(embedded_model_path())
    ids = decoder.prompt("Ann has a GPA of 2.5.\nBen has a GPA of 3.5.\n\nWho has a GPA above 3?")
    _, cache = decoder.feed([], [], torch.tensor([ids]), 0)
    prefix = [(k[0], v[0]) for k, v in cache]
    openings = [decoder.encode("####Ann:"), decoder.encode("####Benjamin Xu:")]
    together = decoder.greedy(prefix, len(ids), openings, [], 6)
    alone = [decoder.greedy(prefix, len(ids), [o], [], 6)[0] for o in openings]
    assert together == alone


@pytest.mark.parametrize("name", ["list", "roll"])
def test_batches_of_long_lists_have_whole_skeletons(name: str) -> None:
    """A row ends a skeleton (`%%%%`), of one question at least, and fits its bucket."""
    tokenizer = Tokenizer.from_file(str(embedded_model_path() / "tokenizer.json"))
    made = Packer(tokenizer).batch(5, BUCKETS[name])
    (end,) = tokenizer.encode("%%%%", add_special_tokens=False).ids
    titles = (made.kinds == TITLE) & (made.weights > 0)
    for row in range(len(made.tokens)):
        assert ((made.targets[row] == end) & titles[row]).any()
