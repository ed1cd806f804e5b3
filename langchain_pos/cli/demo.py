"""`langchain-pos demo`: the question that ships with the package, answered both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from langchain_pos.cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    exit_codes,
)
from langchain_pos.cli.running import is_live, load, new_console, report

if TYPE_CHECKING:
    from langchain_pos.results.data import Mode
    from langchain_pos.results.result import ReasoningResult

MODES: tuple[Mode, ...] = ("parallel", "sequential")


def demo(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer a question that ships with the package, in parallel and sequentially."""
    with exit_codes(debug):
        from langchain_pos.cli.live import comparison, show_stream
        from langchain_pos.embedded.demo import DEMO_ANSWER, demo_question

        question = demo_question()
        console = new_console()
        live = is_live(console)
        typer.echo(question + "\n")
        llm = load(model=model, device=device, dtype=dtype, quantization=quantization)
        # Not shown: the first question includes the one-time setup.
        llm.invoke(question, max_branch_tokens=1, max_conclusion_tokens=1)
        results: dict[Mode, ReasoningResult] = {}
        for mode in MODES:
            typer.echo(f"--- {mode} ---")
            results[mode] = show_stream(console, llm.stream(question, mode=mode), live=live)
            right = DEMO_ANSWER.casefold() in results[mode].conclusion.casefold()
            typer.echo(f"({'right' if right else 'wrong'}: it is {DEMO_ANSWER})\n")
        typer.echo("\n".join(comparison(results["parallel"], results["sequential"])))
        report(results.values())
