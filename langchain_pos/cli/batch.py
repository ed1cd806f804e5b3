"""`langchain-pos batch`: the questions of a file, answered together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from langchain_pos.cli.options import (
    EXIT_FAILED,
    BudgetOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    SeedOption,
    SequentialOption,
    TemperatureOption,
    exit_codes,
    say,
)
from langchain_pos.cli.running import load, mode_of, new_console


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
        int, typer.Option(min=1, help="Maximum number of questions answered at once.")
    ] = 16,
    max_branch_tokens: BudgetOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer the questions of a file together.

    Rows already in OUT.JSONL are skipped, so the same command continues where it was stopped.
    A question that fails keeps its row, with its error.
    """
    with exit_codes(debug):
        from langchain_pos.cli.batch_file import BatchFile

        work = BatchFile.open(source, target, retry_failed=retry_failed)
        if work.todo:
            llm = load(
                model=model,
                max_branch_tokens=max_branch_tokens,
                temperature=temperature,
                seed=seed,
                device=device,
                dtype=dtype,
                quantization=quantization,
            )
            work.answer(llm, new_console(stderr=True), mode_of(sequential), max_concurrency)
        say(work.summary())
        if work.failed:
            raise typer.Exit(EXIT_FAILED)
