"""Every row of the table "What a client sees" in `docs/server.md`, tried on a real server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import fault_rows_failing, fault_rows_refused  # noqa: F401
from tests.support.fault_rows import ROWS

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")


def table() -> dict[str, list[str]]:
    """The cells of each row under its name."""
    lines = PAGE.split("## What a client sees")[1].splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


TABLE = table()


@pytest.mark.parametrize("name", TABLE)
def test_a_row_says_what_a_client_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status, code and exception; what the row tries must leave nothing behind (`served`)."""
    assert name in ROWS, f"docs/server.md has a row {name!r} that nothing tests"
    _, status, code, raised = TABLE[name]
    outcomes = ROWS[name](monkeypatch)
    codes = set(re.findall(r"`(\w+)`", code))
    assert {outcome[0] for outcome in outcomes} == {0 if status == "none" else int(status)}
    assert {outcome[1] for outcome in outcomes} == (codes or {None})
    for _, _, kind in outcomes:
        assert (kind is None) == ("`" not in raised)
        if kind is not None:
            assert raised.strip("`") in {each.__name__ for each in kind.__mro__}


def test_every_test_has_its_row() -> None:
    """What is tested is in the table."""
    assert set(ROWS) == set(TABLE)
