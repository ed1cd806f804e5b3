"""Tokens to text and back: pieces add up, stop sequences are found, plain text stays plain."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import BertTokenizer, PreTrainedTokenizerFast

from langchain_pos.engine.tokenization.text import (
    TextStream,
    backend,
    encode_continuation,
    encode_text,
)
from langchain_pos.errors import InvalidRequestError, UnsupportedModelError
from tests.support.tokenizers import EOS, byte_level, metaspace

TOKENIZERS = [byte_level(), metaspace()]
both = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["byte_level", "metaspace"])

texts = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab# \n:.%{}\"'"),
        st.sampled_from("人工智能é😀\u0301ß天"),
        st.characters(codec="utf-8"),
    ),
    max_size=12,
).filter(lambda text: "\ufffd" not in text and text.isprintable() | ("\n" in text))


def streamed(
    tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int], context: Sequence[int] = ()
) -> list[str]:
    """The piece of text of each token."""
    stream = TextStream(tokenizer, context)
    return [stream.decode(token_id) for token_id in token_ids]


@both
@given(before=texts, text=texts)
def test_continuation_is_the_text_behind_other_text(
    tokenizer: PreTrainedTokenizerFast, before: str, text: str
) -> None:
    """Behind any text, a continuation's tokens decode to exactly the continuation."""
    context = encode_text(tokenizer, before)
    assume(before)
    tokens = encode_continuation(tokenizer, text)
    assert tokenizer.decode([*context, *tokens]) == before + text
    assert (tokens == []) == (text == "")


@both
@given(before=texts, text=texts)
def test_pieces_add_up_to_the_text(
    tokenizer: PreTrainedTokenizerFast, before: str, text: str
) -> None:
    """Token by token, the pieces are what the whole decodes to, and each is whole characters."""
    context, tokens = encode_text(tokenizer, before), encode_continuation(tokenizer, text)
    assume(before)
    pieces = streamed(tokenizer, tokens, context)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@both
@given(data=st.data())
def test_random_tokens_lose_nothing_but_broken_characters(
    tokenizer: PreTrainedTokenizerFast, data: st.DataObject
) -> None:
    """Whatever a random model writes, nothing raises, and what is readable is all there."""
    anything = st.lists(st.integers(3, len(tokenizer) - 1), max_size=25)
    context, tokens = encode_text(tokenizer, "Hello"), data.draw(anything)
    whole = tokenizer.decode([*context, *tokens], skip_special_tokens=True)
    got = "Hello" + "".join(streamed(tokenizer, tokens, context))
    if "\ufffd" not in whole:
        assert got == whole
    elif tokenizer is TOKENIZERS[0]:
        assert got.replace("\ufffd", "") == whole.replace("\ufffd", "")
    tail = encode_continuation(tokenizer, " and a clean end")
    assert "".join(streamed(tokenizer, [*tokens, *tail], context)).endswith("and a clean end")


