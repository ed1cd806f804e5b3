"""Results as HTML and Markdown for notebooks; for the terminal see `terminal.py`.

Everything written by a model or a user is shown as text, whatever it contains: escaped in HTML
and Markdown, stripped of control characters on the terminal. The HTML needs no scripts and no
external assets, and inherits the colours of its page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from textwrap import dedent
from typing import TYPE_CHECKING

from langchain_pos.results.data import NO_LIST, NOT_ANSWERED
from langchain_pos.results.plain_text import strip_control_characters
from langchain_pos.results.timeline import STAGES, SequentialEstimate, Timeline

if TYPE_CHECKING:
    from langchain_pos.results.data import Block, BranchResult, ResultData

ENDINGS = {
    "length": "cut off at its token budget",
    "cancelled": "cancelled",
    "error": "failed",
}
"""How a text that was cut short ended."""

_CSS = """
.lcpos{max-width:100%;line-height:1.45;overflow-wrap:anywhere;text-align:left}
.lcpos *{box-sizing:border-box;min-width:0}
.lcpos-text{white-space:pre-wrap;max-height:24em;overflow:auto}
.lcpos-branch .lcpos-text{max-height:none}
.lcpos-head,.lcpos-note{font-size:.85em;opacity:.75;margin:.3em 0}
.lcpos-scroll{max-height:24em;overflow:hidden auto}
.lcpos-grid{display:grid;gap:.5em;margin:.5em 0;
 grid-template-columns:repeat(auto-fill,minmax(min(15em,100%),1fr))}
.lcpos-branch{border:1px solid rgba(127,127,127,.4);border-top:3px solid #2a9d8f;
 border-radius:4px;padding:.4em .6em;max-height:20em;overflow:hidden auto}
