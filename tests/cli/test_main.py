"""The command `langchain-pos`, against a fake runnable that streams canned chunks."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from langchain_pos.cli.live import show_stream
from langchain_pos.embedded.demo import DEMO_ANSWER, demo_question
from langchain_pos.results.plain_text import strip_control_characters
from langchain_pos.results.result import ReasoningChunk, ReasoningResult
from langchain_pos.results.terminal import AnswerView
from tests.support.fake_runnable import BODIES, FakeLLM, llm, parallel_chunks, run

__all__ = ["llm"]  # a fixture

PLAIN = """\
Let me look at each student.

Ann: GPA 3.10, outside
Ben: GPA 2.40, inside
Cem: GPA 4.00, outside

The answer is
name: Ben
"""


def test_help_loads_no_torch() -> None:
    """`langchain-pos --help` is answered before anything heavy is imported."""
    code = (
        "import sys\nfrom langchain_pos.cli.main import main\n"
        "sys.argv = ['langchain-pos', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', *[m for m in ('torch', 'transformers', 'langchain_core') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "doctor" in out.stdout
    assert out.stdout.splitlines()[-1] == "heavy:"


def test_version() -> None:
    """`--version` says the package's version."""
    from langchain_pos import __version__

    assert run("--version").output == f"langchain-pos {__version__}\n"


def test_ask_prints_plain_text(llm: FakeLLM) -> None:
    """Not on a terminal, stdout has the answer alone, without escape codes; figures on stderr."""
    done = run("ask", "Who?")
    assert done.exit_code == 0
    assert done.stdout == PLAIN
    assert done.stderr == (
        "parallel: plan 20 passes 0.50 s · expand 12 passes 0.25 s · conclude 8 passes 0.25 s · "
        "total 40 passes 1.00 s · 120 tokens, 3.0 per pass (one at a time: 1.0)\n"
    )
    assert llm.asked == [("Who?", "parallel")]


@pytest.mark.parametrize("args", [("ask",), ("ask", "-")])
def test_ask_reads_stdin(llm: FakeLLM, args: tuple[str, ...]) -> None:
    """Without an argument, or with a dash, the question comes from stdin."""
    run(*args, stdin="Who?\nTell me.\n")
    assert llm.asked == [("Who?\nTell me.", "parallel")]


def test_ask_reads_a_file(llm: FakeLLM, tmp_path: Path) -> None:
    """`--file` names the question's file."""
    file = tmp_path / "q.txt"
    file.write_text("谁？\n", encoding="utf-8")
    assert run("ask", "--file", file).exit_code == 0
    assert llm.asked == [("谁？", "parallel")]


def test_ask_passes_on_what_was_given(llm: FakeLLM) -> None:
    """Settings that were given reach the runnable; the others stay at its defaults."""
    run("ask", "Who?", "--steps", "Ann, Ben", "--steps", "Cem", "--sequential", "--seed", "7")
    assert llm.settings == {"seed": 7}
    assert llm.asked == [({"question": "Who?", "steps": ["Ann", "Ben", "Cem"]}, "sequential")]
    args = "--model m --device cpu --dtype float32 --max-branch-tokens 9 --temperature 0.5"
    run("ask", "Who?", *args.split())
    assert llm.settings == {
        "model": "m",
        "device": "cpu",
        "dtype": "float32",
        "max_branch_tokens": 9,
        "temperature": 0.5,
    }


def test_ask_json_is_the_result(llm: FakeLLM) -> None:
    """`--json` prints a result that can be read back."""
    done = run("ask", "Who?", "--json")
    assert ReasoningResult.model_validate_json(done.stdout) == llm.invoke("Who?")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("ask", "  "), 2, "the question is empty"),
        (("ask", "Who?", "--file", "q.txt"), 2, "both given"),
        (("ask", "--file", "no such file"), 2, "cannot read no such file"),
        (("ask", "Who?", "--max-branch-tokens", "0"), 2, "max-branch-tokens"),
        (("ask", "Who?", "--model", "missing"), 3, "no model 'missing': name a folder"),
        (("ask", "Who?", "--model", "mamba"), 3, "recurrent state"),
        (("doctor", "--model", "mamba"), 3, "recurrent state"),
        (("ask", "too long"), 1, "9000 tokens"),
        (("ask", "bad branch"), 1, "step 'Ann' failed: logits are NaN"),
        (("ask", "broken"), 4, "RuntimeError: a bug (--debug shows the traceback)"),
    ],
)
@pytest.mark.usefixtures("llm")
def test_errors_are_one_line_and_a_code(args: tuple[str, ...], code: int, message: str) -> None:
    """Every kind of error has its exit code and says on stderr what is wrong."""
    done = run(*args)
    assert done.exit_code == code
    assert message in done.stderr
    assert "Traceback" not in done.output
    if code != 2 and args[1] != "bad branch":
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("llm")
def test_fallback_and_length_are_said() -> None:
    """An answer that was written sequentially after all, or cut off, says so on stderr."""
    done = run("ask", "one thing")
    assert done.exit_code == 0
    assert done.stdout == "It is B\n"
    assert "answered sequentially (no valid plan)" in done.stderr
    assert "the conclusion was cut off at its token budget" in done.stderr


