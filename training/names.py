"""Names of people: from lists, syllables, letters or parts of words; some similar on purpose."""

from __future__ import annotations

import random
import string

from training.words import ENDINGS, FAMILY, FIELDS, GIVEN, NOUNS, PLACES, SYLLABLES

_PIECES = [w.lower() for w in (*GIVEN, *FAMILY, *PLACES, *FIELDS, *NOUNS)]
_HELD_OUT_EVERY = 7


def split_list(words: list[str], held_out: bool) -> list[str]:
    """Return the part of a word list that training (or, if `held_out`, validation) may use."""
    return [w for i, w in enumerate(words) if (i % _HELD_OUT_EVERY == 3) == held_out]


def invented_word(rng: random.Random) -> str:
    """Return a capitalised word, which may be invented."""
    kind = rng.random()
    if kind < 0.5:
        word = "".join(rng.choices(SYLLABLES, k=rng.randint(1, 3)))
        word += rng.choice(ENDINGS) if rng.random() < 0.6 else ""
    elif kind < 0.7:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)))
    else:
        first, second = rng.choice(_PIECES), rng.choice(_PIECES)
        word = first[: rng.randint(1, 5)] + second[-rng.randint(1, 5) :]
    word = word.replace(" ", "")
    if len(word) < 2:
        word += rng.choice("aeiou") + rng.choice("nrstl")
    return word[0].upper() + word[1:]


def _first(rng: random.Random, held_out: bool) -> str:
    if rng.random() < 0.4:
        return rng.choice(split_list(GIVEN, held_out))
    return invented_word(rng)


def _last(rng: random.Random, held_out: bool) -> str:
    word = rng.choice(split_list(FAMILY, held_out)) if rng.random() < 0.4 else invented_word(rng)
    quirk = rng.random()
    if quirk < 0.015:
        return f"O'{word}"
    if quirk < 0.03:
        return f"{word}-{invented_word(rng)}"
    if quirk < 0.04:
        return rng.choice(("van", "de", "von", "da", "bin", "al")) + f" {word}"
    return word


def people(rng: random.Random, count: int, held_out: bool = False) -> list[str]:
    """Return `count` different names; in two calls of five some share a first or a last name."""
    alike = rng.random() < 0.4
    firsts = [_first(rng, held_out) for _ in range(max(1, count // 2 + 1))]
    lasts = [_last(rng, held_out) for _ in range(max(1, count // 2 + 1))]
    names: list[str] = []
    while len(names) < count:
        first = rng.choice(firsts) if alike and rng.random() < 0.5 else _first(rng, held_out)
        last = rng.choice(lasts) if alike and rng.random() < 0.5 else _last(rng, held_out)
        form = rng.random()
        if form < 0.9:
            name = f"{first} {last}"
        elif form < 0.95:
            name = first
        else:
            name = f"{first} {_first(rng, held_out)} {last}"
        if name not in names:
            names.append(name)
    return names
