"""The moving picture of the README: `docs/figures/branches.svg`.

    python docs/make_recording.py            draw it from the recorded run
    python docs/make_recording.py --record   record a run first

A run is the demo's question, answered in parallel and one token per forward pass; every piece of
text is kept with the time at which it was written, and appears at that time in the picture, slowed
down by the factor that the picture names. Nothing else is animated, so it is what a terminal shows.
"""

from __future__ import annotations

import argparse
import json
import time
from html import escape
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parent / "figures"
RECORDING = FIGURES / "branches.json"
PICTURE = FIGURES / "branches.svg"

SECONDS = 16.0  # that the slower of the two answers takes in the picture
PAUSE = 4.0  # after it, before the picture begins again
STEP = 0.08  # pieces of text that are closer together than this appear together

WIDTH, MARGIN = 880, 14
COLUMNS, PANEL_HEIGHT, PANEL_CHARACTERS = 5, 76, 23
LINE, CHARACTER = 14, 6.65  # pixels

Piece = tuple[float, str]
"""When a piece of text is written, in seconds, and the piece."""


def record(path: Path = RECORDING) -> None:
    """Answer the demo's question both ways, each warmed up, and keep what was written when."""
    from langchain_pos import ParallelReasoningLLM, demo_question

    llm = ParallelReasoningLLM(prefix_cache_tokens=0, draft_rows=16)
    found: dict[str, Any] = {}
    for name, settings in (
        ("parallel", {"mode": "parallel"}),
        ("sequential", {"mode": "sequential", "drafts": False}),
    ):
        for _ in range(2):  # the second one counts
            # The processor's time: other work on the machine does not count.
            pieces, chunks, began = [], [], time.process_time()
            for chunk in llm.stream(demo_question(), **settings):
                chunks.append(chunk)
                if chunk.delta:
                    seconds = round(time.process_time() - began, 4)
                    pieces.append([seconds, chunk.stage, chunk.branch, chunk.delta])
        found[name] = {"passes": chunks[-1].forward_passes.total, "pieces": pieces}
    path.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


