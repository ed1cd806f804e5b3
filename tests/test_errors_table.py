"""Every row of `docs/errors.md`, tried: what it says is what one gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from langchain_pos import ReasoningResult, errors
from langchain_pos.errors import ParallelReasoningError
from tests.support import error_rows_chat, error_rows_remote, error_rows_server  # noqa: F401
from tests.support.error_rows_looking import ROWS

PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")


def table_rows(head: str) -> list[list[str]]:
    """The cells of all tables whose first column has this name."""
    found: list[list[str]] = []
    inside = False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == head:
            inside = True
        elif inside and not cells[0].startswith("---"):
            found.append(cells)
    return found


TABLE = {row[0]: row[1:] for row in table_rows("row")}
CLASSES = {row[0].strip("`"): row[1].strip("`") for row in table_rows("class")}


@pytest.mark.parametrize("row", TABLE)
def test_a_row_says_what_one_gets(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error class that the row names is raised; where it names none, an answer comes."""
    assert row in ROWS, f"docs/errors.md has a row {row!r} that nothing tests"
    given, gets, to_do = TABLE[row]
    outcome = ROWS[row](tmp_path, monkeypatch)
    named = re.findall(r"`(\w+(?:Error|Cancelled))`", gets)
    if isinstance(outcome, BaseException):
        kinds = {kind.__name__ for kind in type(outcome).__mro__}
        assert kinds & set(named) or not named
        assert len(str(outcome)) > 20, "an error says what was given and what to do"
        assert "\n" not in str(outcome) or "pydantic" in type(outcome).__module__
    else:
        assert not named, f"{row} names {named}, but nothing was raised"
        assert isinstance(outcome, ReasoningResult)
        assert outcome.text
    for mode in re.findall(r'`mode="(\w+)"`', gets):
        assert outcome.mode == mode  # type: ignore[union-attr]
    assert given
    assert to_do


def test_every_test_has_its_row() -> None:
    """What is tested is in the table."""
    assert set(ROWS) <= set(TABLE)
    assert len(TABLE) == len(table_rows("row")), "two rows have the same name"


def test_every_class_is_in_the_table() -> None:
    """With the builtin class that it is as well."""
    ours: dict[str, Any] = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, ParallelReasoningError)
    }
    assert list(ours) == list(CLASSES)
    for name, builtin in CLASSES.items():
        assert issubclass(ours[name], vars(__import__("builtins"))[builtin])
        first = next(c for c in ours[name].__mro__ if c.__module__ == "builtins")
        assert first.__name__ == builtin


def test_every_class_is_raised_by_some_row() -> None:
    """No class is there for nothing."""
    named = set(re.findall(r"`(\w+)`", " ".join(" ".join(cells) for cells in TABLE.values())))
    assert set(CLASSES) - {"ParallelReasoningError"} <= named
