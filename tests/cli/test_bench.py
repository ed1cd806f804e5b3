"""`langchain-pos bench`: what it measures, what it recommends, what it prints."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from langchain_pos.cli import running
from langchain_pos.cli.bench import recommendation, show
from langchain_pos.cli.bench_measuring import (
    AnswerTime,
    BenchResult,
    StepTime,
    free_rows,
    measure,
    recommended_branches,
    step_times,
)
from tests.support.fake_runnable import run
from tests.support.scripted import STUDENTS, random_llm, scripted_llm, tiny_model

FREE = tuple(StepTime(rows, 0.01) for rows in (1, 2, 4, 8))
COSTLY = tuple(StepTime(rows, 0.01 * rows) for rows in (1, 2, 4, 8))
KNEE = (StepTime(1, 0.010), StepTime(2, 0.011), StepTime(4, 0.012), StepTime(8, 0.0235))


@pytest.mark.parametrize(
    ("steps", "branches", "free"), [(FREE, 8, 8), (COSTLY, 1, 1), (KNEE, 4, 4)]
)
def test_the_knee(steps: tuple[StepTime, ...], branches: int, free: int) -> None:
    """Rows are recommended as long as they bring tokens per second, and free while passes last."""
    assert recommended_branches(steps) == branches
    assert free_rows(steps) == free


def test_steps_feed_as_many_rows_as_they_say() -> None:
    """Each width is fed in two rounds of warm-up and steps; all slots are free afterwards."""
    engine = random_llm().engine
    rows, passes = engine.forward.rows, engine.forward.count
    steps = step_times(engine, prefix=16, widths=(1, 3), steps=2)
    assert [step.rows for step in steps] == [1, 3]
    assert engine.forward.rows - rows == 16 + 2 * 3 * (1 + 3)
    assert engine.forward.count - passes == 1 + 2 * 3 * 2
    assert engine.slots_in_use == 0


def test_widths_that_do_not_fit_are_left_out() -> None:
    """An engine with few slots is measured as far as they reach."""
    engine = random_llm().engine
    engine.forward.forest.pool.max_slots = 64
    assert [s.rows for s in step_times(engine, prefix=16, widths=(1, 8, 64), steps=4)] == [1, 8]


def test_all_ways_are_measured() -> None:
    """Sequential with and without drafts, then parallel; as often as asked, in turn."""
    llm, _ = scripted_llm({**STUDENTS, "\nWho?\n\nAnswer:\n": "name: Ben"}, positions=4096)
    result = measure(llm, "Who?", runs=2)
    assert [answer.way for answer in result.answers] == [
        "sequential, no drafts",
        "sequential",
        "parallel",
    ]
    assert all(len(answer.seconds) == 2 for answer in result.answers)
    assert result.answers[-1].fallback_reason is None
    assert [step.rows for step in result.steps] == [1, 2, 4, 8, 16, 32, 64]


def result(reason: str | None = None) -> BenchResult:
    """A measurement with known figures."""
    engine = {"model": "some/model", "parameters": "1", "dtype": "bfloat16", "device": "cpu"}
    answers = (
        AnswerTime("sequential", (3.0, 1.0, 2.0), 100, 100),
        AnswerTime("parallel", (0.5,), 110, 20, reason),
    )
    return BenchResult(engine, answers, KNEE, 512)


def test_tables_and_recommendation() -> None:
    """Medians, speed-ups over the first way, milliseconds by rows, and what follows from them."""
    out = io.StringIO()
    show(Console(file=out, width=100), result())
    text = out.getvalue()
    assert "some/model, 1 parameters, bfloat16 on cpu" in text
    assert ["parallel", "0.50", "4.00×", "110", "20"] in [
        line.split() for line in text.splitlines()
    ]
    assert ["8", "23.50", "2.35", "340"] in [line.split() for line in text.splitlines()]
    assert "max_parallel_branches=4 (more rows hardly increase tokens per second)" in text
    assert "Up to 4 rows" in text


def test_a_fallback_is_said() -> None:
    """If parallel was answered sequentially, the table does not stand there as if it were."""
    out = io.StringIO()
    show(Console(file=out, width=100), result("declined: no parts"))
    assert "Parallel fell back to sequential: declined: no parts" in out.getvalue()


def test_a_busy_machine_is_said() -> None:
    """Behind the figures that it spoilt."""
    out = io.StringIO()
    show(Console(file=out, width=100), dataclasses.replace(result(), busy="Others worked."))
    assert out.getvalue().rstrip().endswith("Others worked.")


def test_the_widest_pass_may_not_be_wide_enough() -> None:
    """Where the knee lies beyond what was measured, the recommendation says so."""
    wide = BenchResult({}, result().answers, FREE, 512)
    assert "widest pass measured" in recommendation(wide)


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`langchain-pos bench --json FILE` prints the tables and writes all figures."""
    monkeypatch.setattr(running, "make_llm", lambda settings: random_llm(model=tiny_model(4096)))
    file = tmp_path / "bench.json"
    done = run("bench", "--runs", 1, "--json", file)
    assert done.exit_code == 0, done.output
    assert "max_parallel_branches=" in done.stdout
    content = json.loads(file.read_text())
    assert content["max_parallel_branches"] in [step["rows"] for step in content["steps"]]
    assert [len(answer["seconds"]) for answer in content["answers"]] == [1, 1, 1]


def test_a_file_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tables are shown all the same, and the exit code says that the command line is wrong."""
    monkeypatch.setattr(running, "make_llm", lambda settings: random_llm(model=tiny_model(4096)))
    done = run("bench", "--runs", 1, "--json", tmp_path / "none" / "bench.json")
    assert done.exit_code == 2
    assert "cannot write" in done.stderr
    assert "max_parallel_branches=" in done.stdout