def draw(recording: dict[str, Any]) -> str:
    """The picture of a recording, as SVG with CSS animations."""
    parallel, sequential = recording["parallel"], recording["sequential"]
    seconds = [run["pieces"][-1][0] for run in (parallel, sequential)]
    film = _Film(SECONDS / max(seconds), SECONDS + PAUSE)
    y = 2 * MARGIN
    film.text(MARGIN, y, [(0.0, "$ langchain-pos demo")], "dim")
    film.text(WIDTH - MARGIN, y, [(0.0, f"slowed down {film.factor:.0f} times")], "dim end")
    y += 2 * LINE
    film.text(MARGIN, y, [(0.0, "Ten resumes: which student has a GPA between 2.45 and 2.95?")])
    y += LINE
    y = _branches(film, parallel["pieces"], y)
    y = _closing(film, parallel, "ten branches at once", y)
    y += LINE
    for line in _lines([(when, text) for when, _, _, text in sequential["pieces"]], 124):
        y += LINE
        film.text(MARGIN, y, line, "body")
    y = _closing(film, sequential, "one token after another", y + LINE // 2)
    return film.svg(y + MARGIN)


def _branches(film: _Film, pieces: list[Any], y: int) -> int:
    """Panels side by side: the titles as they are planned, the bodies as they grow."""
    skeleton, titles = "", []
    bodies: dict[int, list[Piece]] = {}
    for when, stage, branch, text in pieces:
        if stage == "plan":
            skeleton += text
            known = [step.partition(":") for step in skeleton.split("####")[1:]]
            for title, colon, _ in known[len(titles) :]:
                if colon:
                    titles.append((when, title))
        elif stage == "expand":
            bodies.setdefault(branch, []).append((when, text))
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * 8) / COLUMNS
    for number, (when, title) in enumerate(titles):
        x = MARGIN + number % COLUMNS * (width + 8)
        top = y + number // COLUMNS * (PANEL_HEIGHT + 8)
        film.box(x, top, width, PANEL_HEIGHT, when)
        film.text(x + 7, top + 16, [(when, title[:PANEL_CHARACTERS])], "title")
        for row, line in enumerate(_lines(bodies.get(number, []), PANEL_CHARACTERS)):
            film.text(x + 7, top + 32 + row * LINE, line, "body")
    return y + -(-len(titles) // COLUMNS) * (PANEL_HEIGHT + 8)


def _closing(film: _Film, run: dict[str, Any], name: str, y: int) -> int:
    """The answer and what it took, at the moment at which it was there."""
    pieces = run["pieces"]
    said = "".join(text for _, stage, _, text in pieces if stage == "conclude").strip()
    y += LINE + 6
    film.text(MARGIN, y, [(pieces[-1][0], said.splitlines()[-1])], "answer")
    cost = f"{name}: {run['passes']} forward passes"
    film.text(WIDTH - MARGIN, y, [(pieces[-1][0], cost)], "answer end")
    return y


def _lines(pieces: list[Piece], width: int) -> list[list[Piece]]:
    """Text wrapped between words into lines of pieces that keep their times."""
    marks = [(character, when) for when, text in pieces for character in text]
    words: list[list[tuple[str, float]]] = [[]]
    lines: list[list[tuple[str, float]]] = [[]]
    for mark in [*marks, (" ", 0.0)]:
        if mark[0] not in " \n":
            words[-1].append(mark)
            continue
        word = words[-1]
        words.append([])
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append([])
        lines[-1] += [(" ", word[0][1])] * bool(lines[-1] and word) + word
        if mark[0] == "\n" and lines[-1]:
            lines.append([])
    joined: list[list[Piece]] = []
    for line in filter(None, lines):
        joined.append([])
        for character, when in line:
            if joined[-1] and joined[-1][-1][0] == when:
                joined[-1][-1] = (when, joined[-1][-1][1] + character)
            else:
                joined[-1].append((when, character))
    return joined


class _Film:
    """Elements of the picture, each with the time at which it appears.

    Args:
        factor: seconds of the picture for a second of the run.
        duration: of the picture, in seconds.
    """

    def __init__(self, factor: float, duration: float) -> None:
        self.factor = factor
        self.duration = duration
        self._body: list[str] = []
        self._times: set[int] = set()

    def _at(self, when: float) -> str:
        """The class of what appears at a second of the run; none for what is there at once."""
        step = round(when * self.factor / STEP)
        self._times.add(step)
        return f"t{step}" if step else ""

    def text(self, x: float, y: float, pieces: list[Piece], style: str = "") -> None:
        """One line; its pieces appear one after the other."""
        spans, seen = "", ""
        for when, text in pieces:
            at = self._at(when)
            if at != seen or not spans:
                spans += ("</tspan>" if spans else "") + f'<tspan class="{at}">'
            spans, seen = spans + escape(text), at
        self._body.append(f'<text x="{x:.0f}" y="{y:.0f}" class="{style}">{spans}</tspan></text>')

    def box(self, x: float, y: float, width: float, height: float, when: float) -> None:
        """A frame."""
        self._body.append(
            f'<rect x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{height}" rx="5" '
            f'class="box {self._at(when)}"/>'
        )

    def svg(self, height: int) -> str:
        """The whole picture."""
        rules = "".join(
            f"@keyframes t{step}{{0%{{opacity:0;fill-opacity:0}}"
            f"{100 * step * STEP / self.duration:.2f}%{{opacity:1;fill-opacity:1}}}}"
            f".t{step}{{animation:t{step} {self.duration:g}s step-end infinite}}"
            for step in sorted(self._times - {0})
        )
        style = (
            "text{font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',"
            "monospace;fill:#d7dee7;white-space:pre}"
            ".dim{fill:#8391a2}.title{fill:#7fd6c8;font-weight:bold}.body{fill:#c2ccd8}"
            ".answer{fill:#ffd479;font-weight:bold}.end{text-anchor:end}"
            ".box{fill:none;stroke:#3c8f83}"
            f"{rules}@media (prefers-reduced-motion:reduce){{*{{animation:none!important}}}}"
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img"><title>Ten branches of one answer being '
            "written at once, and the same answer one token after another</title>"
            f'<style>{style}</style><rect width="{WIDTH}" height="{height}" rx="8" '
            f'fill="#141a21"/>{"".join(self._body)}</svg>\n'
        )


def main() -> None:
    """Draw the picture, from a new recording if one is asked for."""
    parser = argparse.ArgumentParser(description="The moving picture of the README.")
    parser.add_argument("--record", action="store_true", help="record a run first")
    if parser.parse_args().record:
        record()
    recording = json.loads(RECORDING.read_text(encoding="utf-8"))
    PICTURE.write_text(draw(recording), encoding="utf-8")


if __name__ == "__main__":
    main()
