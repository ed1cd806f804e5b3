"""The three smaller families: items and prices, documents and facts, numbers and divisibility."""

from __future__ import annotations

import random

from training import words
from training.names import invented_word, split_list
from training.problems import (
    COPY,
    FILLER,
    KEY,
    VERDICT,
    Line,
    Piece,
    Problem,
    Question,
    ask_format,
    check_line,
    choose_range,
    conclude,
    write_number,
)


def _distinct(rng: random.Random, count: int, make: object) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        text = make()  # type: ignore[operator]
        if text not in found:
            found.append(text)
    return found


def items(
    rng: random.Random, count: int, size: str, questions: int, held_out: bool = False
) -> Problem:
    """Items with prices; questions ask which of them fit a budget."""
    kinds, things = split_list(words.KINDS, held_out), split_list(words.THINGS, held_out)

    def name() -> str:
        first = rng.choice(kinds) if rng.random() < 0.7 else invented_word(rng)
        second = rng.choice(things) if rng.random() < 0.8 else invented_word(rng)
        return f"{first} {second}"

    names = _distinct(rng, count, name)
    top = rng.choice((2_000, 6_000, 10_000, 40_000))
    style = rng.choice(("full", "full", "whole"))
    prices = [rng.randint(max(200, top // 20), top) for _ in names]
    if style == "whole":
        prices = [p // 100 * 100 for p in prices]
    form = rng.choice(
        (
            "{name}: ${price}",
            "The {name} costs ${price}.",
            "{name} - ${price}",
            "Item: {name}. Price: ${price}. Made in {place}.",
            "The {name} from {place} is sold for ${price} and comes in {colour}.",
        )
    )
    if size == "tiny":
        form = rng.choice(("{name}: ${price}", "The {name} costs ${price}."))
    records = [
        form.format(
            name=n,
            price=write_number(p, style),
            place=rng.choice(words.PLACES),
            colour=rng.choice(words.COLOURS),
        )
        for n, p in zip(names, prices, strict=True)
    ]
    records = [r + "\n" for r in records[:-1]] + records[-1:]
    asked = []
    for _ in range(questions):
        wanted = choose_range(rng, prices, 100 if style == "whole" else 1, 0, top + 3000, style)
        lines = tuple(
            check_line(n, "price", write_number(p, style), wanted, top / 4000)
            for n, p in zip(names, prices, strict=True)
        )
        if wanted.low is None:
            text = rng.choice(
                (
                    f"Which items cost less than ${wanted.high}?",
                    f"Which items are under ${wanted.high}?",
                    f"My budget is just under ${wanted.high}. Which items can I buy?",
                    f"I want to spend less than ${wanted.high}. What can I afford?",
                )
            )
        elif wanted.high is None:
            text = rng.choice(
                (
                    f"Which items cost more than ${wanted.low}?",
                    f"Which items are over ${wanted.low}?",
                )
            )
        else:
            text = rng.choice(
                (
                    f"Which items cost between ${wanted.low} and ${wanted.high}?",
                    f"Which item has a price between ${wanted.low} and ${wanted.high}?",
                    f"My budget is ${wanted.low} to ${wanted.high}. Which items fit?",
                )
            )
        key = rng.choice(("item", "items", "answer", "name"))
        ask = ask_format(rng, key, "item's name") if rng.random() < 0.75 else ""
        asked.append(
            Question(
                f"\n\nQuestion: {text}{ask}",
                f"I check the price of each item, wanted {wanted.text}.",
                lines,
                conclude(key if ask else "items", lines),
            )
        )
    head = rng.choice(
        (f"Here are {count} items and their prices:\n\n", "Price list:\n", "Items for sale:\n\n")
    )
    return Problem("items", head, tuple(records), tuple(asked))


_FACTS = (
    ("colour", words.COLOURS, "The door is {}.", "The {} door is well known."),
    ("animal", words.ANIMALS, "A {} lives there.", "Its sign shows a {}."),
    ("crop", words.CROPS, "The people grow {}.", "It is famous for its {}."),
    ("year", None, "It was built in {}.", "Its history began in {}."),
)


def documents(
    rng: random.Random, count: int, size: str, questions: int, held_out: bool = False
) -> Problem:
    """Short documents with facts; questions ask for a fact of each, or which of them has it."""
    if rng.random() < 0.4:
        titles = [f"Document {i + 1}" for i in range(count)]
    else:
        sites, papers = split_list(words.SITES, held_out), split_list(words.PAPERS, held_out)
        titles = _distinct(
            rng,
            count,
            lambda: (
                (rng.choice(sites) if rng.random() < 0.5 else invented_word(rng))
                + f" {rng.choice(papers)}"
            ),
        )
    kinds = rng.sample(_FACTS, 1 if size == "tiny" else 2 if size == "short" else 3)
    values: list[dict[str, str]] = []
    records = []
    for title in titles:
        facts = {
            label: str(rng.randint(1200, 2020)) if group is None else rng.choice(group)
            for label, group, *_ in kinds
        }
        values.append(facts)
        said = [rng.choice(forms).format(facts[label]) for label, _, *forms in kinds]
        place = invented_word(rng)
        opening = rng.choice(
            (f"This is about {place}.", f"{place} is a {rng.choice(words.ADJECTIVES)} place.")
        )
        if size != "tiny":
            said.insert(0, opening)
        records.append(f"{title}: {' '.join(said)}\n")
    records[-1] = records[-1][:-1]
    asked = []
    for _ in range(questions):
        label = rng.choice(kinds)[0]
        found = [facts[label] for facts in values]
        if rng.random() < 0.45:
            lines = tuple(
                Line(t, ((f" {label}", FILLER), (" ", FILLER), (v[0], KEY), (v[1:], COPY)))
                if label == "year"
                else Line(t, ((f" {label}", FILLER), (f" {v}", KEY)))
                for t, v in zip(titles, found, strict=True)
            )
            text = f"\n\nQuestion: Which {label} does each document name?"
            pieces: list[Piece] = [("answer:", 0.5)]
            for index, (t, v) in enumerate(zip(titles, found, strict=True)):
                pieces += [(", " if index else " ", FILLER), (t, COPY), (f" {v}", COPY)]
            preamble = f"I look up the {label} in each document."
            asked.append(Question(text, preamble, lines, tuple(pieces)))
            continue
        target = rng.choice(found)
        matches = []
        for t, v in zip(titles, found, strict=True):
            hit = v == target
            copied: tuple[Piece, ...] = ((f" {v}", KEY),)
            if label == "year":
                copied = ((" ", FILLER), (v[0], KEY), (v[1:], COPY))
            body: tuple[Piece, ...] = (
                (f" {label}", FILLER),
                *copied,
                (", wanted", FILLER),
                (f" {target}", 0.5),
                (",", FILLER),
                (" yes" if hit else " no", VERDICT),
            )
            matches.append(Line(t, (*body, (": ", COPY), (t, COPY)) if hit else body, hit, hit))
        key = rng.choice(("document", "documents", "answer", "title"))
        ask = ask_format(rng, key, "document's title") if rng.random() < 0.75 else ""
        text = rng.choice(
            (
                f"Which document names the {label} {target}?",
                f"Which documents name the {label} {target}?",
                f"In which document is the {label} {target}?",
            )
        )
        asked.append(
            Question(
                f"\n\nQuestion: {text}{ask}",
                f"I check the {label} in each document, wanted {target}.",
                tuple(matches),
                conclude(key if ask else "document", matches),
            )
        )
    head = rng.choice(
        (f"Here are {count} documents:\n\n", "Documents:\n\n", f"Read these {count} documents.\n\n")
    )
    return Problem("documents", head, tuple(records), tuple(asked))


def numbers(
    rng: random.Random, count: int, size: str, questions: int, held_out: bool = False
) -> Problem:
    """Whole numbers below a thousand; questions ask which are divisible by 2, 3, 5, 9 or 10."""
    del size, held_out
    top = rng.choice((99, 999))
    shown = [str(n) for n in rng.sample(range(10, top + 1), count)]
    asked = []
    for _ in range(questions):
        divisor = rng.choice((2, 3, 3, 5, 9, 10))
        by_sum = divisor in (3, 9)
        lines = []
        for n in shown:
            hit = int(n) % divisor == 0
            value = str(sum(map(int, n))) if by_sum else n[-1]
            body: list[Piece] = [
                (" digit sum " if by_sum else " last digit ", FILLER),
                (value, KEY),
                (f", divisor {divisor},", FILLER),
                (" yes" if hit else " no", VERDICT),
            ]
            if hit:
                body += [(": ", COPY), (n, COPY)]
            lines.append(Line(n, tuple(body), hit, hit))
        key = rng.choice(("numbers", "numbers", "number", "answer"))
        ask = ask_format(rng, key, "numbers") if rng.random() < 0.75 else ""
        text = rng.choice(
            (
                f"Which of the numbers are divisible by {divisor}?",
                f"Which numbers can be divided by {divisor}?",
                f"Which of these numbers are multiples of {divisor}?",
                f"Find the numbers divisible by {divisor}.",
            )
        )
        asked.append(
            Question(
                f"\n\nQuestion: {text}{ask}",
                f"I check whether each number is divisible by {divisor}.",
                tuple(lines),
                conclude(key if ask else "numbers", lines),
            )
        )
    head = rng.choice(("Here are some numbers: ", "Numbers: ", f"Here are {count} numbers:\n"))
    records = [f"{n}, " for n in shown[:-1]] + [f"{shown[-1]}."]
    return Problem("numbers", head, tuple(records), tuple(asked))
