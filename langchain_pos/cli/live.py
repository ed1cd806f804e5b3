"""An answer on the terminal while it is written, and the remarks printed afterwards."""

from __future__ import annotations

from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from rich.live import Live

from langchain_pos.errors import ParallelReasoningError
from langchain_pos.results.plain_text import strip_control_characters
from langchain_pos.results.terminal import AnswerView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from langchain_pos.results.result import ReasoningChunk, ReasoningResult

REFRESHES_PER_SECOND = 8
"""Few enough that drawing does not slow down decoding."""


def show_stream(
    console: Console, chunks: Iterator[ReasoningChunk], *, live: bool
) -> ReasoningResult:
    """Show an answer while it is written, then print all of it.

    Args:
        console: where to print.
        chunks: the stream; always closed, so that an interrupted answer is cancelled.
        live: redraw while it is written (a terminal); otherwise plain text at the end.

    Returns:
        The sum of the stream.

    Raises:
        ParallelReasoningError: the stream ended without a chunk.
    """
    view, seen = AnswerView(live=True), []
    screen = Live(view, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True)
    try:
        with screen if live else nullcontext():
            for chunk in chunks:
                seen.append(chunk)
                if live:
                    view.feed(chunk)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    if not seen:
        raise ParallelReasoningError("the model's stream ended without a chunk; report this")
    result = reduce(add, seen).result()
    print_answer(console, result, live=live)
    return result


def print_answer(console: Console, result: ReasoningResult, *, live: bool) -> None:
    """Print a whole answer: panels for a terminal, otherwise plain text with no escape codes."""
    view = AnswerView.of(result)
    if live:
        console.print(view)
    else:
        console.file.write(view.plain() + "\n")


def faults(result: ReasoningResult) -> list[str]:
    """What went wrong in an answer, one line each; empty if nothing did."""
    failed = [
        f"step {branch.title!r} failed: {branch.error or 'no reason is known'}"
        for branch in result.branches
        if branch.finish_reason == "error"
    ]
    if result.finish_reason == "error":
        failed.append(f"the conclusion failed: {result.error or 'no reason is known'}")
    elif not result.text.strip():
        failed.append("the model wrote no answer")
    return [strip_control_characters(fault) for fault in failed]


def remarks(result: ReasoningResult) -> list[str]:
    """What a user should know about an answer without errors, one line each."""
    lines = []
    if result.fallback_reason:
        lines.append(f"answered sequentially ({result.fallback_reason})")
    short = [branch.title for branch in result.branches if branch.finish_reason == "length"]
    if short:
        lines.append(f"cut off at the token budget of a branch: {', '.join(short)}")
    if result.finish_reason == "length":
        lines.append("the conclusion was cut off at its token budget")
    return [strip_control_characters(line) for line in lines]


def closing_line(result: ReasoningResult) -> str:
    """Forward passes and seconds by stage, and tokens per pass; one token at a time is 1."""
    passes, seconds = result.forward_passes, result.timings
    stages = [
        f"{stage} {getattr(passes, stage)} passes {getattr(seconds, stage):.2f} s"
        for stage in ("plan", "expand", "conclude")
        if getattr(passes, stage)
    ]
    tokens = result.usage.output_tokens
    rate = f", {tokens / passes.total:.1f} per pass (one at a time: 1.0)" if passes.total else ""
    total = f"total {passes.total} passes {seconds.total:.2f} s"
    return f"{result.mode}: {' · '.join([*stages, total])} · {tokens} tokens{rate}"


def comparison(parallel: ReasoningResult, sequential: ReasoningResult) -> list[str]:
    """Both answers' passes and seconds by stage as rows of text, and their ratio."""
    head = f"{'':10}  {'plan':>16}  {'expand':>16}  {'conclude':>16}  {'total':>16}"
    rows = [head]
    for name, result in (("parallel", parallel), ("sequential", sequential)):
        cells = [
            _cell(getattr(result.forward_passes, stage), getattr(result.timings, stage))
            for stage in ("plan", "expand", "conclude", "total")
        ]
        rows.append(f"{name:10}  " + "  ".join(f"{cell:>16}" for cell in cells))
    passes = sequential.forward_passes.total / max(1, parallel.forward_passes.total)
    seconds = sequential.timings.total / max(1e-9, parallel.timings.total)
    rows.append(
        f"Sequentially it takes {passes:.2f} times the forward passes "
        f"and {seconds:.2f} times the seconds."
    )
    return rows


def _cell(passes: int, seconds: float) -> str:
    return f"{passes} passes {seconds:.2f} s" if passes else "–"
