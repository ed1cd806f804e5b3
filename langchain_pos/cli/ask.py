"""`langchain-pos ask`: one question, answered on the terminal or as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from langchain_pos.cli.options import (
    BlocksOption,
    BranchesOption,
    BranchThinkingBudget,
    BudgetOption,
    ConclusionBudget,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    PlanBudget,
    PreambleBudget,
    QuantizationOption,
    SeedOption,
    SequentialBudget,
    SequentialOption,
    TemperatureOption,
    ThinkingBudget,
    TitleBudget,
    TogetherOption,
    WholeBudget,
    exit_codes,
)
from langchain_pos.cli.running import is_live, load, mode_of, new_console, read_text, report
from langchain_pos.errors import InvalidRequestError


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
    max_tokens: WholeBudget = None,
    max_branch_tokens: BudgetOption = None,
    max_conclusion_tokens: ConclusionBudget = None,
    max_sequential_tokens: SequentialBudget = None,
    max_plan_tokens: PlanBudget = None,
    max_preamble_tokens: PreambleBudget = None,
    max_title_tokens: TitleBudget = None,
    max_branches: BranchesOption = None,
    max_parallel_branches: TogetherOption = None,
    max_blocks: BlocksOption = None,
    max_thinking_tokens: ThinkingBudget = None,
    max_branch_thinking_tokens: BranchThinkingBudget = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer one question.

    A terminal shows the branches side by side while they are written. Elsewhere the answer is
    written as plain text as soon as it is certain.
    """
    with exit_codes(debug):
        text = _read_question(question, file)
        request: str | dict[str, Any] = text
        if steps:
            titles = [title.strip() for value in steps for title in value.split(",")]
            request = {"question": text, "steps": [title for title in titles if title]}
        llm = load(
            model=model,
            max_tokens=max_tokens,
            max_branch_tokens=max_branch_tokens,
            max_conclusion_tokens=max_conclusion_tokens,
            max_sequential_tokens=max_sequential_tokens,
            max_plan_tokens=max_plan_tokens,
            max_preamble_tokens=max_preamble_tokens,
            max_title_tokens=max_title_tokens,
            max_branches=max_branches,
            max_parallel_branches=max_parallel_branches,
            max_blocks=max_blocks,
            max_thinking_tokens=max_thinking_tokens,
            max_branch_thinking_tokens=max_branch_thinking_tokens,
            temperature=temperature,
            seed=seed,
            device=device,
            dtype=dtype,
            quantization=quantization,
        )
        from langchain_pos.cli.live import closing_line, show_stream

        mode = mode_of(sequential)
        if as_json:
            result = llm.invoke(request, mode=mode)
            typer.echo(result.model_dump_json(indent=2))
        else:
            console = new_console()
            live = is_live(console)
            result = show_stream(console, llm.stream(request, mode=mode), live=live)
            typer.echo(closing_line(result), err=not live)
        report([result])


def _read_question(argument: str | None, file: Path | None) -> str:
    """The question from the argument, the file or, failing both, stdin."""
    if argument not in (None, "-") and file is not None:
        raise InvalidRequestError("a question and --file were both given; give one of them")
    if file is not None:
        text = read_text(file)
    elif argument not in (None, "-"):
        text = str(argument)
    elif argument is None and sys.stdin.isatty():
        raise InvalidRequestError("no question; give it as an argument, with --file or on stdin")
    else:
        text = sys.stdin.read()
    if not text.strip():
        raise InvalidRequestError("the question is empty; write a question")
    return text.strip()
