"""The tokenizer: cut at a delimiter, a text has the same tokens as its parts."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from langchain_pos.embedded import embedded_model_path
from training.families import documents, items, numbers
from training.packing import Bucket, Packer
from training.students import students
from training.tokenizer import SPECIAL, problem_text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The shipped tokenizer."""
    return Tokenizer.from_file(str(embedded_model_path() / "tokenizer.json"))


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("family", [students, items, documents, numbers])
def test_an_answer_in_pieces_is_the_answer_as_a_whole(tokenizer: Tokenizer, family) -> None:
    """Cut at the line break, before each `####`, behind each title, at any weight."""
    for seed in range(30):
        for question in family(random.Random(seed), 6, "full", 2).questions:
            pieces = [question.preamble + "\n"]
            for line in question.lines:
                pieces += [f"####{line.title}:", *(text for text, _ in line.body), "\n"]
            pieces += ["####%%%%", "\n", *(text for text, _ in question.conclusion)]
            parts = [token for piece in pieces for token in _ids(tokenizer, piece)]
            assert parts == _ids(tokenizer, "".join(pieces))


def test_a_skeleton_in_pieces_is_the_skeleton_as_a_whole(tokenizer: Tokenizer) -> None:
    """What a grammar forces can be tokenized by itself."""
    whole = "####O'Brien van der Ley:......\n####Ann:......\n####%%%%"
    pieces = [
        "####",
        "O'Brien van der Ley",
        ":",
        "......",
        "\n",
        "####",
        "Ann",
        ":......\n####%%%%",
    ]
    assert [t for p in pieces for t in _ids(tokenizer, p)] == _ids(tokenizer, whole)


def test_delimiters_are_ordinary_text(tokenizer: Tokenizer) -> None:
    """Each delimiter is one vocabulary entry that BPE makes, not a special or added token."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == set(SPECIAL)
    for delimiter in ("####", "%%%%", "......", ":", "\n"):
        assert len(_ids(tokenizer, delimiter)) == 1


def test_names_are_the_same_tokens_wherever_they_stand(tokenizer: Tokenizer) -> None:
    """Behind a space, behind `####` and at the start of a text."""
    for name in ("Lily Wilson", "Jean-Luc Élysée", "Ng Wei", "Xzqv Ooo"):
        ids = _ids(tokenizer, name)
        assert _ids(tokenizer, f"####{name}:")[1:-1] == ids
        assert _ids(tokenizer, f"named {name} is")[-len(ids) - 1 : -1] == ids


def test_any_text_survives_the_round_trip(tokenizer: Tokenizer) -> None:
    """Byte-level: nothing is unknown."""
    text = "Ünï 中文 🙂\t#####%%%%%.......  \r\n" + problem_text(
        students(random.Random(0), 3, "full", 1)
    )
    assert tokenizer.decode(_ids(tokenizer, text)) == text


def test_the_chat_template_takes_systems_histories_and_prompts() -> None:
    """The text format that the package relies on."""
    chat = AutoTokenizer.from_pretrained(embedded_model_path())
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        {"role": "user", "content": "V"},
    ]
    assert chat.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == (
        "<|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|><|user|>V<|end|><|assistant|>"
    )
    assert chat.apply_chat_template(turns[1:2], tokenize=False) == "<|user|>U<|end|>"
    assert (chat.eos_token, chat.pad_token, chat.bos_token) == ("<|end|>", "<|pad|>", None)


def test_batches_depend_on_their_seed_alone(tokenizer: Tokenizer) -> None:
    """Two packers give the same batch for the same seed, whatever they made before."""
    bucket = Bucket(2, 160, 224, (1, 4), ("tiny",))
    first, second = Packer(tokenizer), Packer(tokenizer)
    second.batch(1, bucket)
    one, two = first.batch(5, bucket), second.batch(5, bucket)
    assert (one.tokens == two.tokens).all()
    assert (one.weights == two.weights).all()
