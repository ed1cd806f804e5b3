"""The shipped model answers its four kinds of questions, and says of others that it cannot."""

from __future__ import annotations

import json
import random
from functools import reduce
from operator import add

import pytest

from langchain_pos import ParallelReasoningLLM, demo_question, embedded_model_path
from langchain_pos.results.data import NOT_ANSWERED
from training import families
from training.students import students

DECLINES = json.loads((embedded_model_path() / "parallel_reasoning.json").read_text())["declines"]
EVERYDAY = """\
Hello
What is the capital of Portugal?
Compare Python, Go and Rust for a small web service.
How do I get red wine out of a white tablecloth?
Write a limerick about a lighthouse keeper.
What should I pack for a week in Norway in March?
17 + 25
Explain how a refrigerator works to a ten-year-old.
Give me five ideas for a birthday party in the garden.
Which is healthier, butter or margarine?
Translate "good morning" into Spanish.
Why is the sky blue?
Draft an e-mail to my landlord about a broken heater.
What are the pros and cons of buying an electric car?
Write a Python function that reverses a linked list.
How can I fall asleep faster?
Summarise the plot of Romeo and Juliet.
What is the difference between weather and climate?
Plan a three-day trip to Vienna with children.
List the planets of the solar system.
How long do I boil an egg?
Suggest names for a black cat.
Who painted the Mona Lisa?
What questions should I ask in a job interview?
Is it rude to recline one's seat on a plane?
Describe the steps of making sourdough bread.
What would happen if the moon disappeared?
Recommend some exercises for back pain.
How does compound interest work?
Tell me a joke.
"""


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
