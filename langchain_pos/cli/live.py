"""An answer on the terminal while it is written, and the remarks printed afterwards."""

from __future__ import annotations

from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from rich.live import Live

from langchain_pos.errors import ParallelReasoningError
from langchain_pos.results.plain_text import strip_control_characters
from langchain_pos.results.rendering import fallback_remark
from langchain_pos.results.terminal import AnswerView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from langchain_pos.results.result import ReasoningChunk, ReasoningResult

REFRESHES_PER_SECOND = 8
"""Few enough that drawing does not slow down decoding."""


class Interrupted(KeyboardInterrupt):
    """Ctrl+C while an answer was being written.

    Attributes:
        result: as much of the answer as there was; None where there was nothing.
    """

    def __init__(self, result: ReasoningResult | None) -> None:
        super().__init__()
        self.result = result


def show_stream(
    console: Console, chunks: Iterator[ReasoningChunk], *, live: bool
) -> ReasoningResult:
    """Show an answer while it is written; all of it stays, or what there is when it is cut short.

    Args:
        console: where to print.
        chunks: the stream; always closed, so that an interrupted answer is cancelled.
        live: redraw while it is written (a terminal); otherwise plain text in reading order, as it
            becomes certain.

    Returns:
        The sum of the stream.

    Raises:
        Interrupted: by Ctrl+C.
        ParallelReasoningError: the stream ended without a chunk.
    """
    view, seen = AnswerView(live=True), []
    text = _GrowingText(console)
    screen = Live(view, console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=True)
    try:
        with screen if live else nullcontext():
            for chunk in chunks:
                seen.append(chunk)
                view.feed(chunk)
                if not live:
                    text.grow(view.plain(certain=True))
    except BaseException as error:
        result = reduce(add, seen).result() if seen else None
        if result is not None:
            print_answer(console, result, live=live, after=text)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(result) from None
        raise
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    if not seen:
        raise ParallelReasoningError("the model's stream ended without a chunk; report this")
    result = reduce(add, seen).result()
    print_answer(console, result, live=live, after=text)
    return result


class _GrowingText:
    """A plain text that is written as it grows."""

    def __init__(self, console: Console) -> None:
        self._file = console.file
        self._written = ""

    def grow(self, text: str) -> None:
        """Write what `text` has more than before; all of it where it has changed."""
        grown = text.startswith(self._written)
        if news := text[len(self._written) :] if grown else f"\n\n{text}":
            self._file.write(news)
            self._file.flush()
            self._written = text


def print_answer(
    console: Console, result: ReasoningResult, *, live: bool, after: _GrowingText | None = None
) -> None:
    """Print a whole answer: panels for a terminal, otherwise plain text with no escape codes.

    Args:
        console: where to print.
        result: the answer.
        live: whether it is a terminal.
        after: the beginning of it that has been written already.
    """
    view = AnswerView.of(result)
    if live:
        console.print(view)
    else:
        (after or _GrowingText(console)).grow(view.plain() + "\n")


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
    lines = fallback_remark(result)
    short = [branch.title for branch in result.branches if branch.finish_reason == "length"]
    if short:
        lines.append(f"cut off at the token budget of a branch: {', '.join(short)}")
    if result.finish_reason == "length":
        lines.append("the conclusion was cut off at its token budget")
    return [strip_control_characters(line) for line in lines]


def closing_line(result: ReasoningResult) -> str:
    """Forward passes and seconds by stage, tokens per pass (one at a time is 1) and per second."""
    passes, seconds = result.forward_passes, result.timings
    stages = [
        f"{stage} {getattr(passes, stage)} passes {getattr(seconds, stage):.2f} s"
        for stage in ("plan", "expand", "conclude")
        if getattr(passes, stage)
    ]
    tokens = result.usage.output_tokens
    rates = f", {tokens / passes.total:.1f} per pass (one at a time: 1.0)" if passes.total else ""
    if seconds.total:
        rates += f", {tokens / seconds.total:.0f} per second"
    total = f"total {passes.total} passes {seconds.total:.2f} s"
    return f"{result.mode}: {' · '.join([*stages, total])} · {tokens} tokens{rates}"
