"""What the terminal shows: an answer while it is written, and what it took.

While it is written, the branches stand side by side, each in its panel:

    ╭─ Ann ✓ ───────╮╭─ Ben ─────────╮╭─ Cem ─────────╮
    │ GPA 3.1, out- ││ GPA 2.4, in-  ││ GPA 4.0, out  │
    │ side          ││ side, y       ││               │
    ╰───────────────╯╰───────────────╯╰───────────────╯

Where that does not fit, every branch gets one line. Text that models write is shown as text: it is
never read as markup, and control characters are left out.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from langchain_pos.errors import ParallelReasoningError
from langchain_pos.results.plain import clean
from langchain_pos.results.rendering import ENDINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_pos.results.data import Block, BranchResult, ReasoningChunk, ReasoningResult

PANEL_WIDTH = 28
"""Columns that a branch's panel needs at least."""
REFRESHES_PER_SECOND = 8
"""Few enough that drawing takes no time from decoding."""

_COLOURS = {"stop": "green", "length": "yellow", "cancelled": "yellow", "error": "red"}


@dataclass
class BranchView:
    """One branch as far as it is known.

    Attributes:
        title: the step's title.
        text: its body so far.
        finish_reason: None while it waits or is written.
        error: what went wrong.
    """

    title: str
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None

    def note(self) -> str:
        """How it ended, in brackets; empty when it ended by itself or has not ended."""
        ending = ENDINGS.get(self.finish_reason or "")
        if ending is None:
            return ""
        return f"[{ending}: {self.error}]" if self.error else f"[{ending}]"

    def line(self) -> str:
        """Title, body and ending in one text."""
        return clean(" ".join(part for part in (f"{self.title}:", self.text, self.note()) if part))


@dataclass
class BlockView:
    """One round of steps as far as it is known."""

    preamble: str
    branches: list[BranchView]


