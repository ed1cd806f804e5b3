"""Draws the figures of the documentation with the package's own code.

`python docs/make_figures.py` writes them into `docs/figures`. The files are kept in the repository;
a test checks that they are what this script draws.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

from langchain_pos.engine.forest.mask_picture import belt
from langchain_pos.results.figures import tokens_figure

FIGURES = Path(__file__).parent / "figures"


def main(folder: Path = FIGURES) -> None:
    """Write `mask.svg`: a trunk of five tokens and three branches, of which B ends first."""
    # Text stays text and ids are fixed, so that the same code writes the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "langchain-pos"}):
        figure = tokens_figure(belt(5, [4, 3, 4]), ["R: prompt", "A", "B", "C"])
        figure.savefig(folder / "mask.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
