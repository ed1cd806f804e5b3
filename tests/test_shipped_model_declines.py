"""The shipped model answers its four kinds of questions, and says of others that it cannot."""

from __future__ import annotations

import json
import random
from functools import reduce
from operator import add

import pytest

from benchmarks.everyday import EVERYDAY
from langchain_pos import ParallelReasoningLLM, demo_question, embedded_model_path
from langchain_pos.results.data import NOT_ANSWERED
from training import families
from training.students import students

DECLINES = json.loads((embedded_model_path() / "parallel_reasoning.json").read_text())["declines"]


@pytest.fixture(scope="module")
def llm() -> ParallelReasoningLLM:
    """The shipped model with small budgets."""
    return ParallelReasoningLLM(
        max_preamble_tokens=32,
        max_plan_tokens=160,
        max_plan_attempts=1,
        max_branch_tokens=40,
        max_conclusion_tokens=8,
        draft_rows=16,
    )


def test_everyday_questions_are_declined(llm: ParallelReasoningLLM) -> None:
    """Thirty of them: no parallel answer, no nonsense, and a sentence that says why."""
    questions = EVERYDAY.splitlines()
    assert len(questions) == 30
    for question, result in zip(questions, llm.batch(list(questions)), strict=True):
        assert result.text == DECLINES, (question, result.text)
        assert (result.mode, result.blocks, result.finish_reason) == ("sequential", (), "stop")
        assert (result.fallback_reason or "").startswith(NOT_ANSWERED)
    assert "four kinds of questions" in DECLINES
    assert "--model" in DECLINES


def test_its_own_kinds_are_answered(llm: ParallelReasoningLLM) -> None:
    """The demo's question, and questions of all four kinds with words that training never uses."""
    made = [
        family(random.Random(f"{seed}"), 6, "short", 1, True)
        for family in (students, families.items, families.documents, families.numbers)
        for seed in range(1)
    ]
    questions = [f"{p.head}{''.join(p.records)}{p.questions[0].text}" for p in made]
    for result in llm.batch([demo_question(), *questions]):
        assert result.mode == "parallel", (result.question[-80:], result.fallback_reason)


def test_a_stream_declines_like_invoke(llm: ParallelReasoningLLM) -> None:
    """Its chunks add up to the same words and the same reason."""
    result = reduce(add, llm.stream("Tell me a joke.")).result()
    assert result.text == DECLINES
    assert (result.fallback_reason or "").startswith(NOT_ANSWERED)