@dataclass
class AnswerView:
    """An answer as far as it is known; rich can draw it at any time.

    Attributes:
        skeleton: the skeleton being written, until its block is known.
        blocks: the blocks so far, in order.
        conclusion: the text behind the last block so far.
        live: draw only what fits the terminal, the newest first.
    """

    skeleton: str = ""
    blocks: list[BlockView] = field(default_factory=list)
    conclusion: str = ""
    live: bool = False

    @classmethod
    def of(cls, result: ReasoningResult) -> AnswerView:
        """The view of a whole result."""
        view = cls()
        view._take_blocks(result.blocks)
        view.conclusion = result.conclusion
        return view

    def feed(self, chunk: ReasoningChunk) -> None:
        """Take in what a streamed chunk brings."""
        if chunk.blocks:
            self._take_blocks(chunk.blocks)
        if chunk.stage == "plan":
            self.skeleton += chunk.delta
        if chunk.conclusion:
            self.conclusion += chunk.conclusion
            self.skeleton = ""  # what seemed to open another block did not

    def _take_blocks(self, blocks: tuple[Block, ...]) -> None:
        for place, block in enumerate(blocks):
            if place == len(self.blocks):
                titles = block.plan.titles
                self.blocks.append(BlockView(block.plan.preamble, [BranchView(t) for t in titles]))
                self.skeleton = self.conclusion = ""
            for branch in block.branches:
                _extend(self.blocks[place].branches[branch.index], branch)

    def plain(self) -> str:
        """The answer as plain text: preambles, a line for each branch, the conclusion."""
        parts = []
        for block in self.blocks:
            parts += [clean(block.preamble)] if block.preamble else []
            parts.append("\n".join(branch.line() for branch in block.branches))
        parts += [clean(self.conclusion).strip()] if self.conclusion.strip() else []
        return "\n\n".join(parts)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Draw it as wide as `options` allow; when live, within the terminal's height too."""
        width, blocks = options.max_width, self.blocks
        if not self.live:
            for block in blocks:
                if block.preamble:
                    yield Text(clean(block.preamble))
                yield _panels(console, block.branches, width, None)
            if self.conclusion:
                yield Text(clean(self.conclusion).strip(), style="bold")
            return
        height = console.height - 1
        style = "dim" if self.skeleton else "bold"
        below = Text(clean(self.skeleton or self.conclusion).strip() or "…", style=style)
        lines = list(below.wrap(console, width))[-max(1, height // 3 if blocks else height) :]
        if blocks:
            yield Text(clean(blocks[-1].preamble), no_wrap=True, overflow="ellipsis")
            yield _panels(console, blocks[-1].branches, width, height - len(lines) - 1)
        yield Group(*lines)


def _extend(view: BranchView, more: BranchResult) -> None:
    """Add a piece of a branch; a piece that says how the branch ended is its last."""
    view.text += more.text
    if "finish_reason" in more.model_fields_set:
        view.finish_reason, view.error = more.finish_reason, more.error


def _panels(
    console: Console, branches: list[BranchView], width: int, room: int | None
) -> RenderableType:
    """The branches side by side, within `room` lines; each on one line when there is no room."""
    per_row = max(1, min(len(branches), width // PANEL_WIDTH))
    rows = -(-len(branches) // per_row)
    per_row = -(-len(branches) // rows)
    most = None if room is None else room // rows - 2
    if most is not None and most < 1:
        writing = [branch for branch in branches if branch.text and not branch.finish_reason]
        shown = branches if len(branches) <= (room or 0) else writing or branches
        return Group(*(_one_line(branch, width) for branch in shown[:room]))
    grid = Table.grid(expand=True)
    for _ in range(per_row):
        grid.add_column(ratio=1)
    inside = max(1, width // per_row - 4)
    bodies = [
        list(Text(clean(f"{branch.text} {branch.note()}").strip()).wrap(console, inside))
        for branch in branches
    ]
    pairs = list(zip(branches, bodies, strict=True))
    for start in range(0, len(pairs), per_row):
        row = pairs[start : start + per_row]
        lines = max(1, *(len(body) for _, body in row))
        lines = lines if most is None else min(lines, most)
        grid.add_row(*(_panel(branch, body, lines) for branch, body in row))
    return grid


def _panel(branch: BranchView, body: list[Text], lines: int) -> Panel:
    """One branch; of a body of more than `lines`, the end."""
    mark = " ✓" if branch.finish_reason == "stop" else ""
    return Panel(
        Text("\n").join(body[-lines:]),
        title=Text(clean(branch.title) + mark, no_wrap=True, overflow="ellipsis"),
        title_align="left",
        height=lines + 2,
        border_style=_colour(branch),
    )


def _one_line(branch: BranchView, width: int) -> Text:
    """Title and the end of the body, in one line."""
    title = f"{clean(branch.title)}: "[: width // 2]
    room = max(1, width - len(title) - 1)
    body = " ".join(clean(f"{branch.text} {branch.note()}").split())
    line = Text(no_wrap=True, overflow="crop")
    return line.append(title, style=_colour(branch)).append(body[-room:])


def _colour(branch: BranchView) -> str:
    if branch.finish_reason is not None:
        return _COLOURS[branch.finish_reason]
    return "cyan" if branch.text else "dim"


def show_stream(
    console: Console, chunks: Iterator[ReasoningChunk], *, live: bool
) -> ReasoningResult:
    """Show an answer while it is written, then print it whole.

    Args:
        console: where to.
        chunks: the stream; closed whatever happens, so that an interrupted answer is cancelled.
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
    """What went wrong in an answer, a line each; empty when nothing did."""
    failed = [
        f"step {branch.title!r} failed: {branch.error or 'no reason is known'}"
        for branch in result.branches
        if branch.finish_reason == "error"
    ]
    if result.finish_reason == "error":
        failed.append(f"the conclusion failed: {result.error or 'no reason is known'}")
    elif not result.conclusion.strip():
        failed.append("the model wrote no conclusion")
    return [clean(fault) for fault in failed]


def remarks(result: ReasoningResult) -> list[str]:
    """What should be known about an answer that is not wrong, a line each."""
    lines = []
    if result.fallback_reason:
        lines.append(f"answered sequentially ({result.fallback_reason})")
    short = [branch.title for branch in result.branches if branch.finish_reason == "length"]
    if short:
        lines.append(f"cut off at the token budget of a branch: {', '.join(short)}")
    if result.finish_reason == "length":
        lines.append("the conclusion was cut off at its token budget")
    return [clean(line) for line in lines]


def closing_line(result: ReasoningResult) -> str:
    """Forward passes and seconds by stage, and tokens a pass; one token at a time is 1."""
    passes, seconds = result.forward_passes, result.timings
    stages = [
        f"{stage} {getattr(passes, stage)} passes {getattr(seconds, stage):.2f} s"
        for stage in ("plan", "expand", "conclude")
        if getattr(passes, stage)
    ]
    tokens = result.usage.output_tokens
    rate = f", {tokens / passes.total:.1f} a pass (one at a time: 1.0)" if passes.total else ""
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
