"""What a model must show before it serves: that it keeps branches apart.

Not every model takes a four-dimensional mask the same way, and what layers with a running state do
with it follows from their code alone. So three short branches in company are compared with the same
branches alone, and siblings' keys, values and states are overwritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from langchain_pos.engine.cache.states import TextState
from langchain_pos.engine.cpu.weight_packing import coarsest_dtype
from langchain_pos.engine.forest.segments import Ledger, Segment
from langchain_pos.engine.forest.slots import PAGE
from langchain_pos.engine.forward.forward_pass import ForwardPass, MaskForm
from langchain_pos.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

_STATE_SLOTS = 1024
"""Slots that a state counts as in a model whose slots take no memory."""


@torch.inference_mode()
def probe(model: PreTrainedModel, form: MaskForm) -> int:
    """Three short branches in company against the same alone, and with siblings overwritten.

    Args:
        model: as for `prepare`, its attention implementation set.
        form: how the model is given its mask.

    Returns:
        bytes that the keys and values of one token take.

    Raises:
        UnsupportedModelError: a branch is not what it is alone.
    """
    forward = ForwardPass(model, mask_form=form)
    generator = torch.Generator().manual_seed(7)
    stranger, prefix, *branches = (
        torch.randint(0, forward.vocabulary, (length,), generator=generator).tolist()
        for length in (PAGE, PAGE, 3, 5, 2)
    )
    forest, ledger = forward.forest, Ledger(expected=1)

    # 1. The prefix lies after strangers, whose slots are then taken by what follows, so that slots
    #    are not in the order of positions, and nothing lies after the prefix. Openings of different
    #    lengths go with the rest of the prefix in one pass; then one more token each.
    #    Four short ones, since a model may know few positions.
    passed_by = [forest.root(Ledger(expected=1)) for _ in range(4)]
    root = forest.root(ledger)
    forward.run([*((one, stranger) for one in passed_by), (root, prefix[:6])], [])
    for one in passed_by:
        forest.release(one)
    if not forward.cache.layers and forward.states.attention:
        raise UnsupportedModelError("the model does not keep its keys and values in the cache")
    children = [forest.fork(root, at=len(prefix)) for _ in branches]
    openings = [(child, branch[:-1]) for child, branch in zip(children, branches, strict=True)]
    forward.run([(root, prefix[6:]), *openings], [])
    last = [(child, branch[-1:]) for child, branch in zip(children, branches, strict=True)]
    company = forward.run(last, range(len(last))).float()
    if forest.extent != root.slots[-1] + 1:
        raise RuntimeError("the probe has lost its sense: slots lie in the order of positions")

    # 2. Each branch alone, by the model's own code without our cache and mask.
    spread = company.std().item()
    allowed = _allowed(model)
    alone = []
    for row, branch in zip(company, branches, strict=True):
        ids = torch.tensor([[*prefix, *branch]], device=forward.device)
        alone.append(model(input_ids=ids, use_cache=False).logits[0, -1].float())
        error = (row - alone[-1]).abs().max().item() / max(spread, 1e-6)
        if not error < allowed:
            raise UnsupportedModelError(
                f"a branch in company differs from the branch alone by {error:.3g} of the "
                f"logits' spread ({allowed} is allowed)"
            )

    # 3. A token far away, which comes later: what is before it may not change. It would where the
    #    frequencies of all positions follow from the largest one; see `engine/rope.py`.
    last_position = (getattr(forward.config, "max_position_embeddings", None) or 0) - 1
    near = torch.arange(len(stranger) + 1, device=forward.device)[None]
    if last_position >= len(stranger):
        ids = torch.tensor([[*stranger, prefix[0]]], device=forward.device)
        far = near.clone()
        far[0, -1] = last_position
        seen = [
            model(input_ids=ids, position_ids=where, use_cache=False).logits[0, -2].float()
            for where in (near, far)
        ]
        error = (seen[1] - seen[0]).abs().max().item() / max(spread, 1e-6)
        if not error < allowed:
            raise UnsupportedModelError(
                f"a token at position {last_position} changes what comes before it by {error:.3g} "
                f"of the logits' spread ({allowed} is allowed): requests of different lengths "
                "would change each other"
            )

    # 4. Siblings overwritten: not one bit of the first branch may change.
    forest.truncate(children[0], children[0].end - 1)
    before = forward.run(last[:1], [0])
    forest.truncate(children[0], children[0].end - 1)
    forward.cache.overwrite([slot for child in children[1:] for slot in child.slots], 3.0)
    _overwrite_states(children[1:], 3.0)
    after = forward.run(last[:1], [0])
    if not torch.equal(before, after):
        raise UnsupportedModelError("a branch changes when its siblings' keys and values change")

    # 5. Where layers keep a state: for one who comes after those that have left, and has guesses
    #    that were wrong; it then goes on to just where they ended.
    if forward.states:
        for child in children[1:]:
            forest.release(child)
        late, opening = forest.fork(root, at=len(prefix)), branches[0]
        forward.run([(late, [*opening[:-1], *stranger[:3]])], [0], [3])
        forest.truncate(late, late.end - 3)
        row = forward.run([(late, [opening[-1], *stranger[3:5]])], [0])[0].float()
        ids = torch.tensor([[*prefix, *opening, *stranger[3:5]]], device=forward.device)
        expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        error = (row - expected).abs().max().item() / max(spread, 1e-6)
        if not error < allowed:
            raise UnsupportedModelError(
                f"a branch differs by {error:.3g} of the logits' spread after wrong guesses, and "
                f"after others have left ({allowed} is allowed): its state is not its own"
            )
    # Without attention a slot costs nothing, and a state as much as many of them.
    return forward.cache.slot_bytes or -(-forward.states.nbytes // _STATE_SLOTS)


def _overwrite_states(segments: Sequence[Segment], value: float) -> None:
    """Set the states that are these segments' own."""
    for segment in segments:
        for at, state in segment.states.items():
            if at > segment.start and isinstance(state, TextState):
                state.overwrite(value)


@torch.inference_mode()
def takes_parts(model: PreTrainedModel, form: MaskForm) -> bool:
    """Whether branches and a stranger get the same logits when they are attended to in parts.

    Not so where a model does more with its mask than to hand it to the attention function.
    """
    forward = ForwardPass(model, mask_form=form)
    forward.least_saved = -(1 << 40)  # in parts, however little that saves
    forest = forward.forest
    generator = torch.Generator().manual_seed(11)
    prefix, stranger, *branches = (
        torch.randint(0, forward.vocabulary, (length,), generator=generator).tolist()
        for length in (33 * PAGE, PAGE + 3, 2, 1, 5)
    )
    root, ledger = forest.root(Ledger()), Ledger()
    forward.run([(root, prefix)], [])
    segments = [*(forest.fork(root) for _ in branches), forest.root(ledger)]
    feeds = list(zip(segments, [*branches, stranger], strict=True))
    logits = []
    for forward.in_parts in (False, True):
        try:
            found = forward.run(feeds, range(len(feeds)))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        logits.append(found.float())
        for segment in segments:
            forest.truncate(segment, segment.start)
    error = (logits[1] - logits[0]).abs().max().item() / max(logits[0].std().item(), 1e-6)
    return error < _allowed(model)


def _allowed(model: PreTrainedModel) -> float:
    """How far logits may be apart that were computed in two ways, as a share of their spread."""
    return 0.02 if coarsest_dtype(model) == torch.float32 else 0.5  # bfloat16 keeps 8 bits
