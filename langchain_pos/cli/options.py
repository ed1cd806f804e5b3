"""Shared by the commands: options, exit codes, and one-line errors on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from langchain_pos.errors import (
    InvalidRequestError,
    ModelLoadError,
    ParallelReasoningError,
    UnsupportedModelError,
)

EXIT_FAILED, EXIT_USAGE, EXIT_MODEL, EXIT_FAULT, EXIT_INTERRUPTED = 1, 2, 3, 4, 130

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Folder, .gguf file or hub name; without it, the shipped model."
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; chosen if omitted.")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; chosen if omitted.")
]
QuantizationOption = Annotated[
    str | None, typer.Option(help="int8: eight-bit weights, on a CPU; off if omitted.")
]
BudgetOption = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of tokens in a branch.")
]
ConclusionBudget = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of tokens in the conclusion.")
]
SequentialBudget = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of tokens in a sequential answer.")
]
PlanBudget = Annotated[int | None, typer.Option(min=64, help="Maximum number of tokens in a plan.")]
PreambleBudget = Annotated[
    int | None, typer.Option(min=8, help="Maximum number of tokens before a plan's first step.")
]
TitleBudget = Annotated[
    int | None, typer.Option(min=4, help="Maximum number of tokens in a title.")
]
BranchesOption = Annotated[
    int | None, typer.Option(min=2, help="Maximum number of steps in one plan.")
]
TogetherOption = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of branches written at the same time.")
]
WholeBudget = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of tokens in the whole answer.")
]
ThinkingBudget = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum number of tokens that a model may think before it answers."),
]
BranchThinkingBudget = Annotated[
    int | None, typer.Option(min=0, help="Maximum number of tokens that each branch may think. [0]")
]
BlocksOption = Annotated[
    int | None,
    typer.Option(min=1, help="Maximum number of rounds of plan and branches in one answer."),
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0.0, help="0, the default, always takes the most likely token.")
]
SeedOption = Annotated[int | None, typer.Option(help="Seed, for a temperature above 0.")]
SequentialOption = Annotated[
    bool, typer.Option("--sequential", help="Answer sequentially, one token at a time.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def say(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"langchain-pos: {' '.join(message.split())}", err=True)


def quiet_libraries() -> None:
    """Silence transformers and the hub, except for download progress."""
    from huggingface_hub.utils.logging import set_verbosity_error
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading weights; that of a download stays
    enable_progress_bars()
    set_verbosity_error()  # its retries; we report the last one's error


@contextmanager
def exit_codes(debug: bool) -> Iterator[None]:
    """Turn errors into one line and an exit code; with `debug`, let them propagate."""
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            raise
        code = EXIT_FAULT
        message = str(error)
        if isinstance(error, (ModelLoadError, UnsupportedModelError)):
            code = EXIT_MODEL
        elif isinstance(error, InvalidRequestError):
            code = EXIT_USAGE
        elif isinstance(error, ParallelReasoningError):
            code = EXIT_FAILED
        else:
            message = f"{type(error).__name__}: {error} (--debug shows the traceback)"
        say(message)
        raise typer.Exit(code) from None
