"""The command `langchain-pos`, against a fake runnable that streams canned chunks."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command

from langchain_pos.cli.demo import shortened, verdict
from langchain_pos.cli.live import Interrupted, show_stream
from langchain_pos.cli.main import app
from langchain_pos.embedded import SHIPPED_MODEL_NOTE
from langchain_pos.embedded.demo import DEMO_ANSWER, demo_question
from langchain_pos.engine.cpu.neighbours import Neighbours
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.plain_text import strip_control_characters
from langchain_pos.results.result import ReasoningChunk, ReasoningResult
from langchain_pos.results.terminal import AnswerView
from tests.support.fake_runnable import (
    BODIES,
    FakeLLM,
    interrupted_chunks,
    llm,
    parallel_chunks,
    run,
)

__all__ = ["llm"]  # a fixture

ROOT = Path(__file__).parents[2]
COMMANDS = [get_command(app), *get_command(app).commands.values()]  # type: ignore[attr-defined]
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


def test_documented_commands_are_understood() -> None:
    """Every line of README and documentation that is a command names options that there are."""
    found = []
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text("utf-8")
        lines = re.findall(r"^ {4}langchain-pos (.*)$", text, re.MULTILINE)
        for fence in re.findall(r"^```sh$(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            lines += re.findall(r"^langchain-pos (.*)$", fence, re.MULTILINE)
        found += [re.split(r" {2,}", line)[0] for line in lines]
    assert len(found) > 12
    for line in found:
        name, *args = shlex.split(line)
        command = get_command(app).commands[name]  # type: ignore[attr-defined]
        command.make_context(name, args)  # raises where an option is unknown or a value not allowed


def test_ask_prints_plain_text(llm: FakeLLM) -> None:
    """Not on a terminal, stdout has the answer alone, without escape codes; figures on stderr."""
    done = run("ask", "Who?", "--model", "m")
    assert done.exit_code == 0
    assert done.stdout == PLAIN
    assert done.stderr == (
        "parallel: plan 20 passes 0.50 s · expand 12 passes 0.25 s · conclude 8 passes 0.25 s · "
        "total 40 passes 1.00 s · 120 tokens, 3.0 per pass (one at a time: 1.0), 120 per second\n"
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


def test_every_budget_can_be_given(llm: FakeLLM) -> None:
    """`ask` has an option for every setting that bounds how much is written."""
    budgets = [name for name in ReasoningSettings.model_fields if name.startswith("max_")]
    budgets = [name for name in budgets if name not in ("max_plan_attempts", "max_pressure")]
    options = [f"--{name.replace('_', '-')}=99" for name in budgets]
    run("ask", "Who?", *options)
    assert llm.settings == dict.fromkeys(budgets, 99)


@pytest.mark.usefixtures("llm")
def test_the_shipped_model_says_what_it_is() -> None:
    """Once, on stderr, where no model is named; not where one is."""
    for command in (("ask", "Who?"), ("doctor",), ("demo",)):
        assert run(*command).stderr.count(SHIPPED_MODEL_NOTE) == 1
        assert SHIPPED_MODEL_NOTE not in run(*command, "--model", "m").output


@pytest.mark.parametrize("command", ["", *(command.name or "" for command in COMMANDS)])
def test_no_line_of_help_is_cut(command: str) -> None:
    """On eighty columns every command is summarised in whole words, and options are explained."""
    done = run(*command.split(), "--help")
    assert done.exit_code == 0
    assert "..." not in done.stdout.replace("[ARGS]...", "").replace("[OPTIONS] COMMAND", "")


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
        (("ask", "too long", "--model", "m"), 1, "9000 tokens"),
        (("ask", "bad branch"), 1, "step 'Ann' failed: logits are NaN"),
        (("ask", "broken", "--model", "m"), 4, "RuntimeError: a bug (--debug shows the traceback)"),
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


def test_thoughts_show_until_there_is_an_answer_and_are_no_part_of_its_text() -> None:
    """While a model thinks they are seen; the whole answer has them first, plain text has none."""
    view = AnswerView(live=True)
    view.feed(ReasoningChunk(stage="plan", thoughts="Let me see. "))
    view.feed(ReasoningChunk(stage="plan", thoughts="Two parts."))
    assert any("Let me see. Two parts." in line for line in drawn(view, 80, 24))
    view.feed(ReasoningChunk(stage="conclude", conclusion="the end"))
    assert not any("Two parts" in line for line in drawn(view, 80, 24))
    whole = AnswerView.of(ReasoningResult(thoughts="Two parts.", conclusion="the end"))
    first, last = drawn(whole, 80, 24)
    assert "Two parts." in first
    assert "the end" in last
    assert whole.plain() == "the end"


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


@pytest.mark.parametrize("live", [True, False])
def test_an_interrupted_answer_stays(live: bool) -> None:
    """What was written when Ctrl+C came is on the screen, of every branch, and in the error."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=live, width=100)
    with pytest.raises(Interrupted) as caught:
        show_stream(console, interrupted_chunks(), live=live)
    written = out.getvalue()
    assert all(text in written for text in ("Ann", "GPA 3.10", "Ben", "GPA 2.40", "Cem"))
    assert caught.value.result is not None
    assert [b.text for b in caught.value.result.branches] == ["GPA 3.10", "GPA 2.40", "GPA 4.00"]


