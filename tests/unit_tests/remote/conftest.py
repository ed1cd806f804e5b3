"""The server that these tests ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit_tests.completions_server import Server, serving
from tests.unit_tests.models import STUDENTS


@pytest.fixture
def server() -> Iterator[Server]:
    """The question "Who?" answered in two branches."""
    with serving(dict(STUDENTS)) as running:
        yield running
