"""The structure of a generated problem, and the parts shared by all families.

A problem is a list of records and any number of questions about them. A question has its whole
answer as weighted pieces of text: the preamble, one line for each step, and the conclusion.
Weights scale the loss of a piece; answers are correct by construction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

Piece = tuple[str, float]

FILLER = 0.3  # words that are always the same
COPY = 1.0  # text copied from the prompt
KEY = 2.0  # the first character of a copied value: the look-up itself
VERDICT = 4.0  # yes or no
NEAR_VERDICT = 5.0  # ... close to a bound
ANSWER = 3.0  # the final answer


@dataclass(frozen=True)
class Line:
    """One step of an answer: `####{title}:{body}`."""

    title: str
    body: tuple[Piece, ...]
    hit: bool = False
    near: bool = False


@dataclass(frozen=True)
class Question:
    """A question after the records, with its answer."""

    text: str
    preamble: str
    lines: tuple[Line, ...]
    conclusion: tuple[Piece, ...]


@dataclass(frozen=True)
class Problem:
    """Records (`head` and `records` are the shared text) and questions about them."""

    family: str
    head: str
    records: tuple[str, ...]
    questions: tuple[Question, ...] = field(repr=False)


@dataclass(frozen=True)
class Range:
    """The condition: a value above `low`, below `high`, or between the two, as written."""

    low: str | None
    high: str | None

    def holds(self, value: str) -> bool:
        """Whether a written value meets the condition."""
        number = float(value)
        return (self.low is None or number > float(self.low)) and (
            self.high is None or number < float(self.high)
        )

    @property
    def text(self) -> str:
        """The wording in an answer."""
        if self.low is None:
            return f"under {self.high}"
        if self.high is None:
            return f"over {self.low}"
        return f"{self.low} to {self.high}"

    def near(self, value: str, margin: float) -> bool:
        """Whether a written value lies within `margin` of a bound."""
        bounds = [float(b) for b in (self.low, self.high) if b is not None]
        return any(abs(float(value) - bound) <= margin for bound in bounds)


def write_number(hundredths: int, style: str) -> str:
    """Write hundredths: "short" drops a last zero (4.1), "full" keeps it, "whole" drops both."""
    if style == "whole":
        return str(hundredths // 100)
    text = f"{hundredths // 100}.{hundredths % 100:02d}"
    return text[:-1] if style == "short" and text.endswith("0") else text


def choose_range(
    rng: random.Random, values: Sequence[int], step: int, low: int, high: int, style: str
) -> Range:
    """Choose bounds around the values (in hundredths) that no value equals.

    Six in ten contain exactly one value, three in ten about half of them, the rest none; bounds
    are often close to a value on the other side, so that the comparison cannot be guessed.
    """
    taken = set(values)
    ordered = sorted(taken)

    def free(value: int) -> int:
        value = min(max(value, low), high) // step * step
        while value in taken:
            value += step
        return value

    kind = rng.random()
    reach = rng.choice((3, 10, 30, 60, 120)) * step
    pick = rng.randrange(len(ordered))
    last = pick
    if kind > 0.6:
        last = min(len(ordered) - 1, pick + rng.randint(0, max(1, len(ordered) * 2 // 3)))
    below = ordered[pick - 1] if pick else max(low, ordered[0] - reach)
    above = ordered[last + 1] if last + 1 < len(ordered) else min(high, ordered[-1] + reach)
    if rng.random() < 0.5:
        start = max(below + step, ordered[pick] - rng.randint(1, 12) * step)
        stop = min(above - step, ordered[last] + rng.randint(1, 12) * step)
    else:
        start = max(below + step, ordered[pick] - rng.randint(1, reach))
        stop = min(above - step, ordered[last] + rng.randint(1, reach))
    if kind > 0.92:  # a gap without values, next to one
        start = ordered[pick] + rng.randint(1, 10) * step
        stop = start + rng.randint(1, 30) * step
    start, stop = free(start), free(stop)
    if stop <= start:
        stop = free(start + step)
    form = rng.random()
    if form < 0.1:
        return Range(None, write_number(stop, style))
    if form < 0.2:
        return Range(write_number(start, style), None)
    return Range(write_number(start, style), write_number(stop, style))


def number_pieces(text: str, weight: float = COPY) -> tuple[Piece, ...]:
    """A copied number: its first digit is the look-up, the rest follows."""
    return (
        ((text[0], KEY * weight), (text[1:], weight)) if len(text) > 1 else ((text, KEY * weight),)
    )


def check_line(title: str, label: str, value: str, wanted: Range, margin: float) -> Line:
    """A line that looks up a value, restates the condition next to it, and says yes or no."""
    hit, near = wanted.holds(value), wanted.near(value, margin)
    weight = NEAR_VERDICT if near else VERDICT
    body: list[Piece] = [
        (f" {label}", FILLER),
        (" ", FILLER),
        *number_pieces(value),
        (", wanted", FILLER),
        (f" {wanted.text}", 0.5),
        (",", FILLER),
        (" yes" if hit else " no", weight),
    ]
    if hit:
        body += [(": ", COPY), (title, COPY)]
    return Line(title, tuple(body), hit, near)


def conclude(key: str, lines: Sequence[Line]) -> tuple[Piece, ...]:
    """`key: title, title` from the lines that say yes, or `key: none`."""
    titles = [line.title for line in lines if line.hit]
    if not titles:
        return ((f"{key}:", 0.5), (" none", ANSWER * 1.5))
    pieces: list[Piece] = [(f"{key}:", 0.5), (" ", ANSWER)]
    for index, title in enumerate(titles):
        if index:
            pieces += [(",", ANSWER), (" ", FILLER)]
        first, *rest = title.split(" ")
        pieces.append((first, ANSWER))
        if rest:
            pieces.append((" " + " ".join(rest), COPY))
    return tuple(pieces)


def ask_format(rng: random.Random, key: str, noun: str) -> str:
    """The question's request for a format of the final answer; some questions have none."""
    return rng.choice(
        (
            f' Please give your final answer (the {noun}) in the format of "{key}: {{answer}}"',
            f' Please give your final answer (the {noun}) in the format of "{key}: {{answer}}".',
            f' Give the final answer in the format of "{key}: {{answer}}".',
            f' Answer in the form "{key}: {{answer}}".',
            f' End with "{key}: {{answer}}".',
        )
    )
