"""The server that these tests ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.completions_server import Server, serving
from tests.support.scripted import STUDENTS


@pytest.fixture
def server() -> Iterator[Server]:
    """The question "Who?" answered in two branches."""
    with serving(dict(STUDENTS)) as running:
        yield running
