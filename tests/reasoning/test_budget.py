"""Budgets shrink until everything fits; what cannot fit is refused with the numbers."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from langchain_pos.errors import ContextLengthError, OutOfSlotsError
from langchain_pos.reasoning.budget import LEAST_ROOM, Budget, no_gain
from langchain_pos.reasoning.settings import ReasoningSettings
from tests.support.scripted import (
    SMALL,
    STUDENTS,
    TOKENIZERS,
    random_llm,
    scripted_llm,
    tiny_model,
)

DEFAULT = ReasoningSettings()


class TestSharingOut:
    @given(
        prompt=st.integers(1, 5000),
        limit=st.integers(65, 50_000),
        settings=st.builds(
            ReasoningSettings,
            max_branches=st.integers(2, 1000),
            max_parallel_branches=st.integers(1, 64),
            max_branch_tokens=st.integers(1, 2000),
            max_conclusion_tokens=st.integers(1, 4000),
            max_sequential_tokens=st.integers(1, 9000),
        ),
    )
    def test_every_stage_gets_something_and_all_fit(
        self, prompt: int, limit: int, settings: ReasoningSettings
    ) -> None:
        """Skeleton, conclusion, ordinary answer fit behind the prompt; slots are not exceeded."""
        assume(limit - prompt >= LEAST_ROOM)
        budget = Budget.within(limit, prompt, settings)
        assert budget.limit == limit
        assert 1 <= budget.plan <= settings.max_plan_tokens
        assert 1 <= budget.conclusion <= settings.max_conclusion_tokens
        assert prompt + 2 * budget.plan + budget.conclusion <= budget.limit
        assert prompt + budget.sequential <= budget.limit
        assert prompt + budget.sequential <= budget.reserve <= budget.limit

    @given(base=st.integers(10, 400), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40))
    def test_all_branches_and_the_conclusion_fit_behind_the_base(
        self, base: int, lengths: list[int]
    ) -> None:
        """Openings, bodies, the join's line breaks and the conclusion stay within the limit."""
        budget = Budget.within(512, 10, DEFAULT)
        try:
            each = max(budget.branches(base, lengths, [512] * len(lengths)))
        except ContextLengthError:
            assert budget.limit - base - budget.conclusion - sum(lengths) < 3 * len(lengths)
            return
        assert each >= 1
        joined = base + sum(lengths) + len(lengths) * (each + 2)
        assert joined + budget.conclusion <= budget.limit

    def test_without_a_limit_the_settings_alone_bound(self) -> None:
        """A server that does not say how long its context is refuses what is too long."""
        budget = Budget.within(None, 0, DEFAULT)
        assert budget.plan == DEFAULT.max_plan_tokens
        assert budget.conclusion == DEFAULT.max_conclusion_tokens
        assert budget.branches(0, [0, 0], [512, 9]) == [512, 9]

    def test_fewer_slots_mean_fewer_branches_at_once(self) -> None:
        """Branches wait where the reserved slots do not hold all of them."""
        few = Budget.within(400, 50, DEFAULT)
        openings = [9, 2, 2, 2, 2, 2, 2, 2]
        each = few.branches(60, openings, [512] * 8)
        assert few.parallel(60, openings, each, 32) == 8  # what fits the positions fits at once
        assert few.parallel(60, openings, [100] * 8, 32) == 3
        many = Budget.within(100_000, 50, DEFAULT)
        assert many.parallel(60, openings, [512] * 8, 5) == 5


class TestWholeAnswer:
    """`max_tokens`."""

    @pytest.mark.parametrize("most", [1, 20, 64, 80, 120, 300])
    @pytest.mark.parametrize("outline", ["paper", "native"])
    def test_it_bounds_all_that_is_written(self, outline: str, most: int) -> None:
        """Plans that fail, branches and conclusion together; and an answer there is."""
        long = {"max_plan_tokens": 500, "max_branch_tokens": 500, "max_branches": 8}
        llm = random_llm(**long, outline=outline, temperature=1.0)
        for seed in range(4):
            for asked in ("Who?", {"question": "Who?", "steps": ["Ann"]}):
                result = llm.invoke(asked, max_tokens=most, seed=seed)
                assert 0 < result.usage.output_tokens <= most
        assert llm.engine.slots_in_use == 0

    def test_a_plan_that_leaves_too_little_is_none(self) -> None:
        """The question is answered sequentially, and the result says why."""
        llm, _ = scripted_llm({**STUDENTS, "see.": " So.…"}, max_sequential_tokens=999)
        result = llm.invoke("Who?", max_tokens=40)
        assert (result.mode, result.finish_reason) == ("sequential", "length")
        assert "max_tokens=40" in (result.fallback_reason or "")
        assert result.usage.output_tokens == 40

    def test_what_plan_and_branches_leave_is_the_conclusions(self) -> None:
        """More than its own default, where little was planned."""
        llm, _ = scripted_llm({**STUDENTS, "####%%%%\n": "x" * 400 + "…"})
        result = llm.invoke("Who?", max_tokens=300)
        assert result.mode == "parallel"
        assert result.usage.output_tokens == 300
        assert result.conclusion.startswith("x" * 100)

    def test_a_plan_that_leaves_each_branch_a_few_tokens_is_none(self) -> None:
        """Nearly all branches would be cut; the caller's own steps get what there is."""
        llm, _ = scripted_llm({**STUDENTS, "see.": " So.…"})
        result = llm.invoke("Who?", max_tokens=72)
        assert result.mode == "sequential"
        assert "3 steps do not fit: 45 of max_tokens=72" in (result.fallback_reason or "")
        assert "each step needs 16" in (result.fallback_reason or "")
        given = llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]}, max_tokens=20)
        assert [branch.usage.output_tokens for branch in given.branches] == [7, 7]
        assert llm.invoke("Who?", max_tokens=72, max_branch_tokens=5).mode == "parallel"

    def test_steps_that_cannot_fit_are_refused(self) -> None:
        """The caller's, with the number that is too small."""
        llm, _ = scripted_llm(STUDENTS)
        with pytest.raises(ContextLengthError, match="max_tokens=3"):
            llm.invoke({"question": "Who?", "steps": ["Ann", "Ben", "Cem"]}, max_tokens=3)


