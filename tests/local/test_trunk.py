"""What of a text is settled, in tokens and in characters."""

from __future__ import annotations

import re

import pytest

from langchain_pos.engine.forest.segments import Ledger, Segment
from langchain_pos.engine.tokenization.text import encode_continuation
from langchain_pos.local.trunk import Trunk
from tests.support.scripted import TOKENIZERS

MARK = re.compile("####")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_settled_tokens_and_lead_are_the_text_before_the_mark(name: str) -> None:
    """Nothing of the mark is settled, and nothing before it is lost or doubled."""
    tokenizer = TOKENIZERS[name]()
    trunk = Trunk(tokenizer, Segment(1, 0, Ledger()), encode_continuation(tokenizer, "Q\n"))
    before = len(trunk.token_ids)
    written = encode_continuation(tokenizer, "Hello 汉字.\n####Ann:")
    assert trunk.settle_before(written, MARK) == "Hello 汉字.\n"
    settled = trunk.token_ids[before:]
    assert settled == written[: len(settled)]
    assert tokenizer.decode(encode_continuation(tokenizer, "Q\n") + settled) + trunk.lead == (
        tokenizer.decode(encode_continuation(tokenizer, "Q\nHello 汉字.\n"))
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_that_is_cut_is_not_settled(name: str) -> None:
    """Where a budget ends inside a character, the tokens of its beginning are left out."""
    tokenizer = TOKENIZERS[name]()
    trunk = Trunk(tokenizer, Segment(1, 0, Ledger()), encode_continuation(tokenizer, "Q\n"))
    before = len(trunk.token_ids)
    whole = encode_continuation(tokenizer, "Hello ")
    written = encode_continuation(tokenizer, "Hello 汉")
    assert len(written) > len(whole) + 1, "the tokenizer must write this character in several"
    assert trunk.settle_before(written[:-1], MARK) == "Hello "
    assert trunk.token_ids[before:] == whole
    assert trunk.lead == ""
