"""Every notebook of `examples/` runs; the page's tests run the cells of the tutorial's."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from docs.make_notebooks import TUTORIAL, tutorial

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    """The folder is found, so that the tests below cannot pass by finding nothing."""
    assert {path.name for path in NOTEBOOKS} >= {"quickstart.ipynb", "documents.ipynb"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_with_outputs(path: Path) -> None:
    """It opens with what the reader gets, and shows what came of it: no error, no log, no path."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    opening = notebook.cells[0]
    assert opening.cell_type == "markdown"
    assert "\nYou get: " in opening.source
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert outputs
    assert {out.output_type for out in outputs} <= {"stream", "execute_result", "display_data"}
    assert not [out for out in outputs if out.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", nbformat.writes(notebook))


def test_the_tutorials_notebook_is_the_page() -> None:
    """Its cells are the page's text and blocks; `docs/make_notebooks.py` makes it."""
    notebook = nbformat.read(TUTORIAL, as_version=4)
    made = [(cell.cell_type, cell.source) for cell in tutorial().cells]
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == made
    assert sum(kind == "code" for kind, _ in made) > 5


@pytest.mark.parametrize(
    "path", [each for each in NOTEBOOKS if each != TUTORIAL], ids=lambda path: path.name
)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell raises; results show themselves as HTML, figures as pictures."""
    # Jupyter starts its kernel in a process of its own: it must find this package, not another.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = {
        kind
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        for kind in output.get("data", {})
    }
    source = path.read_text(encoding="utf-8")
    assert "text/html" in shown
    assert ("image/png" in shown) == (".plot_" in source)
