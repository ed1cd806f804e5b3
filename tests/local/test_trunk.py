"""What of a text is settled, in tokens and in characters."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from langchain_pos.engine.forest.segments import Ledger, SegmentForest
from langchain_pos.engine.tokenization.text import encode_continuation
from langchain_pos.local.trunk import LocalTrunk
from langchain_pos.reasoning.decoder import Written
from tests.support.scripted import TOKENIZERS


def a_trunk(tokenizer: PreTrainedTokenizerBase) -> LocalTrunk:
    """A trunk that holds a question, of which nothing is fed."""
    forest = SegmentForest(torch.device("cpu"))
    root = forest.root(Ledger())
    return LocalTrunk(tokenizer, forest, root, encode_continuation(tokenizer, "Q\n"))


def written_as(text: str, token_ids: list[int], where: int) -> Written:
    """What a decoder says of tokens that it has written after the trunk."""
    return Written(text, text, "stop", token_ids=tuple(token_ids), where=where)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_settled_tokens_and_lead_are_the_text_before_the_mark(name: str) -> None:
    """Nothing of the mark is settled, and nothing before it is lost or doubled."""
    tokenizer = TOKENIZERS[name]()
    trunk = a_trunk(tokenizer)
    before = len(trunk.token_ids)
    written = encode_continuation(tokenizer, "Hello 汉字.\n####Ann:")
    text = "Hello 汉字.\n"
    trunk.keep(written_as(text + "####Ann:", written, before), len(text))
    settled = trunk.token_ids[before:]
    assert settled == written[: len(settled)]
    assert tokenizer.decode(encode_continuation(tokenizer, "Q\n") + settled) + trunk.lead == (
        tokenizer.decode(encode_continuation(tokenizer, "Q\nHello 汉字.\n"))
    )


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_that_is_cut_is_not_settled(name: str) -> None:
    """Where a budget ends inside a character, the tokens of its beginning are left out."""
    tokenizer = TOKENIZERS[name]()
    trunk = a_trunk(tokenizer)
    before = len(trunk.token_ids)
    whole = encode_continuation(tokenizer, "Hello ")
    written = encode_continuation(tokenizer, "Hello 汉")
    assert len(written) > len(whole) + 1, "the tokenizer must write this character in several"
    trunk.keep(written_as("Hello ", written[:-1], before), len("Hello "))
    assert trunk.token_ids[before:] == whole
    assert trunk.lead == ""