@pytest.mark.usefixtures("llm")
def test_debug_lets_errors_through() -> None:
    """`--debug` shows the error as Python does."""
    assert isinstance(run("ask", "broken", "--debug").exception, RuntimeError)


def drawn(view: AnswerView, width: int, height: int) -> list[str]:
    """The lines of a view on a terminal of this size."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, no_color=True)
    console.print(view)
    return [line for line in out.getvalue().replace("\x1b[1m", "").splitlines() if line.strip()]


def view_of(count: int) -> AnswerView:
    """A live view of that many branches, each with some text."""
    view = AnswerView(live=True)
    bodies = {f"Student {i}": f"body {i} " + "x " * 60 for i in range(count)}
    for chunk in parallel_chunks(bodies):
        if chunk.stage != "conclude":
            view.feed(chunk)
    return view


def test_branches_stand_side_by_side() -> None:
    """On a wide terminal several titles share a line."""
    lines = drawn(view_of(3), 120, 30)
    assert any(all(f"Student {i}" in line for i in range(3)) for line in lines)


@pytest.mark.parametrize("count", [1, 2, 10, 30, 1000])
@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50)])
def test_live_view_fits_the_terminal(count: int, size: tuple[int, int]) -> None:
    """However many branches there are, what is drawn is no higher than the terminal."""
    view = view_of(count)
    assert len(drawn(view, *size)) <= size[1]
    view.conclusion = "the end " * 500
    assert len(drawn(view, *size)) <= size[1]


def test_skeleton_shows_until_its_block_is_known() -> None:
    """While stage 1 writes, its raw text is seen; then its steps are."""
    view, chunks = AnswerView(live=True), parallel_chunks()
    view.feed(next(chunks))
    assert any("####Ann" in line for line in drawn(view, 80, 24))
    view.feed(next(chunks))
    assert not any("####Ann" in line for line in drawn(view, 80, 24))
    view.feed(ReasoningChunk(stage="plan", delta="no block after all"))
    view.feed(ReasoningChunk(stage="conclude", conclusion="the end"))
    lines = drawn(view, 80, 24)
    assert any("the end" in line for line in lines)
    assert not any("no block" in line for line in lines)


def test_model_text_is_only_text() -> None:
    """Markup and control characters that a model writes do not steer the terminal."""
    assert strip_control_characters("a\x1b[31mb\r\x07\x9bc\nd\te") == "a[31mbc\nd\te"
    view = view_of(1)
    view.blocks[0].branches[0].text = "[bold red]x[/] [/nonsense]"
    assert any("[bold red]x[/] [/nonsense]" in line for line in drawn(view, 80, 24))


@pytest.mark.parametrize("live", [True, False])
def test_stream_is_closed_when_interrupted(live: bool) -> None:
    """An interruption closes the stream, which cancels the answer."""
    closed = []

    def chunks() -> Iterator[ReasoningChunk]:
        try:
            yield from parallel_chunks()
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    console = Console(file=io.StringIO(), force_terminal=live)
    with pytest.raises(KeyboardInterrupt):
        show_stream(console, chunks(), live=live)
    assert closed == [True]


def test_live_result_is_the_sum_of_the_stream() -> None:
    """A terminal gets the same result, and in the end sees all of it."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    result = show_stream(console, parallel_chunks(), live=True)
    assert {b.title: b.text for b in result.branches} == BODIES
    assert "name: Ben" in out.getvalue()


def test_demo_shows_both(llm: FakeLLM) -> None:
    """The demo answers in parallel and sequentially, and compares passes and seconds."""
    done = run("demo")
    assert done.exit_code == 0
    assert [mode for _, mode in llm.asked] == ["parallel", "parallel", "sequential"]
    assert "40 passes 1.00 s" in done.stdout
    assert "120 passes 3.00 s" in done.stdout
    assert "3.00 times the forward passes and 3.00 times the seconds" in done.stdout


def test_demo_question_has_one_answer() -> None:
    """Of the ten students of the demo's question just the named one lies in the range."""
    text = demo_question()
    students = [line.split(" is ")[0][18:] for line in text.splitlines() if " GPA of " in line]
    gpas = [float(part[:4]) for part in text.split("with a GPA of ")[1:]]
    low, high = (float(word) for word in text.split("GPA between ")[1].split("?")[0].split(" and "))
    inside = [name for name, gpa in zip(students, gpas, strict=True) if low <= gpa <= high]
    assert len(students) == 10
    assert inside == [DEMO_ANSWER]


@pytest.mark.usefixtures("llm")
def test_doctor_says_versions_and_probe() -> None:
    """The doctor lists versions, device and what the probe says."""
    done = run("doctor")
    assert done.exit_code == 0
    keys = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"python", "torch", "transformers", "cuda", "attention", "probe"} <= set(keys)
