from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from langchain_pos.results.data import (
    Block,
    BranchResult,
    Plan,
    StagePasses,
    StageTimings,
    TokenUsage,
)
from langchain_pos.results.rendering import escape_markdown
from langchain_pos.results.result import ReasoningChunk, ReasoningResult
from tests.support.fonts import typewriter
from tests.support.hostile import HTML, MARKDOWN, WIDE, hostile_result

EVERYTHING = (*HTML, *WIDE, *MARKDOWN)


class Skeleton(HTMLParser):
    """Tags with their attributes' names, classes and styles, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.classes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.classes |= set((dict(attrs).get("class") or "").split())
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] != "style":
            self.text += data


def harmless(count: int) -> ReasoningResult:
    """A result of the same shape with plain words."""
    return hostile_result(tuple(f"word{number}" for number in range(count)))


# ------------------------------------------------------------------------------------- HTML


def test_hostile_text_adds_no_markup() -> None:
    """The tags are those of a harmless result of the same shape, and all of them are closed."""
    hostile = Skeleton(hostile_result()._repr_html_())
    plain = Skeleton(harmless(len(EVERYTHING))._repr_html_())
    assert hostile.tags == plain.tags
    assert hostile.open == plain.open == []
    assert {tag for tag, _ in hostile.tags} <= {"div", "style", "details", "summary"}
    assert not any(name.startswith("on") for _, names in hostile.tags for name in names)


def test_every_text_is_shown_letter_by_letter() -> None:
    """A reader sees what the model wrote, markup included."""
    shown = Skeleton(hostile_result()._repr_html_()).text
    for text in EVERYTHING:
        assert text.strip() in shown


def test_a_branch_begins_at_the_edge() -> None:
    """Its lines keep the depth that they have below its first one."""
    shown = Skeleton(hostile_result(("   - a\n     - b\n   - c",))._repr_html_()).text
    assert "- a\n  - b\n- c" in shown


def test_control_characters_are_left_out() -> None:
    """HTML forbids most of them."""
    assert "ab[31mc" in hostile_result(("a\x00b\x1b[31m\x9bc",))._repr_html_()


def test_all_css_is_scoped() -> None:
    """Every selector begins with our class, and every class used has one."""
    html = hostile_result()._repr_html_()
    css = re.search("<style>(.*?)</style>", html, re.DOTALL)
    assert css is not None
    selectors = re.findall(r"([^{}]+)\{[^{}]*\}", css[1])
    assert selectors
    for selector in ",".join(selectors).split(","):
        assert selector.strip().startswith(".lcpos")
    assert "url(" not in css[1]
    assert "@import" not in css[1]


def test_a_result_shows_its_stages() -> None:
    """Plan, branches, conclusion, figures and estimate are all there."""
    text = Skeleton(harmless(3)._repr_html_()).text
    for part in ("0 word0", "word2", "80 forward passes", "plan: 10 passes, 0.20 s"):
        assert part in text
    assert "One token at a time: 900 forward passes instead of 80" in text
    assert "900 tokens × 15.0 ms" in text
    assert "at most about 13.50 s" in text


def test_bars_stand_where_the_timings_say() -> None:
    """A branch from 0.2 to 0.5 of 1.5 seconds takes the track from 13.33 % on, 20 % wide."""
    assert "left:13.33%;width:20.00%" in harmless(1)._repr_html_()


def test_what_is_not_known_yet_is_left_out() -> None:
    """A piece of a stream and an empty result render without timeline and figures of zero."""
    chunk = ReasoningChunk(blocks=(Block(plan=Plan.of(["a", "b"])),), stage="plan")
    for result in (chunk, ReasoningResult(), ReasoningResult(mode="sequential", conclusion="x")):
        html = result._repr_html_()
        assert "Timeline" not in html
        assert "0 forward passes" not in html
        assert result._repr_markdown_()
    assert chunk._repr_html_().count("lcpos-waiting") == 2


PAGE = """<!doctype html><meta charset="utf-8"><title>before</title>
<body style="margin:0;font:14px sans-serif;letter-spacing:{spacing}em">
<div id="cell" style="width:{width}px">{html}</div>
<script>
// A cell of a notebook: nothing of the result may stick out of it sideways, shown or scrolled.
const wide = [];
const cell = document.getElementById("cell").getBoundingClientRect();
for (const e of document.querySelectorAll("#cell, #cell *")) {{
  const box = e.getBoundingClientRect();
  const hides = getComputedStyle(e).overflowX !== "visible";
  if (box.right > cell.right + 0.5 || box.left < cell.left - 0.5) wide.push("out " + e.className);
  if (!hides && e.scrollWidth > e.clientWidth + 1 && e.clientWidth) wide.push("in " + e.className);
  // Text wraps anywhere, whatever the font. One letter under a thousand marks has nowhere to wrap:
  // where a font sets the marks side by side, that text alone may be scrolled.
  const wraps = !e.textContent.includes("Z\u0335");
  if (e.classList.contains("lcpos-text") && e.scrollWidth > e.clientWidth + 1)
    if (wraps || getComputedStyle(e).overflowX !== "auto")
      wide.push("cut " + e.className + " " + e.textContent.slice(0, 12));
}}
const root = document.documentElement;
if (root.scrollWidth > root.clientWidth) wide.push("page");
const cards = document.querySelectorAll(".lcpos-branch").length;
document.body.dataset.seen = JSON.stringify({{title: document.title, wide: wide, cards: cards}});
</script>"""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [320, 900])
@pytest.mark.parametrize("spacing", [0, 0.3], ids=["as set", "in a wider font"])
@pytest.mark.parametrize("fonts", ["its fonts", "typewriter"])
def test_in_a_browser_nothing_runs_and_nothing_sticks_out(
    tmp_path: Path, width: int, spacing: float, fonts: str
) -> None:
    """In headless Chromium no script of a text runs, and nothing is wider than its cell."""
    (tmp_path / "fonts").mkdir()
    env = typewriter(tmp_path / "fonts") if fonts == "typewriter" else None
    page = tmp_path / "page.html"
    html = hostile_result()._repr_html_()
    page.write_text(PAGE.format(html=html, width=width, spacing=spacing), encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,900",
         "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, check=True, encoding="utf-8", env=env,
    )  # fmt: skip
    dom = done.stdout
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found is not None, "the page's own script did not run"
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert seen["title"] == "before"
    assert "<title>before</title>" in dom
    assert seen["cards"] == len(EVERYTHING)
    assert seen["wide"] == []


# --------------------------------------------------------------------------------- Markdown


def markdown_shape(text: str) -> tuple[list[str], str]:
    """The blocks and inline marks that a Markdown text makes, and what a reader sees."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    shape, shown = [], []
    for token in tokens:
        shape.append(token.type)
        for child in token.children or []:
            if child.type in ("text", "text_special"):
                shown.append(child.content)
            elif child.type in ("hardbreak", "softbreak"):
                shown.append("\n")
            else:
                shape.append(child.type)
    return shape, "".join(shown)


