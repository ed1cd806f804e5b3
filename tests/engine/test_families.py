"""Every family through its own code in transformers: a branch in company is the branch alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import pytest
from transformers import PreTrainedModel

from langchain_pos.engine import Engine
from langchain_pos.engine.attention import FOLDED
from langchain_pos.errors import UnsupportedModelError
from tests.support.families import REFUSED, SUPPORTED, WINDOW, Family
from tests.support.family_table import COLUMNS
from tests.support.tiny import greedy_reference, ids
from tests.support.tokenizers import byte_level

PROMPT = ids(17, seed=1)
OPENINGS = [ids(length, seed=length) for length in (3, 1, 5, 2, 4)]
TOKENS = 10
assert len(PROMPT) > 2 * WINDOW


@lru_cache(maxsize=2)
def expected(name: str) -> tuple[PreTrainedModel, str, list[list[int]]]:
    """The model, its own attention, and what `generate` writes after prompt and branches."""
    family = next(family for family in SUPPORTED if family.name == name)
    model = family.model()
    texts = [greedy_reference(model, PROMPT + opening, TOKENS) for opening in ([], *OPENINGS)]
    return model, model.config._attn_implementation, texts


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.name)
def test_branches_are_what_they_are_alone(
    family: Family, column: str, record_property: Callable[[str, object], None]
) -> None:
    """One sequence, branches in company, refilled or alone: all are transformers' greedy text."""
    record_property("family", family.name)
    record_property("column", column)
    model, own, (solo, *branches) = expected(family.name)
    model.set_attn_implementation(own)
    if column == "sdpa" and family.eager_only:
        with pytest.raises(UnsupportedModelError, match="does not support an attention"):
            Engine(model, byte_level(), attn_implementation="sdpa")
        record_property("served_by", "none")
        return
    engine = Engine(model, byte_level(), attn_implementation=column)
    engine.eos_token_ids = frozenset()
    used = model.config._attn_implementation
    record_property("served_by", "folded" if used == FOLDED else used)
    assert len(set(solo)) > 2, "a degenerate model shows nothing"

    assert list(engine.generate(PROMPT, max_new_tokens=TOKENS).token_ids) == solo
    for max_parallel in (None, 2):
        done = engine.decode_branches(
            PROMPT, OPENINGS, max_new_tokens=TOKENS, max_parallel=max_parallel
        )
        assert [list(branch.token_ids) for branch in done] == branches
    for opening, branch in zip(OPENINGS[:2], branches[:2], strict=True):
        alone = engine.generate(PROMPT + opening, max_new_tokens=TOKENS)
        assert list(alone.token_ids) == branch
    assert engine.slots_in_use == 0


@pytest.mark.parametrize(
    ("family", "reason"), REFUSED, ids=lambda value: getattr(value, "name", "")
)
def test_what_no_mask_isolates_is_refused(
    family: Family, reason: str, record_property: Callable[[str, object], None]
) -> None:
    """A model whose branches would leak is refused with the reason, and left as it was."""
    record_property("family", family.name)
    record_property("column", "refused")
    model = family.model()
    own = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        Engine(model, byte_level())
    assert family.model_type in str(caught.value)
    assert model.config._attn_implementation == own
    said = re.search(f"layers of type [^:]*|{reason}", str(caught.value))
    record_property("served_by", said[0] if said else "")
