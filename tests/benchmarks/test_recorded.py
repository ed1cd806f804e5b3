"""Recorded answers are taken apart and cut into tokens without loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recorded import encode, read, take_apart, token_ratio, tokenizer_for
from tests.support.recorded_data import PARALLEL, transcript


def test_an_answer_in_parts() -> None:
    """Preamble, titles, bodies and conclusion are where they stand in the recorded text."""
    recorded = take_apart(transcript("logic_gpa_resume_10"))
    assert recorded is not None
    assert recorded.preamble == "Let us see."
    assert recorded.steps[1] == ("Ben Ray", " GPA is 2.4.")
    assert recorded.conclusion == "name: Ben Ray"
    assert recorded.skeleton.splitlines() == [
        "Let us see.",
        "####Ann Lee:......",
        "####Ben Ray:......",
        "####Cleo Fox:......",
        "####%%%%",
    ]


@pytest.mark.parametrize(
    "parallel",
    [
        "Parallel decoding failed",
        PARALLEL.replace(" GPA is 2.4.", ""),
        PARALLEL.replace("Ben Ray:", "Ann Lee:"),
        PARALLEL.removesuffix("name: Ben Ray"),
        PARALLEL.replace("Ben Ray:", "Ben Ray"),
    ],
)
def test_what_our_stages_could_not_write_is_left_out(parallel: str) -> None:
    """Failures, empty bodies, repeated titles, a missing conclusion or colon."""
    assert take_apart({**transcript("logic_gpa_resume_10"), "parallel": parallel}) is None


def test_tokens_spell_any_text() -> None:
    """Text that the tokenizer was made for and text that it was not decode to what they were."""
    tokenizer = tokenizer_for([PARALLEL, "分析有机农业。"])
    for text in (PARALLEL, "分析有机农业。", "something else: 经济, 12.5 é\n\n####x:......"):
        assert tokenizer.decode(encode(tokenizer, text)) == text
    assert len(encode(tokenizer, PARALLEL)) < len(encode(tokenizer_for(["a"]), PARALLEL)) / 2


@pytest.mark.parametrize("kind", ["retrieval-10", "retrieval-30", "planning"])
def test_tokens_are_as_many_as_recorded(paper_data: Path, kind: str) -> None:
    """Over all usable answers of a kind, the tokens are within 6% of those recorded."""
    answers = read(paper_data, kind, 1000)
    texts = [text for a in answers for text in (a.parallel, a.sequential)]
    assert len(answers) > 60
    assert 0.94 < token_ratio(tokenizer_for(texts), answers) < 1.06
