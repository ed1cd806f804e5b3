"""The command `langchain-pos`: ask, batch, demo, bench, serve, doctor.

Exit codes:

    0    every question was answered
    1    a question, or a step of one, failed
    2    the command line or its input is not usable
    3    the model cannot be loaded, or cannot be served
    4    a fault in langchain-pos itself; run again with --debug and report it
    130  interrupted

Errors are one line on stderr; `--debug` shows tracebacks. torch and transformers are imported by
the commands that need them, so `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langchain_pos.cli.options import (
    EXIT_FAILED,
    BudgetOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    SequentialOption,
    TemperatureOption,
    exit_codes,
    quiet_libraries,
    say,
)
from langchain_pos.cli.serve import serve
from langchain_pos.errors import InvalidRequestError, ParallelReasoningError

if TYPE_CHECKING:
    from rich.console import Console

    from langchain_pos.results.data import Mode
    from langchain_pos.results.result import ReasoningResult
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

MODES: tuple[Mode, ...] = ("parallel", "sequential")

app = typer.Typer(
    help="Answer questions with parallel decoding in one sequence.",
    epilog="Exit codes: 0 answered, 1 a question failed, 2 usage, 3 the model cannot be loaded, "
    "4 a fault in langchain-pos itself, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command."""
    app(prog_name="langchain-pos")


