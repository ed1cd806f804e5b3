"""The page shows what results are there, a CPU's and a GPU's apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import render
from benchmarks.render import WHAT


def write(folder: Path, name: str, device: str, figure: str) -> None:
    """A result file."""
    machine = {
        "date": "2026-01-01",
        "processor": "a processor",
        "cores": 2,
        "gpu": "a GPU",
        "torch": "2",
        "transformers": "5",
    }
    content = {"rows": [{"x": figure}], "device": device, "model": "m", "machine": machine}
    (folder / name).write_text(json.dumps(content))


def test_devices_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's table stands under the GPU's heading and names the GPU, and no other table does."""
    page = tmp_path / "page.md"
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "PAGE", page)
    write(tmp_path, "branches.json", "cpu", "11")
    render.main()
    assert "No figures yet" in page.read_text()
    write(tmp_path, "branches.gpu.json", "cuda", "22")
    render.main()
    cpu, gpu = page.read_text().split("## On a GPU")
    assert "| 11 |" in cpu
    assert "a processor, 2 cores" in cpu
    assert "a GPU" not in cpu
    assert "| 22 |" in gpu
    assert "a GPU" in gpu
    assert "No figures yet" not in gpu


def test_every_benchmark_has_its_text() -> None:
    """The page knows every benchmark that leaves results, and says how to run it."""
    folder = Path(render.__file__).parent
    mains = {path.stem for path in folder.glob("*.py") if "    publish(" in path.read_text()}
    assert mains <= set(WHAT)
    assert all(f"python -m benchmarks.{name}" in text for name, text in WHAT.items())
