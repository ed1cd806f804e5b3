"""Runs the notebooks and saves what they print: `python docs/make_notebooks.py [--model MODEL]`.

Those of `examples/` on the shipped model are run where they lie. `examples/tutorial.ipynb` is made
from `docs/tutorial.md`, a cell for each block, and run with `--model`, a folder, a hub name or a
`.gguf` file; without it, it keeps the outputs it has.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nbformat
from markdown_it import MarkdownIt
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TUTORIAL = EXAMPLES / "tutorial.ipynb"


def tutorial() -> nbformat.NotebookNode:
    """The tutorial's text and Python blocks as cells, not run."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    cells, written = [], 0
    for token in MarkdownIt("commonmark").parse(text):
        if token.type != "fence" or token.info != "python" or token.map is None:
            continue
        begin, end = token.map
        cells += [new_markdown_cell("".join(lines[written:begin]).strip())]
        cells += [new_code_cell(token.content.rstrip())]
        written = end
    cells.append(new_markdown_cell("".join(lines[written:]).strip()))
    for cell in cells:
        if cell.cell_type == "markdown":  # pages of the documentation are not beside it
            cell.source = cell.source.replace("](", "](../docs/").replace(
                "](../docs/http", "](http"
            )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run(notebook: nbformat.NotebookNode, path: Path, **environment: str) -> None:
    """Run a notebook in a kernel of its own and write it with its outputs."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        NotebookClient(
            notebook, timeout=None, resources={"metadata": {"path": path.parent}}
        ).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = {}
        if cell.cell_type == "code":  # progress bars and log lines are of this machine
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    text = nbformat.writes(notebook)
    for name, value in environment.items():
        if value in text:
            raise SystemExit(f"{path.name} prints {name}, a path of this machine; it was not saved")
    path.write_text(text + "\n", encoding="utf-8")
    print(path.relative_to(ROOT), flush=True)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="stems of notebooks; all if omitted")
    parser.add_argument("--model", help="for the tutorial")
    args = parser.parse_args()
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        if path != TUTORIAL and (not args.names or path.stem in args.names):
            run(nbformat.read(path, as_version=4), path)
    if args.model:
        run(tutorial(), TUTORIAL, MODEL=args.model)


if __name__ == "__main__":
    main()
