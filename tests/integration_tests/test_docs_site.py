"""The documentation as a site: builds strictly, complete, and needs nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import langchain_pos

ROOT = Path(__file__).parents[2]

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(  # not `-q`, which hides warnings from `--strict` as well
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


class Assets(HTMLParser):
    """What a browser fetches for a page by itself; links that a reader follows are none."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "link" and named.get("rel") not in ("canonical", "next", "prev"):
            self.urls.append(named.get("href") or "")
        if tag in ("script", "img", "iframe", "source", "video"):
            self.urls.append(named.get("src") or "")


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and pictures of every page lie in the site."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 8
    for page in pages:
        urls = Assets(page.read_text(encoding="utf-8")).urls
        assert urls
        for url in urls:
            assert not re.match(r"(https?:)?//", url), f"{page.name}: {url}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8"))


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    """Each name of `__all__` has its entry, with its docstring."""
    page = (site / "reference" / "index.html").read_text(encoding="utf-8")
    for name in set(langchain_pos.__all__) - {"__version__"}:
        module = langchain_pos._HOME[name]
        assert f'id="langchain_pos.{module}.{name}"' in page, name


def test_the_figures_are_what_their_script_draws(tmp_path: Path) -> None:
    """The picture of the mask is made by our own code, from the version that is here."""
    pytest.importorskip("matplotlib")
    subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_figures.py"), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    # The others are of a browser, and of a recorded run.
    kept = sorted(tmp_path.glob("*.svg"))
    assert kept
    for figure in kept:
        there = (ROOT / "docs" / "figures" / figure.name).read_text("utf-8")
        drawn = figure.read_text("utf-8")
        assert cells(drawn) == cells(there)


def cells(svg: str) -> list[str]:
    """What is drawn, without the numbers that depend on matplotlib's version and fonts."""
    found = re.findall(r"fill: (#\w+)|<text[^>]*>([^<]*)</text>", svg)
    assert len(found) > 100
    return [colour or text for colour, text in found]
