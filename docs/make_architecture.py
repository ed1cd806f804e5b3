"""Write the second half of `docs/architecture.md` from the modules themselves.

    python docs/make_architecture.py

Everything after the line `MARK` is replaced: the layers as `pyproject.toml` gives them to
import-linter, and each module with the first line of its docstring. Nothing is imported.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "langchain_pos"
PAGE = ROOT / "docs" / "architecture.md"
MARK = "<!-- From here on `python docs/make_architecture.py` writes this page. -->\n"


def summary(module: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not docstring:
        raise SystemExit(f"{module.relative_to(ROOT)} has no docstring; say in one line what it is")
    return docstring.splitlines()[0].replace("|", r"\|")


def home(name: str) -> Path:
    """The file that speaks for a package or module of the top level."""
    folder = PACKAGE / name
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def layers() -> list[list[str]]:
    """The packages, a list for each layer, top first, as import-linter holds them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (whole,) = (each for each in contracts if each.get("containers") == ["langchain_pos"])
    return [[name.strip() for name in layer.split("|")] for layer in whole["layers"]]


def table(rows: list[tuple[str, str]], heads: tuple[str, str]) -> list[str]:
    """Rows of Markdown."""
    return [
        f"| {heads[0]} | {heads[1]} |",
        "| --- | --- |",
        *(f"| {name} | {text} |" for name, text in rows),
        "",
    ]


def generated() -> str:
    """What follows `MARK`."""
    lines = ["## The layers, top first", ""]
    rows = [
        (
            ", ".join(f"`{name}`" for name in layer),
            " ".join(summary(home(name)) for name in layer),
        )
        for layer in layers()
    ]
    lines += table(rows, ("layer", "what it is"))
    folders = [path.parent for path in PACKAGE.rglob("__init__.py")]
    for folder in sorted(folders, key=lambda path: path.relative_to(ROOT).parts):
        modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        lines += [f"## `{folder.relative_to(ROOT)}/`", "", summary(folder / "__init__.py"), ""]
        if modules:
            rows = [(f"`{module.stem}`", summary(module)) for module in modules]
            lines += table(rows, ("module", "what it is"))
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    """The whole page: what is written by hand, then what is generated."""
    by_hand, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise SystemExit(f"{PAGE.name} has lost the line {MARK.strip()!r}; put it back")
    return f"{by_hand}{MARK}\n{generated()}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
