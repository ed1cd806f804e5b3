"""What models wrote stands on a page, whole and with its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import transcripts
from benchmarks.everyday import EVERYDAY
from langchain_pos.reasoning.native_form import NATIVE
from langchain_pos.results.data import Block, BranchResult, Step
from langchain_pos.results.result import ReasoningResult


def test_the_page_has_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list, where it begins and ends; of the model its name, without its folder."""
    plan = NATIVE.given([Step(title="Ann"), Step(title="Ben")])
    branches = (
        BranchResult(index=0, title="Ann", text="is tall."),
        BranchResult(index=1, title="Ben", text="is small."),
    )
    listed = ReasoningResult(
        mode="parallel", blocks=(Block(plan=plan, branches=branches),), conclusion="That is all."
    )
    answers = iter(
        [
            listed,
            ReasoningResult(
                conclusion="Hm.", mode="sequential", fallback_reason="declined: no list"
            ),
        ]
    )

    class Model:
        """Answers what it is told to."""

        def __init__(self, **fields: object) -> None:
            assert fields["max_sequential_tokens"] == 50

        def invoke(self, question: str) -> ReasoningResult:
            """The next answer."""
            assert question in EVERYDAY
            return next(answers)

    monkeypatch.setattr(transcripts, "ParallelReasoningLLM", Model)
    page = tmp_path / "page.md"
    folder = tmp_path / "some-model" / "hf"
    transcripts.main(model=[str(folder)], questions=2, tokens=50, out=tmp_path, page=page)
    text = page.read_text(encoding="utf-8")
    first, second = EVERYDAY.splitlines()[:2]
    assert f"### {first}\n" in text
    assert f"### {second}\n" in text
    assert f"{transcripts.DOTS}\n1. **Ann**: is tall.\n\n2. **Ben**: is small.\n" in text
    assert "declined: no list" in text
    written = (tmp_path / "transcripts_some-model.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in written
    assert json.loads(written)["rows"] == [
        {"model": "some-model", "questions": 2, "in parallel": 1}
    ]