@both
@pytest.mark.parametrize("text", ["人工智能", "a人b工c", "😀👍🏽", "é\u0301", "naïve 天气"])
def test_characters_over_several_tokens_come_when_they_are_whole(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    """No piece holds half a character, and every character comes with its last byte."""
    single = [
        token
        for byte in text.encode()
        for token in [tokenizer.convert_tokens_to_ids(byte_token(tokenizer, byte))]
    ]
    context = encode_text(tokenizer, "x")
    stream = TextStream(tokenizer, context)
    pieces, unfinished = [], []
    for token in single:
        pieces.append(stream.decode(token))
        unfinished.append(stream.unfinished)
    assert [piece for piece in pieces if piece] == list(text)
    assert [not piece for piece in pieces] == unfinished


def byte_token(tokenizer: PreTrainedTokenizerFast, byte: int) -> str:
    """How the tokenizer spells the token of one byte."""
    if tokenizer is TOKENIZERS[1]:
        return chr(byte) if 33 <= byte < 127 else f"<0x{byte:02X}>" if byte != 32 else "▁"
    (token,) = [
        t for t, i in tokenizer.get_vocab().items() if i == BYTES_OF_BYTE_LEVEL[byte] and t != EOS
    ]
    return token


def _byte_level_ids() -> dict[int, int]:
    """The id of each single byte: found by decoding, not by knowing the alphabet."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = TOKENIZERS[0].get_vocab()
    return {byte: vocabulary[char] for byte, char in bytes_to_unicode().items()}


BYTES_OF_BYTE_LEVEL = _byte_level_ids()


def test_special_tokens_are_no_text() -> None:
    """A special token adds nothing, and the word after it keeps its space."""
    tokenizer = metaspace()
    hello = tokenizer.convert_tokens_to_ids("▁hello")
    pieces = streamed(tokenizer, [hello, 1, hello, 1, 1, hello], encode_text(tokenizer, "a"))
    assert pieces == [" hello", "", " hello", "", "", " hello"]


@both
@pytest.mark.parametrize("spelling", [EOS, "<s>", "<unk>", f"a{EOS}b", f" {EOS}", "<0x41>"])
def test_special_tokens_in_text_stay_text(
    tokenizer: PreTrainedTokenizerFast, spelling: str
) -> None:
    """What a user writes never becomes a special token, neither as text nor as continuation."""
    special = set(tokenizer.all_special_ids)
    for encode in (encode_text, encode_continuation):
        tokens = encode(tokenizer, spelling)
        assert special.isdisjoint(tokens)
        behind = [*encode_text(tokenizer, "x"), *tokens]
        assert tokenizer.decode(behind, skip_special_tokens=True).strip().endswith(spelling.strip())
    # The tokenizer itself is left as it was.
    assert tokenizer(EOS, add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_half_a_character_is_refused() -> None:
    """A lone surrogate is no text; the error says so, in words of ours."""
    with pytest.raises(InvalidRequestError, match="U\\+D83D"):
        encode_text(byte_level(), "a\ud83d")
    with pytest.raises(InvalidRequestError):
        encode_continuation(metaspace(), "\ude00")


def test_encoding_leaves_other_threads_special_tokens_alone() -> None:
    """While one thread encodes plain text, another's special tokens stay special."""
    tokenizer, wrong, stop = byte_level(), [], threading.Event()

    def template() -> None:
        while not stop.is_set():
            encoded = tokenizer(EOS + "a", add_special_tokens=False)["input_ids"]
            if encoded[0] != tokenizer.eos_token_id:
                wrong.append(encoded)

    thread = threading.Thread(target=template)
    thread.start()
    for _ in range(2000):
        assert encode_text(tokenizer, EOS)[0] != tokenizer.eos_token_id
    stop.set()
    thread.join()
    assert not wrong


def test_tokens_added_later_are_known() -> None:
    """A tokenizer that grows is encoded with as it is now."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(385).backend_tokenizer)
    before = encode_text(tokenizer, "<tool>")
    tokenizer.add_tokens(["<tool>"])
    assert len(before) > 1
    assert encode_text(tokenizer, "<tool>") == [tokenizer.convert_tokens_to_ids("<tool>")]


def test_python_tokenizers_are_refused() -> None:
    """A tokenizer without a fast backend is refused with the remedy."""

    class Slow(BertTokenizer):
        backend_tokenizer = None

    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.json.*Convert"):
        backend(Slow.__new__(Slow))


def obvious(pieces: Sequence[str], stops: Sequence[str], strip: bool) -> tuple[str, str | None]:
    """The text and the stop sequence, computed from whole strings."""
    whole, stopped = "", None
    for piece in pieces:
        whole += piece
        found = [(whole.find(stop), stop) for stop in stops if stop in whole]
        if found:
            at, stopped = min(found)
            whole = whole[:at]
            break
    return (whole.strip() if strip else whole), stopped


@given(
    pieces=st.lists(st.text("ab#\n ", max_size=4), max_size=12),
    stops=st.lists(st.text("ab#\n ", min_size=1, max_size=4), max_size=3),
    strip=st.booleans(),
)
def test_stream_equals_the_whole_string(pieces: list[str], stops: list[str], strip: bool) -> None:
    """However text is cut into pieces: emitted pieces add up to it, cut before the first stop."""
    stream = TextStream(TOKENIZERS[0], stop=stops, strip=strip)
    emitted = ""
    for piece in pieces:
        emitted += stream.push(piece)
        assert emitted == stream.text
        if stream.stopped is not None:
            break
    emitted += stream.flush()
    assert (emitted, stream.stopped) == obvious(pieces, stops, strip)
    assert stream.text == emitted
    assert stream.push("more") == "" or stream.stopped is None


@given(stop=st.text("ab", min_size=1, max_size=4), text=st.text("ab#", max_size=15))
def test_nothing_is_held_back_without_need(stop: str, text: str) -> None:
    """What can no longer become a stop sequence is out at once."""
    assume(stop not in text)
    stream = TextStream(TOKENIZERS[0], stop=[stop])
    for character in text:
        stream.push(character)
    held = text.removeprefix(stream.text)
    assert stop.startswith(held)
    longest = max(n for n in range(len(stop)) if text.endswith(stop[:n]) or n == 0)
    assert len(held) == longest


@both
def test_stop_sequences_over_several_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """A stop sequence is found whichever tokens it is spelled with."""
    for text in ("Ann is 31.\n####Ben", "Ann is 31.####", "Ann is 31.\n#\n####"):
        tokens = encode_continuation(tokenizer, text)
        stream = TextStream(tokenizer, encode_text(tokenizer, "x"), ["####"], strip=True)
        emitted = "".join(stream.push(stream.decode(token)) for token in tokens)
        assert emitted + stream.flush() == text.partition("####")[0].strip()
        assert stream.stopped == "####"
