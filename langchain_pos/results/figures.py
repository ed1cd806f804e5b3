"""Figures of a result: its timeline, and the mask of stage 2. Needs `langchain-pos[plot]`."""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from langchain_pos.errors import InvalidRequestError, MissingExtraError
from langchain_pos.results.plain_text import strip_control_characters
from langchain_pos.results.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from langchain_pos.engine.forest.mask_picture import MaskPicture
    from langchain_pos.results.data import ResultData

COLOURS = {"plan": "#8a6fb0", "expand": "#2a9d8f", "conclude": "#3d7ea6"}
"""Colours of the stages; the time between two blocks belongs to two of them."""
_MIXED = "#64779f"
_ENDINGS = {"length": "#d49b1f", "cancelled": "#d49b1f", "error": "#d1495b"}
_LONGEST_LABEL = 32
_MOST_NUMBERED = 100
"""Slots; with more, the numbers would overlap."""


def plot_timeline(result: ResultData) -> Figure:
    """Stages and branches as bars over measured seconds.

    Args:
        result: a result with timings.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidRequestError: the result holds no timings.
    """
    timeline = Timeline.of(result)
    if timeline is None:
        raise InvalidRequestError(
            "this result holds no timings, so there is no timeline; take one that `invoke` "
            "returned, or the sum of a whole stream"
        )
    rows = len(timeline.branches) + 1
    figure = _figure(8, 1.2 + 0.28 * rows)
    axes = figure.subplots()
    for span in timeline.stages:
        colour = COLOURS.get(span.stage, _MIXED)
        axes.barh(0, span.end - span.start, left=span.start, color=colour, label=span.stage)
    for row, bar in enumerate(timeline.branches, 1):
        colour = _ENDINGS.get(bar.finish_reason, COLOURS["expand"])
        axes.barh(row, bar.end - bar.start, left=bar.start, color=colour, height=0.6)
    labels = ["stages", *(_label(bar.title) for bar in timeline.branches)]
    axes.set_yticks(range(rows), labels, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, timeline.total)
    axes.set_xlabel("seconds")
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def plot_mask(
    result: ResultData,
    block: int = 0,
    *,
    granularity: Literal["token", "segment"] = "token",
    max_prompt_tokens: int | None = 16,
    max_branch_tokens: int | None = 6,
) -> Figure:
    """Which tokens saw which while the branches of a block were decoded.

    The segments, their lengths and the fork come from the result; visibility is computed by the
    engine's own mask rule (`engine/forest/segments.py`). Slots are drawn in the order of a run
    that feeds one token of every branch per pass; the engine's own order (pages of each segment,
    drafts, waiting branches) differs, but the same tokens see each other. The preamble, which all
    branches see like the prompt, is not drawn: a result does not record how many tokens it has.

    Args:
        result: a result with branches.
        block: which block.
        granularity: "token": a line for each query token, a column for each slot it may see.
            "segment": the share of a segment's tokens that another's last token sees.
        max_prompt_tokens: how many of the prompt's last tokens to draw; None draws all.
        max_branch_tokens: how many of each branch's first tokens to draw; None draws all. Memory
            grows with the square of the tokens drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InvalidRequestError: the result has no such block.
    """
    if not 0 <= block < len(result.blocks):
        raise InvalidRequestError(
            f"there is no block {block} to draw a mask of: the result has {len(result.blocks)} "
            f"and was answered in the mode {result.mode!r}; blocks count from 0"
        )
    branches = result.blocks[block].branches
    prompt = _at_most(result.usage.input_tokens, max_prompt_tokens)
    lengths = [_at_most(branch.usage.total_tokens, max_branch_tokens) for branch in branches]
    names = ["prompt", *(_label(branch.title) for branch in branches)]

    from langchain_pos.engine.forest.mask_picture import belt

    first_seen = result.blocks[block].plan.first_seen and branches[0].error is None
    picture = belt(prompt, lengths, first_seen=first_seen)
    if granularity == "segment":
        return segments_figure(picture, names)
    ahead = result.usage.input_tokens - prompt
    most = max(lengths, default=0)
    title = f"the last {prompt} tokens of the prompt, and up to {most} of each branch"
    return tokens_figure(picture, names, ahead=ahead, title=title)


