"""Guesses the next titles of a skeleton from the pattern of the records in the question.

    The student named Ann Lee is 21 years old …
    The student named Ben Ray is 24 years old …

Once two titles are known, what stands around both of them, `named ` before and ` is ` after, finds
the same place in the records that follow. A guess costs nothing when it is wrong (the model's own
choice is taken) and a forward pass for each of its tokens when it is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import takewhile

_LONGEST_TITLE = 120
_LEAST_LEFT = 3
_AROUND = 24
_LOOKED_AT = 4


def next_titles(text: str, titles: Sequence[str], most: int) -> list[str]:
    r"""Titles that would go on with the pattern.

    Args:
        text: the question.
        titles: the titles so far, in order.
        most: the largest number of guesses.

    Returns:
        as many as the pattern gives; nothing when the last two titles do not occur in the text,
        with or without words that all titles share, one after the other, in places that look
        alike.

    Example:
        >>> next_titles("named Ann is 1\\nnamed Ben is 2\\nnamed Cleo is 3", ["Ann", "Ben"], 5)
        ['Cleo']
    """
    last = titles[-_LOOKED_AT:]
    found = _following(text, last, most)
    if found or len(last) < 2:
        return found
    # The names may stand in a frame of the model's own: "GPA of Ann", "GPA of Ben".
    left = _whole_words(reduce(_common_start, last[1:], last[0]))
    right = _whole_words(reduce(_common_start, (t[::-1] for t in last[1:]), last[0][::-1]))[::-1]
    if not left and not right:
        return []
    names = [title[len(left) : len(title) - len(right)] for title in last]
    if not all(names):
        return []
    return [f"{left}{name}{right}" for name in _following(text, names, most)]


def _following(text: str, titles: Sequence[str], most: int) -> list[str]:
    """What stands where the titles stand, in the records after the last of them."""
    places = _places(text, titles)
    if len(places) < 2:
        return []
    # What several records have in common by chance, such as how the one before ends, is no
    # pattern: more than two are looked at, and a line's beginning is the farthest to the left.
    lefts, rights = ([text[:start] for start, _ in places], [text[end:] for _, end in places])
    left = reduce(_common_end, lefts[1:], lefts[0][-_AROUND:])
    right = reduce(_common_start, rights[1:], rights[0][:_AROUND])
    line = left.rpartition("\n")[2]
    left = line if len(line) >= _LEAST_LEFT else left
    if len(left) < _LEAST_LEFT or not right:
        return []
    found: list[str] = []
    end = places[-1][1]
    while len(found) < most:
        start = text.find(left, end)
        if start < 0:
            break
        start += len(left)
        end = text.find(right, start, start + _LONGEST_TITLE)
        title = text[start:end] if end >= 0 else ""
        if not title.strip() or any(mark in title for mark in "\n:：#"):
            break
        found.append(title)
    return found


def _places(text: str, titles: Sequence[str]) -> list[tuple[int, int]]:
    """Where the last titles stand, one after the other; as many as do."""
    places: list[tuple[int, int]] = []
    end = len(text)
    for title in reversed(titles):
        start = text.rfind(title, 0, end) if places else text.find(title)
        if start < 0:
            break
        places.insert(0, (start, start + len(title)))
        end = start
    return places


def _whole_words(start: str) -> str:
    """A beginning without the word that it breaks off in."""
    return start[: max(start.rfind(gap) for gap in " ,;-(") + 1]


def _common_start(left: str, right: str) -> str:
    """The common beginning, a few characters, before the first digit: digits are not a pattern."""
    pairs = zip(left[:_AROUND], right[:_AROUND], strict=False)
    same = takewhile(lambda pair: pair[0] == pair[1] and not pair[0].isdigit(), pairs)
    return "".join(character for character, _ in same)


def _common_end(left: str, right: str) -> str:
    """The common end, a few characters, after the last digit."""
    return _common_start(left[::-1], right[::-1])[::-1]
