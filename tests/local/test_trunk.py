"""What of a text is settled, in tokens and in characters."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from langchain_pos.engine.forest.segments import Ledger, SegmentForest
from langchain_pos.engine.tokenization.text import encode_continuation
from langchain_pos.local.own_text import OwnText
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


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", ["is tall.", "汉字", "a", "它很好。"])
def test_the_last_token_is_held_back_and_nothing_lost(name: str, text: str) -> None:
    """It is the lead, which the next text begins with; an unfinished character stays settled."""
    tokenizer = TOKENIZERS[name]()
    trunk = a_trunk(tokenizer)
    trunk.settle(text)
    whole = list(trunk.token_ids)
    lead = trunk.hold_back()
    assert lead == trunk.lead
    assert trunk.token_ids == (whole[:-1] if lead else whole)
    assert tokenizer.decode(trunk.token_ids) + lead == tokenizer.decode(whole)
    one_token = ".。" if name != "metaspace" else "."
    assert bool(lead) == (text[-1] in one_token)


def test_what_must_be_fed_is_not_held_back() -> None:
    """The model has to read something before it writes; white space has nothing to grow into."""
    tokenizer = TOKENIZERS["byte-level"]()
    trunk = a_trunk(tokenizer)
    trunk.token_ids = trunk.token_ids[:1]
    assert trunk.hold_back() == ""
    assert len(trunk.token_ids) == 1
    trunk.settle("Hello\n")
    assert trunk.hold_back() == ""
    trunk.settle("Hello.")
    assert trunk.hold_back(stop=["!", "end."]) == ""
    assert trunk.hold_back(stop=["!"]) == "."


@pytest.mark.parametrize("strip", [True, False])
def test_a_lead_that_is_written_again_is_not_shown(strip: bool) -> None:
    """Wherever the pieces are cut."""
    whole, own = "end.\n\nThat is all.", "That is all." if strip else "\n\nThat is all."
    for size in (1, 2, 3, 5, 50):
        shown: list[str] = []
        text = OwnText("end.", shown.append, strip=strip)
        for at in range(0, len(whole), size):
            text.push(whole[at : at + size])
        assert "".join(shown) == text.of(whole) == own