def test_hostile_text_adds_no_markdown() -> None:
    """Blocks and marks are those of a harmless result of the same shape."""
    hostile, _ = markdown_shape(hostile_result()._repr_markdown_())
    plain, _ = markdown_shape(harmless(len(EVERYTHING))._repr_markdown_())
    assert hostile == plain


@given(st.text())
def test_escaped_markdown_is_one_paragraph_of_the_text(text: str) -> None:
    """Whatever a text contains, it is one paragraph, and a reader sees its letters."""
    clean = "".join(c for c in text if c.isprintable() or c in "\n ")
    escaped = escape_markdown(clean)
    shape, shown = markdown_shape(escaped)
    assert set(shape) <= {"paragraph_open", "inline", "paragraph_close"}
    assert shape.count("paragraph_open") == bool(clean.strip())
    assert shown.split() == clean.split()


def test_markdown_has_the_parts() -> None:
    """A list of the steps, how they ended, the conclusion and the figures."""
    text = harmless(2)._repr_markdown_()
    assert "1. **0 word0** word0\n2. **1 word1** word1 *(cut off at its token budget)*" in text
    assert "80 forward passes" in text


# --------------------------------------------------------------------------------- terminal


def printed(result: ReasoningResult, width: int = 100) -> str:
    """What `pretty_print` writes to a terminal without colours."""
    out = StringIO()
    result.pretty_print(Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def test_pretty_print_shows_all_parts() -> None:
    """Branches in panels, the conclusion, bars and figures."""
    text = printed(
        ReasoningResult(
            blocks=(
                Block(
                    plan=Plan.of(["Ann", "Ben"], preamble="Let us see."),
                    branches=tuple(
                        BranchResult(index=i, title=t, text=f"GPA {i}", started=0.5, ended=1.0)
                        for i, t in enumerate(("Ann", "Ben"))
                    ),
                ),
            ),
            conclusion="name: Ben",
            usage=TokenUsage(5, 40),
            timings=StageTimings(plan=0.5, expand=0.5, conclude=0.5),
            forward_passes=StagePasses(plan=5, expand=5, conclude=5),
        )
    )
    for part in ("Let us see.", "╭─ Ann", "GPA 1", "name: Ben", "█", "15 forward passes"):
        assert part in text


def test_pretty_print_lets_no_text_steer_the_terminal() -> None:
    """Neither escape codes nor rich markup of a text take effect."""
    text = printed(hostile_result(("\x1b[2Jgone\x07", "[bold red]loud[/] [link=x]y[/link]")))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold red]loud[/]" in text


def test_pretty_print_writes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a console it prints, as messages do."""
    harmless(2).pretty_print()
    assert "word1" in capsys.readouterr().out
