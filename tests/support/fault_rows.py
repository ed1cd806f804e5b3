"""Rows of the table "What a client sees" and what they are tried on; see `test_faults.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.support.scripted import STUDENTS, Script
from tests.support.scripted_chat import scripted_chat
from tests.support.server_requests import Outcome, outcome
from tests.support.serving import Running, running

RULES = {
    **STUDENTS,
    "Long?\n\nAnswer:\n": "…",
    "Nothing?\n\nAnswer:\n": "",
}
SEQUENTIAL = {"reasoning_mode": "sequential"}
LONG = {"max_tokens": 1500, **SEQUENTIAL}
"""The answer to "Long?" goes on and on; a test ends it."""


Row = Callable[[pytest.MonkeyPatch], list[Outcome]]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    """Register what a row says."""

    def add(tried: Row) -> Row:
        ROWS[name] = tried
        return tried

    return add


@contextmanager
def served(*, positions: int = 4096, **limits: Any) -> Iterator[tuple[Running, Script]]:
    """A server; when the block ends nothing is held, and a question is answered as ever."""
    chat, script = scripted_chat(RULES, positions=positions)
    with running(chat, **limits) as server:
        yield server, script
        script.before = lambda: None
        assert server.at_rest()
        if not server.service.gate.draining:
            assert server.ask().choices[0].message.content == "name: Ben"
            assert server.at_rest()


def raw(answer: httpx.Response) -> Outcome:
    """Of a bare answer, through the exception that OpenAI's client makes of it."""
    error = openai.OpenAI(api_key="none")._make_status_error_from_response(answer)  # type: ignore[arg-type]
    return outcome(error)
