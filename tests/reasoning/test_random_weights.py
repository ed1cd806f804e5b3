"""Models with random weights never fail: 200 questions of 200 get a plan and a complete result."""

from __future__ import annotations

import random
from functools import cache

import pytest

from langchain_pos import ReasoningResult
from tests.support.scripted import TOKENIZERS, random_llm, tiny_model

QUESTIONS = 200
_ENGLISH = (
    "which of these 10 students has a GPA inside the interval [3.1, 3.9] and lives abroad".split()
)
_CHINESE = "请问以下哪些学生的平均绩点在给定区间内，并且住在国外呢"
_TINY = {
    "allow_decline": False,
    "max_branches": 6,
    "max_plan_tokens": 64,
    "max_preamble_tokens": 8,
    "max_title_tokens": 6,
    "max_branch_tokens": 8,
    "max_conclusion_tokens": 8,
}


def questions() -> list[str]:
    """English and Chinese in turn, from one word to a few hundred tokens."""
    draw = random.Random(7)
    lengths = [draw.choice([1, 3, 10, 40]) for _ in range(QUESTIONS)]
    return [
        "".join(draw.choices(_CHINESE, k=length)) + "？"
        if place % 2
        else " ".join(draw.choices(_ENGLISH, k=length)) + "?"
        for place, length in enumerate(lengths)
    ]


@cache
def results() -> list[tuple[str, ReasoningResult]]:
    """A sixth of the questions for every tokenizer, greedy and sampled, each with its own seed."""
    found, asked = [], questions()
    for place, (name, make) in enumerate(TOKENIZERS.items()):
        llm = random_llm(make(), model=tiny_model(seed=place), **_TINY)
        for temperature in (0.0, 1.0):
            part = asked[2 * place + int(temperature) :: 2 * len(TOKENIZERS)]
            answers = llm.batch(part, temperature=temperature, seed=place)
            found += [(name, answer) for answer in answers]
        assert llm.engine.slots_in_use == 0
    return found


def test_all_questions_get_a_valid_plan() -> None:
    """Two to six steps with different titles, none answered sequentially."""
    assert len(results()) == QUESTIONS
    for name, result in results():
        assert result.mode == "parallel", (name, result.fallback_reason)
        assert result.plan is not None
        titles = [title.casefold() for title in result.plan.titles]
        assert 2 <= len(set(titles)) == len(titles) <= 6


def test_all_results_are_complete() -> None:
    """Every branch has text or says why not; so has the conclusion; the whole reads back."""
    branches = [branch for _, result in results() for branch in result.branches]
    assert len(branches) == sum(len(r.plan.steps) for _, r in results() if r.plan)
    for branch in branches:
        assert bool(branch.text) == (branch.finish_reason != "error")
        assert bool(branch.error) == (branch.finish_reason == "error")
    empty = [branch for branch in branches if not branch.text]
    assert all("without writing any text" in str(branch.error) for branch in empty)
    assert len(empty) < len(branches) // 20  # a random model may write EOS or blanks at once
    for _, result in results():
        assert bool(result.conclusion) == (result.finish_reason != "error")
        assert ReasoningResult.model_validate_json(result.model_dump_json()) == result


def test_both_languages_and_all_tokenizers_are_among_them() -> None:
    """The 200 are what they claim to be: half Chinese, three tokenizers, greedy and sampled."""
    chinese = sum("？" in result.question for _, result in results())
    assert chinese == QUESTIONS // 2
    counts = {name: sum(n == name for n, _ in results()) for name in TOKENIZERS}
    assert min(counts.values()) > QUESTIONS // 4
    assert any(result.plan_attempts > 1 for _, result in results())


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("prompts", [None], ids=["own wording"])
def test_the_default_prompts_serve_too(tokenizer: str, prompts: None) -> None:
    """The package's English and Chinese wording, a thousand tokens long, with the same outcome."""
    llm = random_llm(TOKENIZERS[tokenizer](), prompts=prompts, outline="paper", **_TINY)
    for result in llm.batch(["Which of the two is older?", "这两个人中谁的年龄更大？"]):
        assert result.mode == "parallel"
        assert result.usage.input_tokens > 200
