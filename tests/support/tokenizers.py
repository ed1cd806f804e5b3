"""Two small tokenizers, trained on the spot: byte-level as GPT-2's, and SentencePiece-like."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS = "<|end|>"

_TEXTS = [
    "####Ann:......\n####Ben:......\n####%%%%\n",
    "The quick brown fox jumps over the lazy dog. Hello world, hello again!",
    '{"name": "Ann", "age": 31, "tags": ["red", "blue"], "ok": true}',
    "人工智能很有用。今天天气很好。",
    "Numbers 0 1 2 3 4 5 6 7 8 9, brackets []{}(), a:b;c, x=y+z*2-1/3 <tag>",
]


@cache
def byte_level(vocabulary: int = 384) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2, Llama 3 and Qwen: every byte is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


@cache
def metaspace(vocabulary: int = 384) -> PreTrainedTokenizerFast:
    """BPE with ▁ for spaces, a space put before the text, and bytes for unknown characters.

    As of Llama 2 and Mistral: converted from SentencePiece.
    """
    pieces = ["<unk>", "<s>", EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    # Words are split for the training alone; the characters are ASCII's, all others are bytes.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary + 128,
        special_tokens=pieces,
        initial_alphabet=["▁", *(chr(code) for code in range(33, 127))],
        show_progress=False,
    )
    texts = [text.replace("\n", " ") for text in _TEXTS * 3 if text.isascii()]
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer makes the bytes special tokens; in real tokenizers they are ordinary ones.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token=EOS
    )