def test_a_pipe_gets_the_answer_while_it_is_written() -> None:
    """In reading order, each piece once: the first branch as it grows, the others in turn."""
    out, steps = io.StringIO(), []

    def watched() -> Iterator[ReasoningChunk]:
        for chunk in parallel_chunks():
            steps.append(out.getvalue())
            yield chunk

    show_stream(Console(file=out), watched(), live=False)
    assert out.getvalue() == PLAIN
    assert all(later.startswith(earlier) for earlier, later in pairwise(steps))
    assert "Let me look at each student.\n\nAnn: GPA" in steps
    assert any(step.endswith("Ann: GPA 3.10, outside\nBen: GPA 2.40, inside") for step in steps)


def test_live_result_is_the_sum_of_the_stream() -> None:
    """A terminal gets the same result, and in the end sees all of it."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    result = show_stream(console, parallel_chunks(), live=True)
    assert {b.title: b.text for b in result.branches} == BODIES
    assert "name: Ben" in out.getvalue()


def test_the_package_can_be_run() -> None:
    """`python -m langchain_pos` is the command, by the name that its script has."""
    command = [sys.executable, "-m", "langchain_pos", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "Usage: langchain-pos" in done.stdout


def test_demo_mentions_a_busy_machine(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that neighbours spoilt are not shown without a word, nor mixed with the answer."""
    monkeypatch.setattr(Neighbours, "warning", lambda _: None)
    assert "Meanwhile" not in run("demo").output
    monkeypatch.setattr(Neighbours, "warning", lambda _: "Meanwhile others worked.")
    done = run("demo")
    assert "Meanwhile others worked." in done.stderr
    assert "Meanwhile" not in done.stdout


def test_demo_compares_with_both_baselines(llm: FakeLLM) -> None:
    """It warms up in every way, then measures each, and closes with one line."""
    done = run("demo")
    assert done.exit_code == 0
    ways = ["parallel", "sequential", "sequential"]
    assert [mode for _, mode in llm.asked] == [*ways, *ways]
    assert llm.settings == {"prefix_cache_tokens": 0}
    assert "40 passes 1.00 s" in done.stdout
    assert "120 passes 3.00 s" in done.stdout
    last = " ".join(done.stdout.split("\n\n")[-1].split())
    assert last == (
        "3.0× faster than one after another (40 passes against 120), "
        "1.5× faster than that with drafts (60)."
    )


def test_demo_says_where_drafts_bring_nothing(llm: FakeLLM) -> None:
    """With as many passes as without them, there is nothing to compare."""
    parallel = llm.invoke("Who?")
    plain = llm.invoke("Who?", mode="sequential", drafts=False)
    said = " ".join(" ".join(verdict([parallel, plain, plain], 80)).split())
    assert said.endswith("Drafts gain nothing here: a pass of more rows takes longer.")
    assert "one after another (" in said


def test_demo_shows_its_question_short() -> None:
    """One record of ten and the end, wrapped between words."""
    lines = shortened(demo_question(), 60).splitlines()
    assert max(map(len, lines)) <= 60
    text = " ".join(lines)
    assert "Marisol Quant" in text
    assert "Tobin Ashgrove" not in text
    assert "… and 9 more" in text
    assert 'in the format of "name: {answer}"' in text


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
