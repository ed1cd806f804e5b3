"""Shared steps of the commands: load the model, read a file, print, report failures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from langchain_pos.cli.options import EXIT_FAILED, quiet_libraries, say
from langchain_pos.embedded import SHIPPED_MODEL_NOTE
from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console

    from langchain_pos.results.data import Mode
    from langchain_pos.results.result import ReasoningResult
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM


def make_llm(settings: dict[str, Any]) -> ParallelReasoningLLM:
    """The runnable with the given settings; the one place that tests replace."""
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

    quiet_libraries()
    return ParallelReasoningLLM(**settings)


def load(**settings: Any) -> ParallelReasoningLLM:
    """The runnable with its model loaded; settings of None keep the runnable's defaults."""
    llm = make_llm({name: value for name, value in settings.items() if value is not None})
    llm.engine  # noqa: B018  # loads the model, so that its errors precede any work
    if settings.get("model") is None:
        say(f"{SHIPPED_MODEL_NOTE}. --model names your own")
    return llm


def read_text(path: Path) -> str:
    """A file's text, or an error that says why it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def mode_of(sequential: bool) -> Mode:
    """The mode selected by `--sequential`."""
    return "sequential" if sequential else "parallel"


def new_console(*, stderr: bool = False) -> Console:
    """A console without automatic highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def is_live(console: Console) -> bool:
    """Whether `console` is a terminal that can be redrawn."""
    return console.file.isatty() and not console.is_dumb_terminal


def report(results: Iterable[ReasoningResult]) -> None:
    """Print remarks on answers; exit with an error code if one has failed."""
    from langchain_pos.cli.live import faults, remarks

    results = list(results)
    for line in [line for result in results for line in (*remarks(result), *faults(result))]:
        say(line)
    if any(faults(result) for result in results):
        raise typer.Exit(EXIT_FAILED)
