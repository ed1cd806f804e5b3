"""`langchain-pos bench`: the gain of parallel decoding on this machine, by number of branches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_pos.cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    exit_codes,
)
from langchain_pos.cli.running import load, new_console
from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console

    from langchain_pos.cli.bench_measuring import BenchResult


def bench(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all measurements to this file.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Answers per mode; medians are shown.")] = 3,
    debug: DebugOption = False,
) -> None:
    """Measure what parallel gains on this machine.

    Recommends a value for max_parallel_branches.
    """
    with exit_codes(debug):
        from langchain_pos.cli.bench_measuring import measure
        from langchain_pos.embedded.demo import demo_question

        # The question is asked repeatedly, and its prefill should count every time.
        llm = load(
            model=model,
            device=device,
            dtype=dtype,
            quantization=quantization,
            prefix_cache_tokens=0,
        )
        result = measure(llm, demo_question(), runs=runs)
        show(new_console(), result)
        if json_file is not None:
            write(json_file, result)


def show(console: Console, result: BenchResult) -> None:
    """Print both tables and the recommendation."""
    from rich.table import Table

    engine = result.engine
    console.print(
        f"{engine['model']}, {engine['parameters']} parameters, {engine['dtype']} on "
        f"{engine['device']}\n",
        markup=False,
        soft_wrap=True,
    )
    answers = Table("one question", "seconds", "speed-up", "tokens", "passes", box=None)
    first = result.answers[0].median
    for answer in result.answers:
        answers.add_row(
            answer.way,
            f"{answer.median:.2f}",
            f"{first / answer.median:.2f}×",
            str(answer.tokens),
            str(answer.forward_passes),
        )
    steps = Table("rows of a pass", "milliseconds", "× one row", "tokens/s", box=None)
    for step in result.steps:
        steps.add_row(
            str(step.rows),
            f"{1e3 * step.seconds:.2f}",
            f"{step.seconds / result.steps[0].seconds:.2f}",
            f"{step.tokens_per_second:.0f}",
        )
    for table in (answers, steps):
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)
        console.print()
    if reason := result.answers[-1].fallback_reason:
        console.print(f"Parallel fell back to sequential: {reason}", markup=False, soft_wrap=True)
    console.print(recommendation(result), markup=False, soft_wrap=True)
    if result.busy:
        console.print(result.busy, markup=False, soft_wrap=True)


def recommendation(result: BenchResult) -> str:
    """What the figures imply for `max_parallel_branches` and for drafts."""
    most = result.recommended_branches
    why = "more rows hardly increase tokens per second"
    if most == result.steps[-1].rows:
        why = "the widest pass measured; tokens per second still grow"
    return (
        f"Recommended: max_parallel_branches={most} ({why}). Up to {result.free_rows} rows, a pass "
        "takes at most 1.3 times as long as one with a single row."
    )


def write(path: Path, result: BenchResult) -> None:
    """Write everything as JSON.

    Raises:
        InvalidRequestError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError(f"cannot write {path}: {error.strerror}") from error
