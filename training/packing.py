r"""Problems packed as forests: one root, several questions forked from it, each with its answers.

    root  <|user|>records
     ├─ question 1 <|end|><|assistant|>preamble\n
     │    ├─ skeleton      ####Ann:......\n####Ben:......\n####%%%%
     │    ├─ branch        ####Ann: GPA 2.45, ..., no\n####
     │    ├─ branch        ####Ben: ...
     │    └─ sequential    ####Ann: ...\n####Ben: ...\n####%%%%\nname: Ben<|end|>
     ├─ question 2 ...
     └─ (apart) bare comparisons, which see only themselves

A slot sees its own segment up to itself, its segment's parent, and the root: the engine's own
rule. Every fork's positions continue where its parent ended. `####` after a fork point is
predicted by the parent's last slot. In some rows the positions jump between records, so that short
texts contain long distances.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.families import documents, items, numbers
from training.names import people
from training.problems import (
    FILLER,
    KEY,
    Line,
    Piece,
    Problem,
    Question,
    check_line,
    choose_range,
    write_number,
)
from training.students import students

ROOT, APART = 0, -2  # parents of a segment: the root, or none at all
NONE, VALUE, YES_NO, TITLE, FINAL = range(5)  # kinds of labelled tokens, for the accuracies
KIND_NAMES = ("other", "value", "verdict", "title", "final")

FAMILIES: dict[str, tuple[Callable[..., Problem], float]] = {
    "students": (students, 0.74),
    "items": (items, 0.10),
    "documents": (documents, 0.09),
    "numbers": (numbers, 0.07),
}


@dataclass(frozen=True)
class Bucket:
    """One static batch shape and the problems for it."""

    rows: int
    root: int
    fork: int
    counts: tuple[int, int]
    sizes: tuple[str, ...]
    sequential: float = 0.4  # share of questions with a sequential answer
    skeleton: float = 0.75  # share of questions with a skeleton


@dataclass
class Batch:
    """Arrays of one batch; `T = root + fork`."""

    tokens: np.ndarray  # (B, T) int64
    positions: np.ndarray  # (B, T) int64
    segments: np.ndarray  # (B, T) int32; 0 is the root, -1 padding
    parents: np.ndarray  # (B, F) int32; the parent segment of each fork slot
    targets: np.ndarray  # (B, F) int64
    weights: np.ndarray  # (B, F) float32
    kinds: np.ndarray  # (B, F) int8
    root: int


@dataclass
class _Segment:
    parent: int
    start: int
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # of predicting ids[i]
    kinds: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)  # added to the positions from here on


class Packer:
    """Turns problems into batches with a given tokenizer; deterministic for a given seed."""

    def __init__(self, tokenizer: Tokenizer, held_out: bool = False) -> None:
        self._encode = functools.lru_cache(maxsize=200_000)(
            lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        )
        self._held_out = held_out
        self._user, self._assistant, self._end, self._system = (
            tokenizer.token_to_id(t) for t in ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>")
        )
        self._pad = tokenizer.token_to_id("<|pad|>")
        (self._hashes,) = self._encode("####")

    # -- segments ---------------------------------------------------------------------------------

    def _add(self, segment: _Segment, text: str, weight: float = 0.0, kind: int = NONE) -> None:
        ids = self._encode(text)
        segment.ids += ids
        segment.weights += [weight] * len(ids)
        segment.kinds += [kind] * len(ids)
        segment.gaps += [0] * len(ids)

    def _special(self, segment: _Segment, token: int, weight: float = 0.0) -> None:
        segment.ids.append(token)
        segment.weights.append(weight)
        segment.kinds.append(NONE)
        segment.gaps.append(0)

    def _question(self, question: Question, start: int) -> _Segment:
        segment = _Segment(ROOT, start)
        self._add(segment, question.text)
        self._special(segment, self._end)
        self._special(segment, self._assistant)
        self._add(segment, question.preamble, 0.6)
        self._add(segment, "\n", FILLER)
        return segment

    def _title(self, segment: _Segment, title: str) -> None:
        first, *rest = self._encode(title)
        segment.ids += [first, *rest]
        segment.weights += [4.0] + [1.0] * len(rest)
        segment.kinds += [TITLE] * (1 + len(rest))
        segment.gaps += [0] * (1 + len(rest))

    def _body(self, segment: _Segment, body: tuple[Piece, ...]) -> None:
        for text, weight in body:
            kind = YES_NO if text in (" yes", " no") else VALUE if weight == KEY else NONE
            self._add(segment, text, weight, kind)
        self._add(segment, "\n", FILLER)
        self._add(segment, "####", FILLER)

    def _branch(self, line: Line, parent: int, start: int, whole: bool) -> _Segment:
        """A belt branch; unless `whole`, it ends after the value: look-ups at half the cost."""
        segment = _Segment(parent, start)
        self._add(segment, f"####{line.title}:")
        if whole:
            self._body(segment, line.body)
            return segment
        for text, weight in line.body:
            if text.startswith(","):
                break
            self._add(segment, text, weight, VALUE if weight == KEY else NONE)
        return segment

    def _skeleton(self, question: Question, parent: int, start: int) -> _Segment:
        segment = _Segment(parent, start)
        self._add(segment, "####")
        for line in question.lines:
            self._title(segment, line.title)
            self._add(segment, ":", 0.5)
            self._add(
                segment, "......"
            )  # forced by the grammar; no weight, or it would compete with the body
            self._add(segment, "\n", 0.1)
            self._add(segment, "####", 0.1)
        self._add(segment, "%%%%", 3.0, TITLE)
        return segment

    def _sequential(
        self, rng: random.Random, question: Question, parent: int, start: int
    ) -> _Segment:
        segment = _Segment(parent, start)
        gaps = rng.random() < 0.2
        self._add(segment, "####")
        for line in question.lines:
            if gaps and rng.random() < 0.15:
                segment.gaps[-1] += rng.randint(1, 400)
            self._title(segment, line.title)
            self._add(segment, ":", 0.5)
            self._body(segment, line.body)
        self._add(segment, "%%%%", 3.0, TITLE)
        self._add(segment, "\n", FILLER)
        for text, weight in question.conclusion:
            self._add(segment, text, weight, FINAL if weight >= 1.0 else NONE)
        self._special(segment, self._end, 2.0)
        return segment

    def _bare(self, rng: random.Random) -> _Segment:
        """A comparison on its own: cheap practice for verdicts, at any position."""
        values = [rng.randint(0, 500) for _ in range(rng.randint(1, 4))]
        style = rng.choice(("short", "full"))
        wanted = choose_range(rng, values, 1, 0, 550, style)
        (name,) = people(rng, 1, self._held_out)
        line = check_line(name, "GPA", write_number(rng.choice(values), style), wanted, 0.15)
        segment = _Segment(APART, rng.randint(0, 3000))
        self._add(segment, f"####{line.title}:")
        known = True
        for text, weight in line.body:
            verdict = text in (" yes", " no")
            known = known and not verdict
            self._add(segment, text, 0.0 if known else weight, YES_NO if verdict else NONE)
            if verdict and rng.random() < 0.7:
                return segment
        self._add(segment, "\n", FILLER)
        self._add(segment, "####", FILLER)
        return segment

    # -- rows -------------------------------------------------------------------------------------

    def _problem(self, rng: random.Random, bucket: Bucket) -> tuple[Problem, list[list[int]]]:
        """Return a problem whose root fits, and the token ids of its head and records."""
        names = list(FAMILIES)
        best: tuple[Problem, list[list[int]]] | None = None
        size, tries = 0, 0
        while best is None or (size < 0.75 * bucket.root and tries < 5):
            tries += 1
            family = rng.choices(names, [FAMILIES[n][1] for n in names])[0]
            count = rng.randint(*bucket.counts)
            if family != "students":
                count = min(count, rng.randint(2, 14))
            problem = FAMILIES[family][0](rng, count, rng.choice(bucket.sizes), 8, self._held_out)
            ids = [self._encode.__wrapped__(text) for text in problem.records]
            head = [self._user, *self._encode(problem.head)]
            if rng.random() < 0.03:
                head = [
                    self._system,
                    *self._encode("You are a helpful assistant."),
                    self._end,
                    *head,
                ]
            length = len(head) + sum(map(len, ids))
            if size < length <= bucket.root:
                best, size = (problem, [head, *ids]), length
                if family != "students":
                    break  # the small families are short; do not reject them for low fill
        return best

    def _row(
        self, rng: random.Random, bucket: Bucket, bare: float
    ) -> tuple[_Segment, list[_Segment]]:
        """Return the root and the forks of one row."""
        problem, parts = self._problem(rng, bucket)
        root = _Segment(ROOT, 0)
        jump = rng.choice((20, 100, 400)) if rng.random() < 0.4 else 0
        for part in parts:
            root.ids += part
            root.gaps += [0] * len(part)
            if jump and rng.random() < 0.6:
                root.gaps[-1] += rng.randint(0, jump)
        end = len(root.ids) + sum(root.gaps)
        forks: list[_Segment] = []
        room = bucket.fork - int(bucket.fork * bare)

        def used() -> int:
            return sum(len(f.ids) for f in forks)

        for question in problem.questions:
            asked = self._question(question, end)
            parent, start = len(forks) + 1, end + len(asked.ids)
            left = room - used() - len(asked.ids)
            if left < 30:
                break
            children: list[_Segment] = []
            if rng.random() < bucket.sequential:
                children.append(self._sequential(rng, question, parent, start))
            if rng.random() < bucket.skeleton:
                children.append(self._skeleton(question, parent, start))
            key = {id(line): line.hit + 0.6 * line.near + rng.random() for line in question.lines}
            belt = sorted(question.lines, key=lambda line: -key[id(line)])
            whole = rng.choice((2, 4, 6))  # the informative ones: hits and near misses come first
            branches = [
                self._branch(line, parent, start, index < whole)
                for index, line in enumerate(belt[: rng.choice((6, 10, 14))])
            ]
            rng.shuffle(branches)
            children += branches
            kept = []
            for child in children:
                if len(child.ids) <= left:
                    kept.append(child)
                    left -= len(child.ids)
            if kept:
                asked.weights.append(FILLER)  # the parent's last slot predicts the forks' "####"
                forks += [asked, *kept]
        while True:
            line = self._bare(rng)
            if used() + len(line.ids) > bucket.fork:
                return root, forks
            forks.append(line)

    def batch(self, seed: int, bucket: Bucket, bare: float = 0.08) -> Batch:
        """Return the batch of a seed; `bare` is the minimum share of bare comparisons."""
        rng = random.Random(seed)
        rows, total = bucket.rows, bucket.root + bucket.fork
        tokens = np.full((rows, total), self._pad, np.int64)
        positions = np.zeros((rows, total), np.int64)
        segments = np.full((rows, total), -1, np.int32)
        parents = np.full((rows, bucket.fork), APART, np.int32)
        targets = np.zeros((rows, bucket.fork), np.int64)
        weights = np.zeros((rows, bucket.fork), np.float32)
        kinds = np.zeros((rows, bucket.fork), np.int8)
        for row in range(rows):
            root, forks = self._row(rng, bucket, bare)
            n = len(root.ids)
            tokens[row, :n] = root.ids
            # A gap after token i moves every later token.
            positions[row, :n] = np.arange(n) + np.cumsum([0, *root.gaps[:-1]])
            segments[row, :n] = ROOT
            at = 0
            for index, fork in enumerate(forks, start=1):
                n = len(fork.ids)
                here = slice(bucket.root + at, bucket.root + at + n)
                tokens[row, here] = fork.ids
                positions[row, here] = fork.start + np.arange(n) + np.cumsum([0, *fork.gaps[:-1]])
                segments[row, here] = index
                parents[row, at : at + n] = fork.parent
                targets[row, at : at + n - 1] = fork.ids[1:]
                weights[row, at : at + n - 1] = fork.weights[1:n]
                kinds[row, at : at + n - 1] = fork.kinds[1:]
                if len(fork.weights) > n:
                    targets[row, at + n - 1] = self._hashes
                    weights[row, at + n - 1] = fork.weights[n]
                at += n
        return Batch(tokens, positions, segments, parents, targets, weights, kinds, bucket.root)


def fork_mask(segments: Tensor, parents: Tensor, root: int, dtype: torch.dtype) -> Tensor:
    """Return the additive mask of the fork slots.

    Args:
        segments: `(B, T)` int, segment of every slot.
        parents: `(B, F)` int, parent segment of every fork slot (`ROOT`, or `APART`).
        root: `R`, where the fork slots begin.
        dtype: of the result.

    Returns:
        `(B, 1, F, T)`: 0 for slots that a fork slot may see, minus infinity elsewhere.
    """
    total, fork = segments.shape[1], parents.shape[1]
    own, keys = segments[:, root:, None], segments[:, None, :]
    slots = torch.arange(total, device=segments.device)
    earlier = slots[None, None, :] <= slots[root:][None, :, None]
    up = parents[:, :, None]
    seen = ((own == keys) & earlier) | (keys == up) | ((keys == ROOT) & (up != APART))
    mask = torch.zeros(segments.shape[0], 1, fork, total, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~seen[:, None], float("-inf"))