.lcpos-length,.lcpos-cancelled{border-top-color:#d49b1f}
.lcpos-error{border-top-color:#d1495b}
.lcpos-title{font-weight:600}
.lcpos-conclusion{border-left:3px solid #3d7ea6;padding:.3em .8em;margin:.5em 0}
.lcpos-row{display:grid;grid-template-columns:minmax(0,11em) minmax(0,1fr);gap:.6em;
 align-items:center;font-size:.8em;line-height:1.5}
.lcpos-label{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;overflow:hidden}
.lcpos-track{position:relative;height:1em;overflow:hidden;background:rgba(127,127,127,.13)}
.lcpos-bar{position:absolute;top:0;bottom:0}
.lcpos-bar-expand{background:#2a9d8f}.lcpos-bar-plan{background:#8a6fb0}.lcpos-bar-conclude{background:#3d7ea6}
.lcpos-bar-mixed{background:#64779f}.lcpos-bar-estimate{background:rgba(127,127,127,.6)}
"""


# ------------------------------------------------------------------------------------- lines


def figures(result: ResultData) -> str:
    """Mode, passes, tokens, seconds and model in one line."""
    passes, tokens = result.forward_passes.total, result.usage.output_tokens
    seconds = result.timings.total
    parts = [
        f"{result.mode}",
        f"{passes} forward passes" if passes else "",
        f"{tokens} tokens written" if tokens else "",
        f"{seconds:.2f} s" if seconds else "",
        result.model_name,
    ]
    return " · ".join(part for part in parts if part)


def stage_figures(result: ResultData) -> list[str]:
    """Passes and seconds of each stage that had any."""
    return [
        f"{stage}: {passes} passes, {getattr(result.timings, stage):.2f} s"
        for stage in STAGES
        if (passes := getattr(result.forward_passes, stage))
    ]


def estimate_line(result: ResultData) -> str:
    """What sequential decoding would have cost and how that is estimated; empty if unknown."""
    estimate = SequentialEstimate.of(result)
    if estimate is None:
        return ""
    return (
        f"One token at a time: {estimate.tokens} forward passes instead of "
        f"{result.forward_passes.total}. Estimated, not run: {estimate.tokens} tokens × "
        f"{estimate.seconds_per_pass * 1000:.1f} ms (the mean pass of this answer's fastest "
        f'stage) is at most about {estimate.seconds:.2f} s; mode="sequential" measures it.'
    )


def remarks(result: ResultData) -> list[str]:
    """What a reader must know besides the text: why sequential, what was cut off, what failed."""
    lines = fallback_remark(result)
    if ending := _ending(result):
        lines.append(f"conclusion: {ending}")
    return lines


def fallback_remark(result: ResultData) -> list[str]:
    """Why a question meant for parallel was answered sequentially, or not at all; or nothing.

    An answer without a list is as the model would give it, and nothing is amiss.
    """
    reason = result.fallback_reason
    if not reason or reason == NO_LIST:
        return []
    return [reason if reason.startswith(NOT_ANSWERED) else f"answered sequentially ({reason})"]


def _ending(written: BranchResult | ResultData) -> str:
    """How a text ended, and its error; empty if it ended normally."""
    parts = (ENDINGS.get(written.finish_reason), written.error)
    return ": ".join(part for part in parts if part)


def _steps(block: Block) -> Iterator[tuple[str, BranchResult | None]]:
    """Every step's title with its branch, or None if it has none yet."""
    known = {branch.index: branch for branch in block.branches}
    for index, title in enumerate(block.plan.titles):
        yield title, known.get(index)


# ------------------------------------------------------------------------------------- HTML


def to_html(result: ResultData) -> str:
    """The result as an HTML fragment: plan, branches side by side, conclusion, timeline.

    Example:
        >>> from langchain_pos import ReasoningResult
        >>> "&lt;b&gt;" in to_html(ReasoningResult(conclusion="<b>"))
        True
    """
    parts = [f'<div class="lcpos"><style>{_CSS}</style>']
    if result.question:
        parts.append(f"<details><summary>Question</summary>{_text(result.question)}</details>")
    if result.thoughts:
        parts.append(f"<details><summary>Thoughts</summary>{_text(result.thoughts)}</details>")
    for block in result.blocks:
        if block.plan.preamble:
            parts.append(_text(block.plan.preamble))
        cards = "".join(
            _card(number, title, branch) for number, (title, branch) in enumerate(_steps(block), 1)
        )
        parts.append(f'<div class="lcpos-grid">{cards}</div>')
    if result.conclusion:
        parts.append(_text(result.conclusion, "lcpos-conclusion"))
    parts += [_text(remark, "lcpos-note") for remark in remarks(result)]
    parts.append(f'<div class="lcpos-head">{_escape(figures(result))}</div>')
    parts.append(_timeline_html(result))
    return "".join([*parts, "</div>"])


def _escape(text: str) -> str:
    return escape(strip_control_characters(text), quote=True)


def _text(text: str, kind: str = "") -> str:
    """A block of untrusted text. `dir` keeps right-to-left text from reversing what follows."""
    return f'<div class="lcpos-text {kind}" dir="auto">{_escape(dedent(text).strip())}</div>'


def _card(number: int, title: str, branch: BranchResult | None) -> str:
    state = branch.finish_reason if branch is not None else "waiting"
    inside = _text(f"{number}. {title}", "lcpos-title")
    if branch is not None:
        inside += _text(branch.text)
        if ending := _ending(branch):
            inside += _text(ending, "lcpos-note")
    return f'<div class="lcpos-branch lcpos-{state}">{inside}</div>'


def _timeline_html(result: ResultData) -> str:
    """Stages and branches over time, then numbers of passes compared, each on its own scale."""
    timeline = Timeline.of(result)
    if timeline is None:
        return ""
    total = timeline.total
    by_stage: dict[str, str] = {}
    for s in timeline.stages:
        bar = _bar(s.start / total, s.end / total, _STAGE_BARS.get(s.stage, "lcpos-bar-mixed"))
        by_stage[s.stage] = by_stage.get(s.stage, "") + bar
    rows = [_row(stage, bars) for stage, bars in by_stage.items()]
    rows += [_row(b.title, _bar(b.start / total, b.end / total)) for b in timeline.branches]
    figures_line = " · ".join([*stage_figures(result), f"0 to {total:.3f} s"])
    parts = [
        f'<details open><summary>Timeline</summary><div class="lcpos-scroll">{"".join(rows)}</div>',
        _text(figures_line, "lcpos-note"),
    ]
    estimate = SequentialEstimate.of(result)
    if estimate is not None:
        passes, alone = result.forward_passes.total, estimate.tokens
        most = max(passes, alone)
        parts += [
            _row(f"{passes} passes", _bar(0, passes / most)),
            _row(f"{alone} sequentially", _bar(0, alone / most, "lcpos-bar-estimate")),
            _text(estimate_line(result), "lcpos-note"),
        ]
    return "".join([*parts, "</details>"])


_STAGE_BARS = {
    "plan": "lcpos-bar-plan",
    "expand": "lcpos-bar-expand",
    "conclude": "lcpos-bar-conclude",
}


def _bar(start: float, end: float, kind: str = "lcpos-bar-expand") -> str:
    """A bar from `start` to `end`, both as shares of the track."""
    left, width = 100 * start, max(100 * (end - start), 0.3)
    return f'<div class="lcpos-bar {kind}" style="left:{left:.2f}%;width:{width:.2f}%"></div>'


def _row(label: str, bars: str) -> str:
    return (
        f'<div class="lcpos-row"><div class="lcpos-label" dir="auto">{_escape(label)}</div>'
        f'<div class="lcpos-track">{bars}</div></div>'
    )


# --------------------------------------------------------------------------------- Markdown

_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&:$=@^])")
_BLANKS = re.compile(r"[ \t]+")


def escape_markdown(text: str) -> str:
    r"""`text` as Markdown that renders it literally; line breaks are kept.

    Example:
        >>> escape_markdown("# a_b")
        '\\# a\\_b'
    """
    lines = (
        _BLANKS.sub(" ", line).strip(" ")
        for line in strip_control_characters(text).strip().splitlines()
    )
    return "\\\n   ".join(_PUNCTUATION.sub(r"\\\1", line) for line in lines)


def to_markdown(result: ResultData) -> str:
    """The result as Markdown: a list of the steps, the conclusion, and the figures."""
    parts = [f"*Thoughts:* {escape_markdown(result.thoughts)}"] if result.thoughts else []
    for block in result.blocks:
        if block.plan.preamble:
            parts.append(escape_markdown(block.plan.preamble))
        items = []
        for number, (title, branch) in enumerate(_steps(block), 1):
            item = f"{number}. **{escape_markdown(title)}**"
            if branch is not None:
                item += f" {escape_markdown(branch.text)}"
                if ending := _ending(branch):
                    item += f" *({escape_markdown(ending)})*"
            items.append(item)
        parts.append("\n".join(items))
    if result.conclusion:
        parts.append(escape_markdown(result.conclusion))
    parts += [f"*{escape_markdown(remark)}*" for remark in remarks(result)]
    lines = [figures(result), *stage_figures(result), estimate_line(result)]
    parts.append(escape_markdown("\n".join(line for line in lines if line)))
    return "\n\n".join(part for part in parts if part)