class TestRefusals:
    def test_a_prompt_beyond_the_positions_is_refused_with_the_numbers(self) -> None:
        """What was given, what is allowed, what to do; and not one pass."""
        llm, script = scripted_llm({}, positions=256)
        with pytest.raises(ContextLengthError, match="the model has 256 positions") as caught:
            llm.invoke("long " * 200)
        assert re.search(r"the prompt has \d{3,} tokens, and 64 must be left", str(caught.value))
        assert "Shorten the question" in str(caught.value)
        assert script.passes == []

    def test_a_prompt_beyond_the_slots_is_refused_with_the_numbers(self) -> None:
        """The same for slots, and the remedy is another one."""
        llm, script = scripted_llm({}, max_slots=128)
        with pytest.raises(OutOfSlotsError, match=r"may hold 128 KV-cache slots.*raise max_slots"):
            llm.invoke("long " * 40)
        assert script.passes == []

    def test_the_ordinary_prompt_counts_where_it_is_the_longer_one(self) -> None:
        """A fallback never meets a context that is too short for its prompt."""
        llm, script = scripted_llm({}, positions=256)
        wide = {"sequential": "{question}" + "x" * 230}
        llm.prompts = llm.prompts and llm.prompts.model_copy(update=wide)
        with pytest.raises(ContextLengthError, match="256 positions"):
            llm.invoke("Who?")
        assert script.passes == []


@pytest.mark.parametrize("positions", [256, 300])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_short_contexts_are_never_overrun(positions: int, tokenizer: str) -> None:
    """GPT-2 has no position beyond its last one: an overrun would end the question with an error.

    Default budgets, which are far larger than the context; an answer comes every time.
    """
    large = {name: getattr(DEFAULT, name) for name in SMALL} | {"max_pressure": None}
    llm = random_llm(TOKENIZERS[tokenizer](), model=tiny_model(positions, learned=True), **large)
    modes = []
    for words in (1, 12, 24):
        for visibility in ("isolated", "titles"):
            result = llm.invoke("word " * words + "?", visibility=visibility, seed=words)
            modes.append(result.mode)
            assert result.peak_slots <= positions
            if result.finish_reason == "error":
                assert "no room is left" in str(result.error)
            else:
                assert result.conclusion
    assert "parallel" in modes


@pytest.mark.parametrize("slots", [200, 400])
def test_few_slots_are_never_exceeded(slots: int) -> None:
    """An engine with few slots answers in more passes, and holds no slot too many."""
    llm, _ = scripted_llm(
        {"####Ann:": " a b c", "####Ben:": " d e f", "####%%%%\n": "done"}, max_slots=slots
    )
    steps = [*(f"step {i}" for i in range(6)), "Ann", "Ben"]
    result = llm.invoke({"question": "Who?", "steps": steps}, max_branch_tokens=16)
    assert [b.text for b in result.branches[-2:]] == ["a b c", "d e f"]
    assert result.peak_slots <= slots
    assert result.conclusion == "done"


@pytest.mark.parametrize(
    ("steps", "longest", "gains"),
    [(1, 500, False), (2, 1, False), (2, 2, False), (2, 3, True), (3, 1, False), (4, 1, True)],
)
def test_steps_that_are_too_few_and_too_short_gain_nothing(
    steps: int, longest: int, gains: bool
) -> None:
    """Openings and join cost a pass each; what is saved must be more."""
    assert (no_gain(steps, longest) is None) == gains


def test_a_plan_without_gain_is_answered_in_the_ordinary_way() -> None:
    """The result says why; the caller's own steps, and those who insist, get their branches."""
    llm, _ = scripted_llm(STUDENTS, max_branch_tokens=2)
    result = llm.invoke("Who?")
    assert result.mode == "sequential"
    assert "2 steps of at most 2 tokens" in (result.fallback_reason or "")
    assert llm.invoke("Who?", decline_without_gain=False).mode == "parallel"
    assert llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]}).mode == "parallel"
    assert llm.engine.slots_in_use == 0
