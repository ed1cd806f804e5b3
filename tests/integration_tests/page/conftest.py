"""A browser, and a server whose model follows a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.page_questions import RULES
from tests.support.scripted import Script
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import Running, running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium as it is installed; nothing is downloaded."""
    from tests.support import browsing  # asks for playwright, which may be missing

    with browsing.playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=browsing.CHROMIUM)
        yield found
        found.close()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Running, Script]]:
    """A server whose model follows `RULES`."""
    chat, script = scripted_chat(RULES, max_branch_tokens=64)
    with running(chat) as server:
        yield server, script


@pytest.fixture
def server(served: tuple[Running, Script]) -> Iterator[Running]:
    """The server, at rest before and after."""
    server, script = served
    yield server
    script.before = lambda: None
    assert server.at_rest()


@pytest.fixture
def script(served: tuple[Running, Script]) -> Script:
    """What its model follows; passes are counted from here."""
    served[1].passes.clear()
    return served[1]
