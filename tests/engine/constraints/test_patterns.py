"""Patterns: the grammar is over the JSON escapes of what they match."""

from __future__ import annotations

import json
import re

import pytest

from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.constraints.patterns import (
    FORMATS,
    UnsupportedPatternError,
    pattern_rule,
)
from tests.support.random_texts import compiler, random_text


def accepts(pattern: str, text: str) -> bool:
    """Whether a text may be written as a string with the pattern."""
    schema = json.dumps({"type": "string", "pattern": pattern})
    state = compiler().state(Constraint("json_schema", schema))
    written = json.dumps(text, ensure_ascii=False)
    return state.accept_text(written) and state._matcher.is_completed()


@pytest.mark.parametrize(
    ("pattern", "fits", "wrong"),
    [
        (r"^[A-Z]:\\[a-z]{1,8}$", ["C:\\temp"], ["C:temp", "C:\\Temp"]),
        (r'^"[a-z]{1,8}"$', ['"quoted"'], ["quoted", '""']),
        ("abc", ["abc", 'x"abc\ny'], ["ab"]),
        ("^a|b$", ["axx", "xxb"], ["xay"]),
        ("^(?:a|b$)", ["ax", "b"], ["bx"]),
        (r"^\d+(\.\d{2})?$", ["12.34", "1"], ["1.2", "1."]),
        ("^.{3,5}$", ["abc", 'é"\\'], ["ab", "abcdef", "a\nb"]),
        ("[^x]", ["xay", '"', "\n"], ["x", ""]),
        (r"^\n\t$", ["\n\t"], ["nt"]),
        ("^(a*)*$", ["", "aaa"], ["b"]),
        (r"^(?<year>\d{4})$", ["2024"], ["24"]),
        ("^[一-龥]{2}$", ["蓝天"], ["ab"]),
    ],
)
def test_a_pattern_speaks_of_the_decoded_string(
    pattern: str, fits: list[str], wrong: list[str]
) -> None:
    """Quotes, backslashes and line breaks are written as JSON writes them."""
    assert [text for text in fits if not accepts(pattern, text)] == []
    assert [text for text in wrong if accepts(pattern, text)] == []


@pytest.mark.parametrize(
    "pattern",
    [r"^[A-Z]:\\[a-z]{1,8}$", r'^"[a-z]{1,8}"$', r"^\s\S\w\W$", r'^[^a-z]{1,4}\\+"$', "a$|^b"],
)
def test_whatever_is_written_matches(pattern: str) -> None:
    """Of random tokens, once the string has been decoded."""
    constraint = Constraint("json_schema", json.dumps({"type": "string", "pattern": pattern}))
    found = [random_text(constraint, seed) for seed in range(30)]
    assert all(re.search(pattern, json.loads(text)) for text in found if text is not None)
    assert any(found)


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    """Every text of a format has it, as far as the library looks."""
    constraint = Constraint("json_schema", json.dumps({"type": "string", "format": name}))
    found = {random_text(constraint, seed) for seed in range(10)} - {None}
    assert found
    assert all(re.search(FORMATS[name], json.loads(text or "")) for text in found)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("^(?!x)a$", "look-around"),
        (r"^(a)\1$", "reference"),
        ("(?i)a", "flags"),
        (r"\bx", "anchor"),
        ("^(ab){900}$", "repeats"),
    ],
)
def test_what_no_grammar_says(pattern: str, reason: str) -> None:
    """It is named, and left to be checked."""
    with pytest.raises(UnsupportedPatternError, match=reason):
        pattern_rule(pattern)
