"""Every notebook of `examples/` runs from top to bottom on the shipped model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    """The folder is found, so that the tests below cannot pass by finding nothing."""
    assert {path.name for path in NOTEBOOKS} >= {"quickstart.ipynb", "documents.ipynb"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    """It opens with what the reader gets, and holds no outputs of some machine."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    opening = notebook.cells[0]
    assert opening.cell_type == "markdown"
    assert "\nYou get: " in opening.source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
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
