"""How the terminal shows an answer, while it is written and afterwards.

While it is written, the branches appear side by side, each in its panel:

    ╭─ Ann ✓ ───────╮╭─ Ben ─────────╮╭─ Cem ─────────╮
    │ GPA 3.1, out- ││ GPA 2.4, in-  ││ GPA 4.0, out  │
    │ side          ││ side, y       ││               │
    ╰───────────────╯╰───────────────╯╰───────────────╯

Where that does not fit, every branch gets one line. Text written by models is shown as text: it is
never read as markup, and control characters are removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from langchain_pos.results.plain_text import strip_control_characters
from langchain_pos.results.rendering import (
    ENDINGS,
    estimate_line,
    figures,
    remarks,
    stage_figures,
)
from langchain_pos.results.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_pos.results.data import Block, BranchResult, ResultData, Stage

PANEL_WIDTH = 28
"""Minimum width of a branch's panel, in columns."""

_COLOURS = {"stop": "green", "length": "yellow", "cancelled": "yellow", "error": "red"}


class _Piece(Protocol):
    """The part of a `ReasoningChunk` that is read here."""

    @property
    def stage(self) -> Stage: ...
    @property
    def delta(self) -> str: ...
    @property
    def blocks(self) -> tuple[Block, ...]: ...
    @property
    def conclusion(self) -> str: ...
    @property
    def thoughts(self) -> str: ...


@dataclass
class BranchView:
    """One branch so far.

    Attributes:
        title: the step's title.
        text: its body so far.
        finish_reason: None while it waits or is being written.
        error: what went wrong.
    """

    title: str
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None

    def note(self) -> str:
        """How it ended, in brackets; empty if it ended normally or has not ended."""
        ending = ENDINGS.get(self.finish_reason or "")
        if ending is None:
            return ""
        return f"[{ending}: {self.error}]" if self.error else f"[{ending}]"

    def line(self) -> str:
        """Title, body and ending in one text."""
        return strip_control_characters(
            " ".join(part for part in (f"{self.title}:", self.text, self.note()) if part)
        )


@dataclass
class BlockView:
    """One block of steps so far."""

    preamble: str
    branches: list[BranchView]


@dataclass
class AnswerView:
    """An answer so far; rich can draw it at any time.

    Attributes:
        skeleton: the skeleton being written, until its block is known.
        blocks: the blocks so far, in order.
        conclusion: the text after the last block so far.
        thoughts: what the model thought before, so far; no part of the plain text.
        live: draw only what fits the terminal, the newest first.
    """

    skeleton: str = ""
    blocks: list[BlockView] = field(default_factory=list)
    conclusion: str = ""
    thoughts: str = ""
    live: bool = False

    @classmethod
    def of(cls, result: ResultData) -> AnswerView:
        """The view of a whole result."""
        view = cls()
        view._take_blocks(result.blocks)
        view.conclusion, view.thoughts = result.conclusion, result.thoughts
        return view

    def feed(self, chunk: _Piece) -> None:
        """Add a streamed chunk."""
        if chunk.blocks:
            self._take_blocks(chunk.blocks)
        self.thoughts += chunk.thoughts
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

    def plain(self, *, certain: bool = False) -> str:
        """The answer as plain text: preambles, a line for each branch, the conclusion.

        Args:
            certain: only as much as stays as it is while more is written: up to the first branch
                that has not ended.
        """
        parts = []
        for block in self.blocks:
            parts += [strip_control_characters(block.preamble)] if block.preamble else []
            lines = [branch.line() for branch in block.branches]
            if certain:
                ended = [branch.finish_reason is not None for branch in block.branches]
                lines = lines[: (*ended, False).index(False) + 1]
            parts.append("\n".join(lines))
        parts += (
            [strip_control_characters(self.conclusion).strip()] if self.conclusion.strip() else []
        )
        return "\n\n".join(parts)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        """Draw it as wide as `options` allow; when live, within the terminal's height too."""
        width, blocks = options.max_width, self.blocks
        if not self.live:
            if self.thoughts:
                yield Text(strip_control_characters(self.thoughts).strip(), style="dim italic")
            for block in blocks:
                if block.preamble:
                    yield Text(strip_control_characters(block.preamble))
                yield _panels(console, block.branches, width, None)
            if self.conclusion:
                yield Text(strip_control_characters(self.conclusion).strip(), style="bold")
            return
        height = console.height - 1
        answer = self.skeleton or self.conclusion
        style = "bold" if self.conclusion and not self.skeleton else "dim"
        if not answer and not blocks:
            answer, style = self.thoughts, "dim italic"
        below = Text(strip_control_characters(answer).strip() or "…", style=style)
        lines = list(below.wrap(console, width))[-max(1, height // 3 if blocks else height) :]
        if blocks:
            yield Text(
                strip_control_characters(blocks[-1].preamble), no_wrap=True, overflow="ellipsis"
            )
            yield _panels(console, blocks[-1].branches, width, height - len(lines) - 1)
        yield Group(*lines)


def _extend(view: BranchView, more: BranchResult) -> None:
    """Add a piece of a branch; a piece with a finish reason is its last."""
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
        list(
            Text(strip_control_characters(f"{branch.text} {branch.note()}").strip()).wrap(
                console, inside
            )
        )
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
    """One branch; if its body has more than `lines`, only the end."""
    mark = " ✓" if branch.finish_reason == "stop" else ""
    return Panel(
        Text("\n").join(body[-lines:]),
        title=Text(
            strip_control_characters(branch.title) + mark, no_wrap=True, overflow="ellipsis"
        ),
        title_align="left",
        height=lines + 2,
        border_style=_colour(branch),
    )


def _one_line(branch: BranchView, width: int) -> Text:
    """Title and the end of the body, on one line."""
    title = f"{strip_control_characters(branch.title)}: "[: width // 2]
    room = max(1, width - len(title) - 1)
    body = " ".join(strip_control_characters(f"{branch.text} {branch.note()}").split())
    line = Text(no_wrap=True, overflow="crop")
    return line.append(title, style=_colour(branch)).append(body[-room:])


def _colour(branch: BranchView) -> str:
    if branch.finish_reason is not None:
        return _COLOURS[branch.finish_reason]
    return "cyan" if branch.text else "dim"


def pretty_print(result: ResultData, console: Console | None = None) -> None:
    """Print the result: the branches side by side, then a timeline and the figures.

    Args:
        result: what to print.
        console: where to print; standard output by default.
    """
    (console or Console()).print(*_terminal(result), sep="\n")


def _terminal(result: ResultData) -> Iterator[RenderableType]:
    yield Rule("Reasoning result")
    yield AnswerView.of(result)
    for remark in remarks(result):
        yield Text(strip_control_characters(remark), style="yellow")
    timeline = Timeline.of(result)
    if timeline is not None:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=24, no_wrap=True, overflow="ellipsis")
        grid.add_column(ratio=1)
        bars = [
            (s.stage, s.start, s.end, _STAGE_COLOURS.get(s.stage, "blue")) for s in timeline.stages
        ]
        bars += [(b.title, b.start, b.end, "cyan") for b in timeline.branches]
        for label, start, end, colour in bars:
            grid.add_row(
                Text(strip_control_characters(label)), Bar(timeline.total, start, end, color=colour)
            )
        yield grid
    for line in (figures(result), *stage_figures(result), estimate_line(result)):
        if line:
            yield Text(strip_control_characters(line), style="dim")


_STAGE_COLOURS = {"plan": "magenta", "expand": "green", "conclude": "blue"}
