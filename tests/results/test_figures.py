from __future__ import annotations

import sys

import pytest

from langchain_pos.engine.forest.mask_picture import belt
from langchain_pos.errors import InvalidRequestError, MissingExtraError
from langchain_pos.results.figures import segments_figure, tokens_figure
from langchain_pos.results.result import ReasoningResult
from tests.support.hostile import hostile_result
from tests.support.scripted import STUDENTS, scripted_llm

pytest.importorskip("matplotlib")


def answered() -> ReasoningResult:
    """Two branches, written by a scripted model."""
    return scripted_llm(STUDENTS)[0].invoke("Who?")


def png(figure: object) -> bytes:
    """What a notebook shows of a figure."""
    return figure._repr_png_()  # type: ignore[attr-defined, no-any-return]


def test_the_belt_is_the_papers() -> None:
    """A token sees the trunk up to itself, and its own branch up to itself; nothing else."""
    trunk, lengths = 3, [2, 4, 1]
    picture = belt(trunk, lengths)
    assert len(picture.owners) == trunk + sum(lengths)
    for owner in (1, 2, 3):
        where = [p for o, p in zip(picture.owners, picture.positions, strict=True) if o == owner]
        assert where == list(range(trunk, trunk + lengths[owner - 1]))
    for query, row in enumerate(picture.seen):
        for slot, sees in enumerate(row):
            related = picture.owners[slot] in (0, picture.owners[query])
            not_after = picture.positions[slot] <= picture.positions[query]
            assert sees == (related and not_after)


def test_slots_are_interleaved() -> None:
    """One token of every branch in a pass; one that has ended is left out."""
    assert belt(1, [1, 3]).owners == (0, 1, 2, 2, 2)
    assert belt(2, []).owners == (0, 0)


def test_a_first_branch_may_be_seen_by_the_others() -> None:
    """Then it comes before them, and their positions follow its own."""
    picture = belt(1, [2, 1, 2], first_seen=True)
    assert picture.owners == (0, 1, 1, 2, 3, 3)
    assert picture.positions == (0, 1, 2, 3, 3, 4)
    assert picture.seen[3] == (True, True, True, True, False, False)
    assert picture.seen[5] == (True, True, True, False, True, True)
    assert belt(1, [2], first_seen=True).owners == (0, 1, 1)
    assert belt(1, [], first_seen=True).owners == (0,)


def test_the_timeline_has_a_bar_for_each_stage_and_branch() -> None:
    """Bars are as long as the seconds that were measured."""
    result = answered()
    axes = plot = result.plot_timeline().axes[0]
    assert [text.get_text() for text in plot.get_yticklabels()] == ["stages", "Ann", "Ben"]
    widths = [bar.get_width() for bar in axes.patches]
    seconds = result.timings
    assert widths[:3] == pytest.approx([seconds.plan, seconds.expand, seconds.conclude])
    assert widths[3:] == pytest.approx([b.ended - b.started for b in result.branches])


def test_the_mask_is_drawn_from_the_result() -> None:
    """Rows and columns are the tokens asked for; a cell has the colour of whom it shows."""
    result = answered()
    mesh = result.plot_mask(max_prompt_tokens=2, max_branch_tokens=3).axes[0].collections[0]
    cells = mesh.get_array()
    assert cells is not None
    assert cells.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 2, 0, 0, 0, 0, 0],
        [1, 1, 0, 3, 0, 0, 0, 0],
        [1, 1, 2, 0, 2, 0, 0, 0],
        [1, 1, 0, 3, 0, 3, 0, 0],
        [1, 1, 2, 0, 2, 0, 2, 0],
        [1, 1, 0, 3, 0, 3, 0, 3],
    ]


def test_the_whole_mask_has_all_tokens() -> None:
    """Without bounds, as many slots as prompt and branches have tokens."""
    result = answered()
    figure = result.plot_mask(max_prompt_tokens=None, max_branch_tokens=None)
    cells = figure.axes[0].collections[0].get_array()
    tokens = result.usage.input_tokens + sum(b.usage.total_tokens for b in result.branches)
    assert cells is not None
    assert cells.shape == (tokens, tokens)


def test_the_mask_by_segments() -> None:
    """A branch sees the whole prompt and itself; the prompt sees no branch."""
    cells = answered().plot_mask(granularity="segment").axes[0].collections[0].get_array()
    assert cells is not None
    assert cells.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def test_figures_show_in_notebooks() -> None:
    """They are PNGs without pyplot's global state, also of hostile titles with dollar signs."""
    result = hostile_result(("$\\frac{x}$", "W" * 300, "ש" * 50, "a\x1b[2Jb"))
    for figure in (
        result.plot_timeline(),
        result.plot_mask(),
        result.plot_mask(granularity="segment"),
    ):
        assert png(figure).startswith(b"\x89PNG")
        assert figure.canvas.manager is None


@pytest.mark.parametrize("branches", [2, 4, 32])
@pytest.mark.parametrize("name", ["A", "A title of some length"])
def test_no_text_of_a_mask_is_cut(branches: int, name: str) -> None:
    """Labels, legend and title lie within the picture, however small or large the mask is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    picture = belt(4, [5] * branches)
    names = ["prompt", *(f"{name} {number}" for number in range(branches))]
    title = f"the last 4 tokens of the prompt, and up to 5 of each of {branches} branches"
    for figure in (tokens_figure(picture, names, title=title), segments_figure(picture, names)):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for text in figure.findobj(Text):
            if not (isinstance(text, Text) and text.get_visible() and text.get_text()):
                continue
            box = text.get_window_extent(canvas.get_renderer())
            inside = figure.bbox.padded(1)
            assert inside.x0 <= box.x0, text
            assert box.x1 <= inside.x1, text
            assert inside.y0 <= box.y0, text
            assert box.y1 <= inside.y1, text


def test_what_cannot_be_drawn_is_refused() -> None:
    """No timings, no timeline; no block, no mask."""
    with pytest.raises(InvalidRequestError, match="no timings"):
        ReasoningResult().plot_timeline()
    with pytest.raises(InvalidRequestError, match="has 0 and was answered in the mode"):
        ReasoningResult(mode="sequential").plot_mask()
    with pytest.raises(InvalidRequestError, match="no block 1"):
        answered().plot_mask(1)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for module in ("colors", "figure", "patches"):
        monkeypatch.delitem(sys.modules, f"matplotlib.{module}", raising=False)
    with pytest.raises(MissingExtraError, match=r"langchain-pos\[plot\]"):
        hostile_result(("a", "b")).plot_timeline()
