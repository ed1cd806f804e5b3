"""Every benchmark runs in its quick form and leaves a JSON file that the page can show."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import gpu_first_run, render
from benchmarks.llama_server import LlamaServer
from benchmarks.models import engine_for, random_model
from benchmarks.recorded import read, tokenizer_for
from benchmarks.replay import SETTINGS, Replay
from langchain_pos import embedded_model_path
from langchain_pos.engine import engine as engine_module
from langchain_pos.engine.cpu.row_cost import RowCost
from tests.support import recorded_data as data
from tests.support.llama_server import POINTS, llama_server

ONE_AND_SLOTS = ("llama.cpp, one sequence", "llama.cpp, slots")
PLAIN = ("branches", "memory", "roofline")
WITH_DATA = ("ragged", "replay", "embedded", "paper", "serve", "soak")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The paper's data, made up."""
    (tmp_path / "data").mkdir()
    return data.write(tmp_path / "data")


def run(name: str, out: Path, *options: object) -> dict[str, object]:
    """Run a benchmark's quick form; what it has written."""
    main = import_module(f"benchmarks.{name}").main
    main(["--quick", "--device", "cpu", "--out", str(out), *map(str, options)])
    content: dict[str, object] = json.loads((out / f"{name}.json").read_text())
    return content


@pytest.mark.parametrize("name", PLAIN + WITH_DATA)
def test_quick_form(
    name: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints a table and writes rows, raw figures, machine and command, but no folders."""
    options = ["--data", folder] if name in WITH_DATA else []
    content = run(name, tmp_path, *options)
    assert capsys.readouterr().out.startswith("| ")
    assert content["rows"]
    assert content["device"] == "cpu"
    assert content["command"] == f"python -m benchmarks.{name} --quick --device cpu"
    assert {"date", "torch", "transformers", "processor"} <= set(content["machine"])  # type: ignore[call-overload]
    assert str(tmp_path) not in json.dumps(content)
    assert render.section(content).startswith("| ")


@pytest.mark.parametrize("name", ["branches", "replay"])
def test_a_hybrid_model_is_measured_with_its_states(
    name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes stand beside those of keys and values; it takes as many passes as another."""
    # Otherwise the rows that drafts get, and so the passes, follow from a clock.
    monkeypatch.setattr(engine_module, "measure_row_cost", lambda *_: RowCost(32))
    options = ["--data", folder] if name == "replay" else []
    hybrid = run(name, tmp_path, *options, "--model", "qwen3.5-0.8b")
    assert hybrid["model"] == "tiny-hybrid"
    plain = run(name, tmp_path, *options)
    rows: list[list[dict[str, float]]] = [hybrid["rows"], plain["rows"]]  # type: ignore[list-item]
    for mine, other in zip(*rows, strict=True):
        assert mine["states MB"] > 0 < mine["KV MB"]
        assert "states MB" not in other
        for column in {"passes", "passes: plan", "expand", "conclude"} & set(mine):
            assert mine[column] == other[column]


def test_llama_cpp_is_asked_for_as_many_tokens_as_we_write(tmp_path: Path) -> None:
    """Fixed lengths: one request or a skeleton and its entries; then answers of its own."""
    with llama_server() as (url, bodies):
        content = run(
            "llama_cpp",
            tmp_path,
            *("--gguf", tmp_path / "x.gguf", "--server", url, "--model", embedded_model_path()),
        )
    fixed, own = content["rows"]  # type: ignore[misc]
    assert fixed["answer"] == "3 entries, fixed lengths"
    assert {fixed[f"{way}: tokens"] for way in ("ours", *ONE_AND_SLOTS)} == {3 * (8 + 4)}
    assert own["llama.cpp, slots: tokens"] == 4 * (1 + len(POINTS.splitlines()))
    lengths = [body["n_predict"] for body in bodies if body["path"] == "/completion"]
    assert lengths.count(3 * 8) == 3  # a warm-up and two runs
    assert lengths.count(4) == 2 * 3
    assert lengths.count(36) == 2
    prompts = [body["messages"][0]["content"] for body in bodies if "messages" in body]
    assert len({prompt for prompt in prompts if "point" not in prompt}) == 1
    assert str(tmp_path) not in json.dumps(content)
    assert render.section(content).startswith("| ")


def test_llama_cpp_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where xllamacpp is not installed, nothing is measured, and the message names it."""
    monkeypatch.setattr("benchmarks.llama_server.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install xllamacpp"):
        LlamaServer(file="x.gguf")


def test_a_first_run_on_a_gpu_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step that fails or has no time left is named with what it said; the others count."""
    broken = gpu_first_run.Step("broken", "benchmarks.nothing_of_the_kind", (), 60)
    slow = gpu_first_run.Step("slow", "timeit", ("-n1", "-r1", "import time; time.sleep(60)"), 1)
    whole = gpu_first_run.steps("cpu", quick=True)[1:2]
    monkeypatch.setattr(gpu_first_run, "steps", lambda device, quick: [broken, slow, *whole])
    content = run("gpu_first_run", tmp_path)
    assert [row["outcome"] for row in content["rows"]] == [  # type: ignore[attr-defined]
        "exit code 1",
        "stopped after 1 s",
        "done",
    ]
    results: dict[str, dict[str, object]] = content["results"]  # type: ignore[assignment]
    assert "nothing_of_the_kind" in str(results["broken"]["said"])
    [written] = results[whole[0].name]["results"]  # type: ignore[misc]
    assert written["rows"]
    none = run("gpu_first_run", tmp_path, "--minutes", "0")
    assert {row["outcome"] for row in none["rows"]} == {"no time"}  # type: ignore[attr-defined]


def test_a_first_run_on_a_gpu_has_steps_that_exist() -> None:
    """Each is a benchmark of ours with options that it knows; a CPU is refused."""
    tests, *named = gpu_first_run.steps("cuda", quick=False)
    assert all((gpu_first_run.ROOT / word).exists() for word in tests.words if "/" in word)
    assert len({step.name for step in named}) == len(named) > 5
    for step in named:
        with pytest.raises(SystemExit, match="0"):
            import_module(step.module).main([*step.words, "--help"])
    with pytest.raises(SystemExit, match="for a CUDA device"):
        gpu_first_run.main(["--device", "cpu"])


def test_planning_without_gold_needs_a_judge(tmp_path: Path, folder: Path) -> None:
    """A task without right answers is measured, and its quality is not made up."""
    content = run("paper", tmp_path, "--data", folder, "--tasks", "planning", "--chain-of-draft")
    rows: list[dict[str, object]] = content["rows"]  # type: ignore[assignment]
    assert [row["quality"] for row in rows] == ["–"] * 5


def test_the_paper_s_form_is_measured_on_any_model(tmp_path: Path, folder: Path) -> None:
    """Also on one that brings no prompts for it."""
    shipped = embedded_model_path()
    model = tmp_path / "model"
    shutil.copytree(shipped, model, ignore=shutil.ignore_patterns("parallel_reasoning.json"))
    content = run("paper", tmp_path, "--data", folder, "--model", model)
    assert len(content["rows"]) == 3  # type: ignore[arg-type]
    assert content["model"] == "model"
    assert str(tmp_path) not in json.dumps(content)


def test_another_text_is_no_replay(tmp_path: Path, folder: Path) -> None:
    """A replay whose text is not the recorded one ends with an error that shows both."""
    recorded = read(folder, "retrieval-10", 1)[0]
    tokenizer = tokenizer_for([recorded.prompt, recorded.parallel, recorded.skeleton])
    replay = Replay(engine_for(random_model("tiny"), tokenizer), recorded, SETTINGS)
    assert replay.run().tokens == replay.results[0].usage.output_tokens
    replay._conclusion = replay._conclusion[:-1]
    with pytest.raises(RuntimeError, match="differs from the recorded one"):
        replay.run()


@pytest.mark.parametrize("name", PLAIN)
def test_speed_benchmarks_need_no_langchain(name: str) -> None:
    """Those for a bare GPU machine load neither LangChain nor pydantic's users nor typer."""
    code = (
        f"import sys, benchmarks.{name}\n"
        "print(*[m for m in ('langchain_core', 'typer', 'rich', 'tenacity') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", PLAIN + WITH_DATA)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m benchmarks.NAME --help` says what it measures."""
    with pytest.raises(SystemExit, match="0"):
        import_module(f"benchmarks.{name}").main(["--help"])
    assert f"python -m benchmarks.{name}" in capsys.readouterr().out
