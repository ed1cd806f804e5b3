"""A browser, and a server whose model follows a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.support.fonts import typewriter
from tests.support.page_questions import RULES
from tests.support.scripted import Script
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import Running, running


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., Any]]:
    """Starts headless Chromium as it is installed; nothing is downloaded."""
    from tests.support import browsing  # asks for playwright, which may be missing

    with browsing.playwright.sync_playwright() as driver:
        yield partial(driver.chromium.launch, executable_path=browsing.CHROMIUM)


@pytest.fixture(scope="module")
def browser(launch: Callable[..., Any]) -> Iterator[Any]:
    """Headless Chromium with the fonts that it chooses."""
    with launch() as found:
        yield found


@pytest.fixture(scope="module", params=["its fonts", "typewriter"])
def browser_in_any_font(
    launch: Callable[..., Any],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Headless Chromium for what must hold whatever the fonts are: with two sets of them."""
    other = request.param == "typewriter"
    with launch(env=typewriter(tmp_path_factory.mktemp("fonts")) if other else None) as found:
        yield found


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
