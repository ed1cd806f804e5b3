"""`langchain-pos demo`: the question that ships with the package, and what parallel saves on it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Sequence

    from langchain_pos.results.result import ReasoningResult

WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("in parallel", "the branches are written at once", {"mode": "parallel"}),
    (
        "one after another",
        "one token per forward pass, as other software writes",
        {"mode": "sequential", "drafts": False},
    ),
    (
        "… with drafts",
        "sequentially, and tokens that quote the question are guessed ahead",
        {"mode": "sequential"},
    ),
)
"""What is compared: a name, what it means, and its settings. The last two are the baselines."""
_SHORT: dict[str, Any] = {
    "max_branch_tokens": 8,
    "max_conclusion_tokens": 8,
    "max_sequential_tokens": 8,
}


def demo(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer a question in parallel and one token at a time."""
    with exit_codes(debug):
        from langchain_pos.cli.live import show_stream
        from langchain_pos.embedded.demo import DEMO_ANSWER, demo_question
        from langchain_pos.engine.cpu.neighbours import Neighbours

        question = demo_question()
        console = new_console()
        live = is_live(console)
        # Every way reads the question itself; nothing is kept from one to the next.
        llm = load(
            model=model,
            device=device,
            dtype=dtype,
            quantization=quantization,
            prefix_cache_tokens=0,
        )
        typer.echo(shortened(question, console.width) + "\n")
        for _, _, settings in WAYS:  # not shown: the first answers include one-time setup
            llm.invoke(question, **settings, **_SHORT)
        results: list[ReasoningResult] = []
        neighbours = Neighbours(llm.engine.describe()["device"])
        for name, meaning, settings in WAYS:
            typer.echo(f"--- {name}: {meaning} ---")
            if len(results) < len(WAYS) - 1:
                chunks = llm.stream(question, **settings)
                results.append(show_stream(console, chunks, live=live))
            else:  # the same text as before
                results.append(llm.invoke(question, **settings))
            right = DEMO_ANSWER.casefold() in results[-1].conclusion.casefold()
            typer.echo(f"({'right' if right else 'wrong'}: it is {DEMO_ANSWER})\n")
        if busy := neighbours.warning():
            typer.echo(_wrapped(busy, console.width) + "\n", err=True)
        typer.echo("\n".join([*table(results), "", *verdict(results, console.width)]))
        report(results)


def shortened(question: str, width: int) -> str:
    """The question's first record and its end, wrapped by words; how much is left out."""
    head, *records, end = question.split("\n\n")
    lines = "\n".join(records).splitlines()
    shown = [head, *lines[:1], f"… and {len(lines) - 1} more", "", end]
    return "\n".join(_wrapped(line, width) for line in shown)


def table(results: Sequence[ReasoningResult]) -> list[str]:
    """Passes and seconds by stage, a row for each way."""
    stages = ("plan", "expand", "conclude", "total")
    rows = [" " * 17 + "".join(f"  {stage:>17}" for stage in stages)]
    for (name, _, _), result in zip(WAYS, results, strict=True):
        cells = [
            (getattr(result.forward_passes, stage), getattr(result.timings, stage))
            for stage in stages
        ]
        shown = (f"{passes} passes {seconds:.2f} s" if passes else "–" for passes, seconds in cells)
        rows.append(f"{name:17}" + "".join(f"  {cell:>17}" for cell in shown))
    return rows


def verdict(results: Sequence[ReasoningResult], width: int) -> list[str]:
    """One sentence that compares parallel with both baselines."""
    parallel, plain, drafted = results
    if parallel.mode != "parallel":
        return [_wrapped("Nothing was gained: this model wrote no branches here.", width)]
    passes = [result.forward_passes.total for result in results]
    with_drafts = f", {speed(parallel, drafted)} that with drafts ({passes[2]})."
    if passes[1] == passes[2]:
        with_drafts = ". Drafts gain nothing here: a pass of more rows takes longer."
    said = f"{speed(parallel, plain)} one after another ({passes[0]} passes against {passes[1]})"
    return [_wrapped(said + with_drafts, width)]


def speed(one: ReasoningResult, other: ReasoningResult) -> str:
    """How the seconds of two answers compare, such as "3.0× faster than"."""
    ratio = other.timings.total / max(1e-9, one.timings.total)
    if 0.95 < ratio < 1.05:
        return "as fast as"
    return f"{ratio:.1f}× faster than" if ratio > 1 else f"{1 / ratio:.1f}× slower than"


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, max(20, width), break_long_words=False, break_on_hyphens=False)
