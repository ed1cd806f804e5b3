"""Every Python block of README and `docs/` runs, on the shipped model."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from langchain_pos.embedded import embedded_model_path
from langchain_pos.reasoning.settings import ReasoningSettings
from tests.support.gguf_files import real_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])


def blocks(page: Path) -> int:
    """How many Python blocks a page has, counted without the library."""
    return len(re.findall(r"^```python$", page.read_text(encoding="utf-8"), re.MULTILINE))


def test_there_are_pages_with_blocks() -> None:
    """The pages are found, so that the test below cannot pass by finding nothing."""
    names = {page.name for page in PAGES if blocks(page)}
    assert names >= {"README.md", "index.md", "chains.md", "documents.md", "streaming.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom in one namespace; what a page asserts holds."""
    monkeypatch.chdir(tmp_path)  # where a block may write files
    monkeypatch.setenv("MODEL", str(embedded_model_path()))  # the tutorial's; any one will do
    run_blocks(page)


@pytest.mark.slow
def test_the_tutorial_runs_on_a_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks run with a model that people own, where there is one."""
    monkeypatch.setenv("MODEL", str(real_model("qwen2.5-coder-0.5b-instruct") / "hf"))
    run_blocks(ROOT / "docs" / "tutorial.md")


def run_blocks(page: Path) -> None:
    """Run every Python block of a page, and see that none was missed."""
    document = SYBIL.parse(page)
    examples = list(document.examples())
    code = [example for example in examples if "source" in example.region.lexemes]
    assert len(code) == blocks(page), "a block is not in a form that is found"
    for example in examples:
        example.evaluate()


def test_every_link_between_pages_has_its_target() -> None:
    """README links to files of the repository; the site's own links are checked by its build."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if not t.startswith("http")]
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    """A path in backquotes is one of the repository or of the package."""
    by_hand = page.read_text(encoding="utf-8").partition("<!-- From here on")[0]
    for name in re.findall(r"`([\w/]+\.py)`", by_hand):
        assert any((folder / name).is_file() for folder in (ROOT, ROOT / "langchain_pos")), name


def test_the_architecture_page_is_current() -> None:
    """It has the modules as they are now."""
    script = runpy.run_path(str(ROOT / "docs" / "make_architecture.py"))
    current = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert current == script["page"](), "run: python docs/make_architecture.py"


def test_the_readme_is_short() -> None:
    """It fits a few screens; the rest is in the documentation."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_moving_picture_is_drawn_from_its_recording() -> None:
    """It is small, stands alone, and shows ten branches and both costs of the recorded run."""
    script = runpy.run_path(str(ROOT / "docs" / "make_recording.py"))
    recording = json.loads(script["RECORDING"].read_text(encoding="utf-8"))
    picture = script["PICTURE"].read_text(encoding="utf-8")
    assert picture == script["draw"](recording), "run: python docs/make_recording.py"
    assert len(picture) < 150_000
    root = ET.fromstring(picture)
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert names.count("rect") == 11
    assert not {"script", "image", "foreignObject", "a"} & set(names)
    for way in ("parallel", "sequential"):
        assert f"{recording[way]['passes']} forward passes" in picture


def test_every_setting_is_in_the_guide() -> None:
    """The tuning page says of each setting when to turn it."""
    page = (ROOT / "docs" / "guides" / "tuning.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    for name in ReasoningSettings.model_fields:
        assert re.search(rf"`{name}\b", rows), name
