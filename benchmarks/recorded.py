"""The paper's recorded answers, taken apart, and a tokenizer that cuts text as finely as Qwen's.

There is no Qwen tokenizer without a network, and the shipped model's is made for small models: it
writes the recorded English answers with 1.4 to 1.5 times as many tokens as were recorded, the
Chinese ones with five times as many, which would flatter every way of guessing tokens ahead. So
text is cut by a rule here: at most six letters of a word with the space before it, two Chinese
characters, one digit, one sign; `####`, `%%%%` and the ellipsis whole. That gives 0.99 to 1.06
times the recorded count for each kind of task and model (median over its answers), in parallel and
sequential answers alike; `token_ratio` in the results tells it for the answers replayed. Every
piece of the texts at hand is a token; other text is written in bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from langchain_pos.results.data import BODY_PLACEHOLDER, END_MARK, STEP_MARK

KINDS = {
    "retrieval-10": "logic_gpa_resume_10",
    "retrieval-30": "logic_gpa_resume_30",
    "planning": "industry_tasks",
}
"""Kinds of tasks, and what they are called in the ids of the recorded runs."""

PIECES = (
    r"####|%%%%|\.{6}|\.{3}|[\r\n]+| ?\p{Han}{1,2}| ?[\p{L}&&[^\p{Han}]]{1,6}|\p{N}"
    r"| ?[^\s\p{L}\p{N}]|\s+"
)
"""In the dialect of `tokenizers` (Oniguruma)."""
EOS = "<|im_end|>"


@dataclass(frozen=True)
class Recorded:
    """One recorded answer, in the parts of our three stages.

    Attributes:
        id: of the recorded run.
        prompt: the question.
        preamble: before the first step.
        steps: title and body of each; the body with the white space before it.
        conclusion: what follows the steps.
        sequential: the ordinary answer to the same question.
        parallel_tokens: tokens of the parallel answer, as recorded.
        sequential_tokens: tokens of the ordinary answer, as recorded.
    """

    id: str
    prompt: str
    preamble: str
    steps: tuple[tuple[str, str], ...]
    conclusion: str
    sequential: str
    parallel_tokens: int
    sequential_tokens: int

    @property
    def skeleton(self) -> str:
        """What stage 1 writes."""
        head = f"{self.preamble}\n" if self.preamble else ""
        lines = [f"{STEP_MARK}{title}:{BODY_PLACEHOLDER}\n" for title, _ in self.steps]
        return "".join([head, *lines, END_MARK])

    @property
    def parallel(self) -> str:
        """The answer as one text."""
        lines = [f"{STEP_MARK}{title}:{body}" for title, body in self.steps]
        return "\n".join([self.preamble, *lines, END_MARK, self.conclusion])


def read(folder: Path, kind: str, count: int) -> list[Recorded]:
    """`count` usable answers of a kind, evenly spread over those of both models.

    Args:
        folder: with `paper_transcripts.jsonl`.
        kind: key of `KINDS`.
        count: how many, at most.
    """
    text = (folder / "paper_transcripts.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    found = [take_apart(row) for row in rows if f"/{KINDS[kind]}/" in row["id"]]
    usable = [recorded for recorded in found if recorded is not None]
    # From the middle of each stretch, so that two of them are one of each model.
    places = [(2 * index + 1) * len(usable) // (2 * count) for index in range(count)]
    return [usable[place] for place in sorted(set(places))]


def take_apart(row: dict[str, object]) -> Recorded | None:
    """A row of `paper_transcripts.jsonl` in parts.

    Returns:
        None when our stages could not have written it: the authors' failures, empty bodies,
        titles that occur twice or are none.
    """
    preamble, *parts = str(row["parallel"]).split(STEP_MARK)
    if len(parts) < 3 or not parts[-1].startswith("%%%%"):
        return None
    steps = []
    for part in parts[:-1]:
        title, colon, body = part.partition(":")
        if not colon or not title.strip() or "\n" in title or title[0] in " %*：" or "：" in title:
            return None
        steps.append((title.rstrip(), body.rstrip()))
    titles = {title.casefold() for title, _ in steps}
    conclusion = parts[-1].removeprefix("%%%%").strip()
    whole = conclusion and all(body.strip() for _, body in steps) and len(titles) == len(steps)
    if not whole or "#" in preamble:
        return None
    return Recorded(
        id=str(row["id"]),
        prompt=str(row["prompt"]),
        preamble=preamble.strip(),
        steps=tuple(steps),
        conclusion=conclusion,
        sequential=str(row["sequential"]).strip(),
        parallel_tokens=int(str(row["parallel_tokens"])),
        sequential_tokens=int(str(row["sequential_tokens"])),
    )


def tokenizer_for(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the pieces of `texts`, and all bytes."""
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces = {piece for text in texts for piece, _ in cut.pre_tokenize_str(text)}
    tokens = [EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += sorted(pieces - set(tokens))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def token_ratio(tokenizer: PreTrainedTokenizerFast, answers: Sequence[Recorded]) -> float:
    """Tokens of the answers here, over the tokens that were recorded for them."""
    here = sum(len(encode(tokenizer, a.parallel)) for a in answers)
    here += sum(len(encode(tokenizer, a.sequential)) for a in answers)
    return here / sum(a.parallel_tokens + a.sequential_tokens for a in answers)
