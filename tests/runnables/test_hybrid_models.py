"""Models that carry states answer in three stages: 100 questions, 100 complete results."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.embedded import embedded_model_path
from tests.support.scripted import BARE
from tests.support.tiny import tiny_engine

_TINY = {
    "prompts": BARE,
    "allow_decline": False,
    "max_pressure": None,
    "max_branches": 5,
    "max_plan_tokens": 64,
    "max_preamble_tokens": 8,
    "max_title_tokens": 6,
    "max_branch_tokens": 6,
    "max_conclusion_tokens": 6,
}
_PEOPLE = ["Ann", "Ben", "Cleo", "Dan", "Eva"]
_ASKED = ["has worked abroad", "is older", "lives in Paris", "reads Greek"]
QUESTIONS = [f"Who of {a} and {b} {what}?" for a in _PEOPLE for b in _PEOPLE for what in _ASKED]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qwen3_5", slice(0, 40)),
        ("lfm2", slice(40, 60)),
        ("falcon_h1", slice(60, 80)),
        ("mamba2", slice(80, 100)),
    ],
)
def test_every_question_gets_a_complete_result(name: str, part: slice) -> None:
    """A plan of different steps, a branch for each, a conclusion; greedy and sampled in turn."""
    assert len(QUESTIONS) == 100
    tokenizer = AutoTokenizer.from_pretrained(str(embedded_model_path()))
    engine = tiny_engine(name, tokenizer=tokenizer, eos=True)
    llm = ParallelReasoningLLM.from_engine(engine, **_TINY)
    asked = QUESTIONS[part]
    half = len(asked) // 2
    answers = [*llm.batch(asked[:half]), *llm.batch(asked[half:], temperature=1.0, seed=5)]
    assert len(answers) == len(asked)
    for result in answers:
        assert result.mode == "parallel", result.fallback_reason
        assert result.plan is not None
        titles = {title.casefold() for title in result.plan.titles}
        assert 2 <= len(titles) == len(result.plan.steps) == len(result.branches) <= 5
        for branch in result.branches:
            assert bool(branch.text) == (branch.finish_reason != "error")
        assert bool(result.conclusion) == (result.finish_reason != "error")
        assert ReasoningResult.model_validate_json(result.model_dump_json()) == result
    assert sum(not branch.text for result in answers for branch in result.branches) < len(asked) / 5
    assert engine.slots_in_use == 0
