"""Fixtures that tests of every folder share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.family_table import pytest_terminal_summary  # noqa: F401  a hook of pytest

# A busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def paper_data() -> Path:
    """The folder with the paper's recorded runs; tests that need it skip where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LANGCHAIN_POS_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no paper data in {folder}; LANGCHAIN_POS_DATA names its folder")
    return folder
