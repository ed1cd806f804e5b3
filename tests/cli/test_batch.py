"""`langchain-pos batch`: many questions, resumable, failures kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from langchain_pos.results.result import ReasoningResult
from tests.support.fake_runnable import FakeLLM, llm, run

__all__ = ["llm"]  # a fixture

ROWS = [
    {"id": "a", "question": "Who?"},
    {"id": "b", "prompt": "What?", "steps": ["Ann", "Ben"]},
    {"id": "c", "question": "too long"},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three questions, of which one fails."""
    return write(tmp_path / "in.jsonl", ROWS)


def write(path: Path, rows: list[Any]) -> Path:
    """A JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> dict[Any, dict[str, Any]]:
    """The answers by id; no id twice."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = {row["id"]: row for row in rows}
    assert len(answers) == len(rows)
    return answers


def test_batch_answers_all_and_keeps_failures(llm: FakeLLM, source: Path, tmp_path: Path) -> None:
    """Every row has its answer or its error, and the exit code says that one failed."""
    target = tmp_path / "out.jsonl"
    done = run("batch", source, target, "--max-concurrency", "2")
    assert done.exit_code == 1
    assert "2 answered, 1 failed" in done.stderr
    answers = read(target)
    assert ReasoningResult.model_validate(answers["a"]["result"]) == llm.invoke("Who?")
    assert answers["a"]["error"] is None
    assert answers["c"] == {
        "id": "c",
        "text": None,
        "error": "the prompt has 9000 tokens, the model reads 2048",
        "result": None,
    }
    assert ({"question": "What?", "steps": ["Ann", "Ben"]}, "parallel") in llm.asked
    assert llm.configs == [{"max_concurrency": 2}]


def test_batch_goes_on_where_it_stopped(llm: FakeLLM, source: Path, tmp_path: Path) -> None:
    """After an interruption the same command asks only what has no answer yet."""
    write(source, [{"id": "stop", "question": "stop here"}, *ROWS[:2]])
    target = tmp_path / "out.jsonl"
    assert run("batch", source, target).exit_code == 130
    assert set(read(target)) == {"a", "b"}
    with target.open("a", encoding="utf-8") as out:
        out.write('{"id": "half", "te')
    write(source, [*ROWS[:2], {"id": "d", "question": "More?"}])
    llm.asked.clear()
    done = run("batch", source, target)
    assert done.exit_code == 0
    assert llm.asked == [("More?", "parallel")]
    assert set(read(target)) == {"a", "b", "d"}
    assert "2 of them before" in done.stderr


def test_batch_with_nothing_left_loads_no_model(llm: FakeLLM, source: Path, tmp_path: Path) -> None:
    """A finished file is left as it is, and earlier failures still count."""
    target = tmp_path / "out.jsonl"
    run("batch", source, target)
    before = target.read_bytes()
    llm.settings = {"untouched": True}
    assert run("batch", source, target, "--model", "missing").exit_code == 1
    assert llm.settings == {"untouched": True}
    assert target.read_bytes() == before


def test_batch_asks_failures_again_when_told(llm: FakeLLM, source: Path, tmp_path: Path) -> None:
    """`--retry-failed` asks only the failed rows, whose old lines go."""
    target = tmp_path / "out.jsonl"
    run("batch", source, target)
    write(source, [*ROWS[:2], {"id": "c", "question": "shorter"}])
    llm.asked.clear()
    assert run("batch", source, target, "--retry-failed").exit_code == 0
    assert llm.asked == [("shorter", "parallel")]
    assert read(target)["c"]["error"] is None


def test_batch_keeps_unusable_rows_with_their_error(
    llm: FakeLLM, source: Path, tmp_path: Path
) -> None:
    """A row that cannot be asked gets a line that says why; the others are answered."""
    lines = ["not json", "[1]", '{"id": 1.5}', "", '{"id": "q"}', '{"question": "Who?"}']
    lines.append('{"id": "s", "question": "Who?", "steps": "Ann"}')
    source.write_text("\n".join(lines), encoding="utf-8")
    done = run("batch", source, tmp_path / "out.jsonl")
    assert done.exit_code == 1
    answers = read(tmp_path / "out.jsonl")
    assert {row_id: (answer["error"] or "")[:22] for row_id, answer in answers.items()} == {
        1: "line 1 is not JSON: Ex",
        2: "line 2 is a list, not ",
        3: "line 3: id is 1.5; use",
        "q": "line 5 has no text in ",
        6: "",
        "s": "line 7: steps is 'Ann'",
    }
    assert llm.asked == [("Who?", "parallel")]


@pytest.mark.parametrize("rest", ["", "\n"])
def test_batch_leaves_a_foreign_file_alone(
    llm: FakeLLM, source: Path, tmp_path: Path, rest: str
) -> None:
    """A file that is not of an earlier run is refused and not touched."""
    target = tmp_path / "notes.txt"
    target.write_text("my notes" + rest, encoding="utf-8")
    done = run("batch", source, target)
    assert done.exit_code == 2
    assert "line 1 is not an answer from an earlier run" in done.stderr
    assert target.read_text(encoding="utf-8") == "my notes" + rest
    assert llm.asked == []


@pytest.mark.usefixtures("llm")
def test_batch_refuses_what_it_cannot_use(source: Path, tmp_path: Path) -> None:
    """Bad files are refused before any work, with what to do."""
    missing = tmp_path / "none.jsonl"
    assert "cannot read" in run("batch", missing, tmp_path / "out.jsonl").stderr
    assert "are the same file" in run("batch", source, source).stderr
    assert "cannot write" in run("batch", source, tmp_path / "no" / "out.jsonl").stderr
    write(source, [ROWS[0], ROWS[0]])
    done = run("batch", source, tmp_path / "out.jsonl")
    assert done.exit_code == 2
    assert "line 2: the id 'a' was used before" in done.stderr
    source.write_text("\n", encoding="utf-8")
    assert "has no rows" in run("batch", source, tmp_path / "out.jsonl").stderr
