r"""Regular expressions as grammars of JSON strings: a pattern speaks of the decoded string.

A character is written as `json.dumps` writes it: a quote as `\"`, a line break as `\n`. So the
grammar of a pattern is made character by character, over what each of them looks like inside the
quotes. As JSON Schema says, a pattern may match anywhere; `^` and `$` tie it to the ends. The
classes `\d`, `\w` and `\s` mean what they mean in every dialect: their ASCII characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from re import _constants as code  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

Ranges = list[tuple[int, int]]

_END = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_SHORT_ESCAPES = {0x22: '"', 0x5C: "\\", 8: "b", 12: "f", 10: "n", 13: "r", 9: "t"}
_CATEGORIES: dict[Any, Ranges] = {
    code.CATEGORY_DIGIT: [(0x30, 0x39)],
    code.CATEGORY_WORD: [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    code.CATEGORY_SPACE: [(9, 13), (32, 32)],
}
_SPACES = [
    *((9, 13), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
]
_NEGATED = {
    code.CATEGORY_NOT_DIGIT: code.CATEGORY_DIGIT,
    code.CATEGORY_NOT_WORD: code.CATEGORY_WORD,
    code.CATEGORY_NOT_SPACE: code.CATEGORY_SPACE,
}
_STARTS = (code.AT_BEGINNING, code.AT_BEGINNING_STRING)
_ENDS = (code.AT_END, code.AT_END_STRING)
_LONG = 1 << 16
_MOST_REPEATS = 64
"""Repetitions that the grammar counts itself; each of them costs states."""

Parsed = list[tuple[Any, Any]]


class UnsupportedPatternError(ValueError):
    """The pattern cannot be written as a grammar, though it may be matched against a text."""


@dataclass(frozen=True)
class PatternRule:
    """What a pattern allows, as a grammar sees it.

    Attributes:
        rule: the right-hand side of a rule for the texts that have a match, as they stand in
            quotes.
        least: characters of the shortest of them.
        most: of the longest; None where there is none.
        counted: the rule repeats one class of characters without end, and `least` and `most` are
            for somebody else to count.
    """

    rule: str
    least: int
    most: int | None
    counted: bool = False


def pattern_rule(pattern: str, *, counted: bool = False) -> PatternRule:
    """The grammar of a pattern.

    Args:
        pattern: as JSON Schema has it.
        counted: whether somebody counts characters beside the grammar.

    Raises:
        UnsupportedPatternError: it has a look-around, a reference, a flag, or a long repetition.
        re.error: Python cannot read it.
    """
    # ECMAScript's and Rust's spelling of what Python spells otherwise.
    tree = _parser.parse(re.sub(r"\(\?<(?=[A-Za-z_])", "(?P<", pattern))
    if tree.state.flags & ~re.UNICODE.value:
        raise UnsupportedPatternError("it sets flags")
    repeated = _repeated_class(list(tree)) if counted else None
    if repeated is not None:
        return repeated
    ways = []
    tied = True
    for way in _alternatives(list(tree)):
        start = bool(way) and way[0][0] is code.AT and way[0][1] in _STARTS
        end = len(way) > start and way[-1][0] is code.AT and way[-1][1] in _ENDS
        inner = way[start : len(way) - end]
        parts = [_ANYTHING * (not start), _sequence(inner), _ANYTHING * (not end)]
        ways.append(" ".join(filter(None, parts)))
        tied = tied and start and end
    least, most = tree.getwidth()
    finite = tied and most < _LONG
    rule = " | ".join(f"({way})" for way in ways)
    return PatternRule(rule, int(least), int(most) if finite else None)


def _alternatives(sequence: Parsed) -> list[Parsed]:
    """The sequence with groups at its ends that hold anchors multiplied out."""
    for place in dict.fromkeys((0, len(sequence) - 1) if sequence else ()):
        kind, value = sequence[place]
        if not _holds_anchor([sequence[place]]):
            continue
        if kind is code.SUBPATTERN:
            options = [list(value[3])]
        elif kind is code.BRANCH:
            options = [list(option) for option in value[1]]
        else:
            continue
        before, after = sequence[:place], sequence[place + 1 :]
        return [way for option in options for way in _alternatives([*before, *option, *after])]
    return [sequence]


def _holds_anchor(sequence: Iterable[tuple[Any, Any]]) -> bool:
    for kind, value in sequence:
        if kind is code.SUBPATTERN and (
            _holds_anchor(value[3]) or any(each[0] is code.AT for each in value[3])
        ):
            return True
        if kind is code.BRANCH and any(
            _holds_anchor(option) or any(each[0] is code.AT for each in option)
            for option in value[1]
        ):
            return True
    return False


def _repeated_class(sequence: Parsed) -> PatternRule | None:
    """One class of characters, some times, from `^` to `$`; None for any other pattern."""
    if len(sequence) != 3 or sequence[0] != (code.AT, sequence[0][1]):
        return None
    (_, start), (kind, value), (last, end) = sequence
    if last is not code.AT or start not in _STARTS or end not in _ENDS:
        return None
    if kind not in (code.MAX_REPEAT, code.MIN_REPEAT):
        return None
    least, most, inner = value
    finite = most is not code.MAXREPEAT
    if len(inner) != 1:
        return None
    ranges = _ranges_of(*inner[0])
    if ranges is None:
        return None
    rule = f"{_characters(ranges)}*"
    return PatternRule(rule, int(least), int(most) if finite else None, counted=True)


def _sequence(sequence: Iterable[tuple[Any, Any]]) -> str:
    return " ".join(filter(None, (_item(kind, value) for kind, value in sequence))) or '""'


def _item(kind: Any, value: Any) -> str:
    ranges = _ranges_of(kind, value)
    if ranges is not None:
        return _characters(ranges)
    if kind is code.SUBPATTERN:
        _, add, remove, inner = value
        if add or remove:
            raise UnsupportedPatternError("it sets flags")
        return f"({_sequence(inner)})"
    if kind is code.BRANCH:
        return "(" + " | ".join(_sequence(option) for option in value[1]) + ")"
    if kind in (code.MAX_REPEAT, code.MIN_REPEAT):
        least, most, inner = value
        finite = most is not code.MAXREPEAT
        if max(least, most if finite else 0) > _MOST_REPEATS:
            raise UnsupportedPatternError(f"it repeats a part more than {_MOST_REPEATS} times")
        if finite and most == 0:
            return ""
        return f"({_sequence(inner)}){{{least},{most if finite else ''}}}"
    raise UnsupportedPatternError(f"it has {_what(kind)}")


def _what(kind: Any) -> str:
    names = {
        code.ASSERT: "a look-around",
        code.ASSERT_NOT: "a look-around",
        code.GROUPREF: "a reference to a group",
        code.AT: "an anchor in its middle",
    }
    return names.get(kind, str(kind).lower().replace("_", " "))


# ------------------------------------------------------------------ characters


def _ranges_of(kind: Any, value: Any, *, wide: bool = False) -> Ranges | None:
    """The characters of a part that is one character; None for any other part.

    Args:
        kind: of the part.
        value: of the part.
        wide: take a class for all that any dialect means by it, because it is left out; otherwise
            for what all of them mean.
    """
    if kind is code.LITERAL:
        return [(value, value)]
    if kind is code.NOT_LITERAL:
        return _without([(value, value)])
    if kind is code.ANY:
        return _without([(10, 10), (13, 13), (0x2028, 0x2029)])
    if kind is code.CATEGORY:
        if value in _NEGATED:
            return _without(_category(_NEGATED[value], wide=not wide))
        return _category(value, wide=wide)
    if kind is code.RANGE:
        return [value]
    if kind is code.IN:
        negate = bool(value) and value[0][0] is code.NEGATE
        found: Ranges = []
        for inner, what in value[negate:]:
            found += _ranges_of(inner, what, wide=bool(negate)) or []
        return _without(found) if negate else found
    return None


def _category(name: Any, *, wide: bool) -> Ranges:
    if not wide:
        return _CATEGORIES[name]
    if name is code.CATEGORY_SPACE:
        return _SPACES
    if name is code.CATEGORY_WORD:  # beyond ASCII, letters are everywhere
        return [*_CATEGORIES[name], (0x80, _END)]
    return _digits()


@cache
def _digits() -> Ranges:
    """The digits of all scripts."""
    return [(point, point) for point in range(_END + 1) if chr(point).isdecimal()]


def _without(ranges: Ranges) -> Ranges:
    """All characters but these."""
    left: Ranges = []
    at = 0
    for first, last in sorted(ranges):
        if first > at:
            left.append((at, first - 1))
        at = max(at, last + 1)
    return [*left, (at, _END)] if at <= _END else left


def _characters(ranges: Ranges) -> str:
    """A choice among characters, each as JSON writes it."""
    inside = _without(_without(ranges))
    if not inside:
        raise UnsupportedPatternError("one of its classes holds no character")
    special = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), _SURROGATES]
    raw = _without(sorted([*_without(inside), *special]))
    ways = []
    if raw:
        ways.append("[" + "".join(_span(first, last) for first, last in raw) + "]")
    for point, letter in _SHORT_ESCAPES.items():
        if any(first <= point <= last for first, last in inside):
            ways.append(literal("\\" + letter))
    if not ways:  # a control character that has no short escape
        point = inside[0][0]
        if point in range(*_SURROGATES):
            raise UnsupportedPatternError("it asks for half of a surrogate pair")
        ways.append(literal(json.dumps(chr(point))[1:-1]))
    return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"


def _span(first: int, last: int) -> str:
    return _escape(first) if first == last else f"{_escape(first)}-{_escape(last)}"


def _escape(point: int) -> str:
    return f"\\U{point:08x}" if point > 0xFFFF else f"\\u{point:04x}"


def literal(text: str) -> str:
    """A text as the grammar's dialect quotes it."""
    return '"' + "".join(_escape(ord(character)) for character in text) + '"'


_ANYTHING = f"{_characters([(0, _END)])}*"

FORMATS: dict[str, str] = {
    "date": r"^[1-9]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))$",
    "time": r"^(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:0\d|1[0-3]):[0-5]\d)$",
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
    "ipv4": r"^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$",
    "email": r"^[A-Za-z0-9]+(?:[._+-][A-Za-z0-9]+)*@(?:[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*\.)+"
    r"[A-Za-z]{2,24}$",
    "duration": r"^P(?:[1-9]\d{0,3}D(?:T(?:[1-9]\d{0,3}H)?[1-9]\d{0,3}M)?|T[1-9]\d{0,3}[HMS])$",
}
"""Formats that a grammar holds a string to: each a part of its format, with every day or hour."""
FORMATS["date-time"] = FORMATS["date"][:-1] + "T" + FORMATS["time"][1:]