def tokens_figure(
    picture: MaskPicture, names: list[str], *, ahead: int = 0, title: str = ""
) -> Figure:
    """The mask token by token: one line per query, one column per slot, coloured by branch.

    Args:
        picture: the mask.
        names: of the trunk and the branches.
        ahead: tokens before the first one drawn; added to the positions.
        title: above the figure.
    """
    size = len(picture.owners)
    figure = _figure(min(3.5 + 0.16 * size, 14), min(2.2 + 0.16 * size, 13))
    matplotlib = _matplotlib()
    axes = figure.subplots()
    palette = ["#ffffff", "#9aa5b1", *_branch_colours(len(names) - 1)]
    cells = [
        [owner + 1 if sees else 0 for owner, sees in zip(picture.owners, row, strict=True)]
        for row in picture.seen
    ]
    axes.pcolormesh(
        cells,
        cmap=matplotlib.colors.ListedColormap(palette),
        vmin=0,
        vmax=len(palette) - 1,
        edgecolors="#d7dce1",
        linewidth=0.4 if size <= _MOST_NUMBERED else 0,
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    axes.set_xticks([])
    axes.set_yticks([])
    if size <= _MOST_NUMBERED:
        middles = [place + 0.5 for place in range(size)]
        numbers = [str(ahead + position) for position in picture.positions]
        axes.set_xticks(middles, numbers, fontsize=6, rotation=90)
        axes.set_yticks(middles, numbers, fontsize=6)
    axes.tick_params(length=0)
    # Labels of the figure, not of the axes: those move when the axes are made square, and are cut.
    figure.supxlabel("slots, in the order in which tokens are fed;\nnumbers are positions", size=9)
    figure.supylabel("query token", size=9)
    patches = [
        matplotlib.patches.Patch(color=palette[number + 1], label=name)
        for number, name in enumerate(names[:33])
    ]
    legend = figure.legend(handles=patches, loc="outside right upper", fontsize=7, frameon=False)
    _plain(legend.get_texts())
    if title:
        figure.suptitle(title, fontsize=8, parse_math=False)
    return figure


def segments_figure(picture: MaskPicture, names: list[str]) -> Figure:
    """The mask segment by segment: the share that the last token of each segment sees."""
    count = len(names)
    slots: list[list[int]] = [[] for _ in names]
    for slot, owner in enumerate(picture.owners):
        slots[owner].append(slot)
    shares = [
        [
            sum(picture.seen[asking[-1]][slot] for slot in asked) / len(asked)
            if asking and asked
            else 0.0
            for asked in slots
        ]
        for asking in slots
    ]
    figure = _figure(min(3 + 0.3 * count, 14), min(2.4 + 0.3 * count, 13))
    axes = figure.subplots()
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="#d7dce1", linewidth=0.4)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    middles = [place + 0.5 for place in range(count)]
    axes.set_xticks(middles, names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(middles, names, fontsize=7, parse_math=False)
    axes.tick_params(length=0)
    about = "seen by the last token of the segment\non the left: dark all, white none"
    figure.supxlabel(about, size=9)
    return figure


def _at_most(tokens: int, most: int | None) -> int:
    return tokens if most is None else min(tokens, most)


def _label(title: str) -> str:
    title = strip_control_characters(title).replace("\n", " ").replace("\t", " ")
    return title if len(title) <= _LONGEST_LABEL else title[: _LONGEST_LABEL - 1] + "…"


def _plain(texts: list[Any]) -> None:
    """Keep a dollar sign in a title from being read as a formula."""
    for text in texts:
        text.set_parse_math(False)


def _branch_colours(count: int) -> list[str]:
    matplotlib = _matplotlib()
    steps = matplotlib.colormaps["turbo"]
    return [
        str(matplotlib.colors.to_hex(steps(0.08 + 0.84 * place / max(count - 1, 1))))
        for place in range(count)
    ]


def _matplotlib() -> Any:
    """The package with its submodules, but not pyplot, which keeps global state."""
    try:
        for module in ("colors", "figure", "patches"):
            import_module(f"matplotlib.{module}")
        return import_module("matplotlib")
    except ImportError as error:
        raise MissingExtraError(
            "figures need matplotlib, which is not installed; install it with "
            "`pip install matplotlib`, which the extra `langchain-pos[plot]` holds"
        ) from error


def _figure(width: float, height: float) -> Figure:
    """A figure outside pyplot's global state that notebooks display."""
    matplotlib = _matplotlib()

    class NotebookFigure(matplotlib.figure.Figure):  # type: ignore[misc,name-defined]
        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    figure: Figure = NotebookFigure(figsize=(width, height), layout="constrained")
    figure.set_facecolor("white")
    return figure
