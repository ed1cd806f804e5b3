"""What a benchmark leaves behind tells how it was made, and nothing about folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import report


def test_a_result_names_its_command_without_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either spelling; what else was asked for stays, in its order."""
    given = ["--rows", "5", "--data", "/some/where", "--dtype", "float32", "--out=/else/where"]
    given += ["--model", "/models/small/hf"]
    monkeypatch.setattr("sys.argv", ["/some/repo/benchmarks/joins.py", *given])
    path = report("other_name", [{"a": 1}], folder=tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "other_name.json"
    assert content["command"] == "python -m benchmarks.joins --rows 5 --dtype float32 --model small"
    assert content["rows"] == [{"a": 1}]