def _print_version(wanted: bool) -> None:
    if wanted:
        from langchain_pos import __version__

        typer.echo(f"langchain-pos {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Answer questions with parallel decoding in one sequence."""


@app.command()
def ask(
    question: Annotated[
        str | None, typer.Argument(help="The question; '-' or nothing reads it from stdin.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the question from this file.")
    ] = None,
    model: ModelOption = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(help="Titles of the steps, separated by commas; may be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole result as JSON.")
    ] = False,
    sequential: SequentialOption = False,
    max_branch_tokens: BudgetOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer one question; a terminal shows its branches side by side while they are written."""
    with exit_codes(debug):
        text = _read_question(question, file)
        request: str | dict[str, Any] = text
        if steps:
            titles = [title.strip() for value in steps for title in value.split(",")]
            request = {"question": text, "steps": [title for title in titles if title]}
        llm = _load(
            model=model,
            max_branch_tokens=max_branch_tokens,
            temperature=temperature,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        from langchain_pos.cli.live import closing_line, show_stream

        mode = _mode(sequential)
        if as_json:
            result = llm.invoke(request, mode=mode)
            typer.echo(result.model_dump_json(indent=2))
        else:
            console = _console()
            live = _is_live(console)
            result = show_stream(console, llm.stream(request, mode=mode), live=live)
            typer.echo(closing_line(result), err=not live)
        _report([result])


@app.command()
def batch(
    source: Annotated[
        Path, typer.Argument(metavar="IN.JSONL", help="Rows with question or prompt; id, steps.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT.JSONL", help="Answers, appended as they are finished.")
    ],
    model: ModelOption = None,
    sequential: SequentialOption = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask questions that failed before again.")
    ] = False,
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Most questions that are answered at once.")
    ] = 16,
    max_branch_tokens: BudgetOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer many questions together.

    Rows that OUT.JSONL already has are skipped, so the same command goes on where it was stopped.
    A question that fails keeps its row, with its error.
    """
    with exit_codes(debug):
        from langchain_pos.cli.batch import BatchFile

        work = BatchFile.open(source, target, retry_failed=retry_failed)
        if work.todo:
            llm = _load(
                model=model,
                max_branch_tokens=max_branch_tokens,
                temperature=temperature,
                seed=seed,
                device=device,
                dtype=dtype,
            )
            work.answer(llm, _console(stderr=True), _mode(sequential), max_concurrency)
        say(work.summary())
        if work.failed:
            raise typer.Exit(EXIT_FAILED)


@app.command()
def demo(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer a question that ships with the package, in parallel and sequentially."""
    with exit_codes(debug):
        from langchain_pos.cli.live import comparison, show_stream
        from langchain_pos.embedded.demo import DEMO_ANSWER, demo_question

        question = demo_question()
        console = _console()
        live = _is_live(console)
        typer.echo(question + "\n")
        llm = _load(model=model, device=device, dtype=dtype)
        # Not shown: the first question also pays for what is set up once.
        llm.invoke(question, max_branch_tokens=1, max_conclusion_tokens=1)
        results: dict[Mode, ReasoningResult] = {}
        for mode in MODES:
            typer.echo(f"--- {mode} ---")
            results[mode] = show_stream(console, llm.stream(question, mode=mode), live=live)
            right = DEMO_ANSWER.casefold() in results[mode].conclusion.casefold()
            typer.echo(f"({'right' if right else 'wrong'}: it is {DEMO_ANSWER})\n")
        typer.echo("\n".join(comparison(results["parallel"], results["sequential"])))
        _report(results.values())


@app.command()
def bench(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all measurements to this file.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Answers in each way; medians are shown.")] = 3,
    debug: DebugOption = False,
) -> None:
    """Measure parallel against sequential on this machine; recommend max_parallel_branches."""
    with exit_codes(debug):
        from langchain_pos.cli.bench import show, write
        from langchain_pos.cli.bench_measuring import measure
        from langchain_pos.embedded.demo import demo_question

        # The question is asked again and again, and each time its prefill shall count.
        llm = _load(model=model, device=device, dtype=dtype, prefix_cache_tokens=0)
        result = measure(llm, demo_question(), runs=runs)
        show(_console(), result)
        if json_file is not None:
            write(json_file, result)


app.command()(serve)


@app.command()
def doctor(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    debug: DebugOption = False,
) -> None:
    """Say what this machine has, and whether a model passes the probe on it."""
    with exit_codes(debug):
        for key, value in _machine().items():
            typer.echo(f"{key:16} {value}")
        try:
            llm = _load(model=model, device=device, dtype=dtype)
        except ParallelReasoningError as error:
            typer.echo(f"{'model':16} {model or 'the shipped one'}: cannot be served")
            raise error
        for key, value in llm.engine.describe().items():
            typer.echo(f"{key:16} {value}")


def _make_llm(settings: dict[str, Any]) -> ParallelReasoningLLM:
    """The runnable with the settings that were given; the one place that tests replace."""
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

    quiet_libraries()
    return ParallelReasoningLLM(**settings)


def _load(**settings: Any) -> ParallelReasoningLLM:
    """The runnable with its model loaded; settings of None stay at the runnable's defaults."""
    if sys.stderr.isatty():
        typer.echo("Loading the model …", err=True)
    llm = _make_llm({name: value for name, value in settings.items() if value is not None})
    llm.engine  # noqa: B018  # loads the model, so that its errors come before any work
    return llm


def _read_question(argument: str | None, file: Path | None) -> str:
    """The question from where it was given; stdin when nowhere else."""
    if argument not in (None, "-") and file is not None:
        raise InvalidRequestError("a question and --file were both given; give one of them")
    if file is not None:
        from langchain_pos.cli.batch import read_text

        text = read_text(file)
    elif argument not in (None, "-"):
        text = str(argument)
    elif argument is None and sys.stdin.isatty():
        raise InvalidRequestError("no question; give it as an argument, with --file or on stdin")
    else:
        text = sys.stdin.read()
    if not text.strip():
        raise InvalidRequestError("the question is empty; write what is to be answered")
    return text.strip()


def _mode(sequential: bool) -> Mode:
    return "sequential" if sequential else "parallel"


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def _is_live(console: Console) -> bool:
    """Whether `console` is a terminal that can be redrawn."""
    return console.file.isatty() and not console.is_dumb_terminal


def _report(results: Iterable[ReasoningResult]) -> None:
    """Say what should be known about answers; leave with an exit code if one has failed."""
    from langchain_pos.cli.live import faults, remarks

    results = list(results)
    for line in [line for result in results for line in (*remarks(result), *faults(result))]:
        say(line)
    if any(faults(result) for result in results):
        raise typer.Exit(EXIT_FAILED)


def _machine() -> dict[str, str]:
    """Versions and devices."""
    import os
    import platform
    from importlib.metadata import version

    import torch

    names = ("langchain-pos", "langchain-core", "torch", "transformers", "xgrammar")
    found = {"python": f"{platform.python_version()} on {platform.platform()}"}
    found |= {name: version(name) for name in names}
    found["cpu"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found["cuda"] = ", ".join(gpus) or "none found"
    return found
