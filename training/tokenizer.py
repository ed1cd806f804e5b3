"""The tokenizer: byte-level BPE whose pieces never cross a delimiter.

A capitalised word never absorbs the space before it, and digits are separate tokens. A name is
therefore the same tokens wherever it is written, which makes copying easy. `####`, `%%%%`,
`......`, `:` and the line break are separate pieces: a text cut at any of them has the same tokens
as its parts. They are ordinary vocabulary; only the five markers of the chat template are special.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.families import documents, items, numbers
from training.problems import Problem
from training.students import students

SYSTEM, USER, ASSISTANT, END, PAD = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL = (PAD, END, SYSTEM, USER, ASSISTANT)
VOCABULARY = 2048

_PIECES = r"\n|#{4}|%{4}|\.{6}|\p{N}|\p{Lu}\p{L}*| ?\p{Ll}\p{L}*|\p{L}+| |[^\p{L}\p{N}\s]|\s"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set text = message['content'] | map(attribute='text') | join('') -%}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + text + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def new_tokenizer() -> Tokenizer:
    """Return an untrained tokenizer with the pieces described above."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def problem_text(problem: Problem) -> str:
    """The records, questions and answers of a problem as one text."""
    parts = [problem.head, *problem.records]
    for question in problem.questions:
        parts.append(f"{question.text}\n{question.preamble}\n")
        parts.extend(
            f"####{line.title}:" + "".join(t for t, _ in line.body) for line in question.lines
        )
        parts.append("\n####%%%%\n" + "".join(t for t, _ in question.conclusion))
        parts.append("".join(f"####{line.title}:......\n" for line in question.lines[:2]))
    return "".join(parts)


def _corpus(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for index in range(count):
        family = rng.choices((students, items, documents, numbers), (80, 8, 8, 4))[0]
        size = "full" if index % 3 else "short"
        yield problem_text(family(rng, rng.randint(3, 10), size, 1))


def train_tokenizer(problems: int = 12_000, seed: int = 7) -> Tokenizer:
    """Train on generated problems; takes about a minute."""
    tokenizer = new_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(problems, seed), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
