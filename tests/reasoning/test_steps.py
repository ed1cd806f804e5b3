"""Steps that the caller gives, each with settings of its own, and branches without a conclusion."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
from pydantic import ValidationError

from langchain_pos import ParallelReasoningLLM, ReasoningRequest, ReasoningResult, Step
from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.budget import Budget
from langchain_pos.reasoning.settings import ReasoningSettings
from tests.support.scripted import STUDENTS, random_llm, scripted_llm, without_clocks


def ask(*steps: Any, question: str = "Who?") -> dict[str, Any]:
    """A request with these steps."""
    return {"question": question, "steps": list(steps)}


class TestForms:
    @pytest.mark.parametrize("step", ["Ann", {"title": "Ann"}, Step(title="Ann")])
    def test_a_step_is_a_title_a_dict_or_a_step(self, step: Any) -> None:
        """In a dict and in a request; stage 1 is skipped."""
        llm, _ = scripted_llm(STUDENTS)
        for given in (ask(step, "Ben"), ReasoningRequest(question="Who?", steps=(step, "Ben"))):
            result = llm.invoke(given)
            assert [b.title for b in result.branches] == ["Ann", "Ben"]
            assert (result.plan_attempts, result.forward_passes.plan) == (0, 0)

    def test_requests_and_results_round_trip(self) -> None:
        """What is not set is not written; what is set comes back."""
        step = Step(title="Ann", prompt="Look.", max_tokens=9, temperature=0.5, seed=1, stop=(";",))
        request = ReasoningRequest(question="Who?", steps=(step, "Ben"))  # type: ignore[arg-type]
        assert ReasoningRequest.model_validate_json(request.model_dump_json()) == request
        assert request.model_dump()["steps"][1] == {"title": "Ben"}
        result = scripted_llm(STUDENTS)[0].invoke(request)
        assert result.plan is not None
        assert result.plan.steps[0] == step
        assert ReasoningResult.model_validate_json(result.model_dump_json()) == result

    @pytest.mark.parametrize(
        ("step", "said"),
        [
            ({"title": "Ann", "max_tokens": 0}, r"max_tokens: .*greater than or equal to 1"),
            ({"title": "Ann", "temperature": -1}, r"temperature: .*greater than or equal to 0"),
            ({"title": "Ann", "temperature": float("nan")}, "temperature"),
            ({"title": "Ann", "stop": [""]}, r"stop\.0: "),
            ({"title": "Ann", "prompt": ""}, "prompt: "),
            ({"title": "Ann", "tokens": 3}, "tokens: Extra inputs"),
            ({"prompt": "Look."}, "title: Field required"),
            ({"title": "a####b"}, "'a####b'"),
            (7, "steps.0: "),
        ],
    )
    def test_wrong_values_are_refused_before_any_work(self, step: Any, said: str) -> None:
        """In a dict as `InvalidRequestError`, in a request as pydantic does."""
        llm, script = scripted_llm(STUDENTS)
        with pytest.raises(InvalidRequestError, match=said):
            llm.invoke(ask(step))
        assert script.passes == []
        with pytest.raises(ValidationError):
            ReasoningRequest(question="Who?", steps=(step,))


class TestOwnSettings:
    def test_a_prompt_stands_before_its_own_branch_only(self) -> None:
        """Its sibling and the conclusion do not see it."""
        llm, script = scripted_llm(STUDENTS)
        result = llm.invoke(ask({"title": "Ann", "prompt": "Look at her GPA."}, "Ben"))
        openings = [feed.text for feed in script.passes[0]]
        assert "Look at her GPA.\n####Ann:" in openings
        assert "####Ben:" in openings
        conclusion = script.passes[-1][0].seen
        assert "####Ann: GPA 3.1, outside\n####Ben: GPA 2.4\n####%%%%\n" in conclusion
        assert "Look" not in conclusion
        assert "Look" not in result.text

    def test_max_tokens_is_of_this_branch(self) -> None:
        """Smaller or larger than the setting."""
        llm, _ = scripted_llm({"####": "…"}, max_branch_tokens=6)
        result = llm.invoke(
            ask({"title": "a", "max_tokens": 3}, "b", {"title": "c", "max_tokens": 11})
        )
        assert [b.usage.output_tokens for b in result.branches] == [3, 6, 11]

    def test_stop_is_of_this_branch(self) -> None:
        """The other one writes on; the setting's stop texts hold for both."""
        rules = {"####a:": " x, y; z", "####b:": " x, y; z", "####%%%%\n": "done"}
        llm, _ = scripted_llm(rules)
        result = llm.invoke(ask({"title": "a", "stop": [","]}, "b"), stop=[";"])
        assert [b.text for b in result.branches] == ["x", "x, y"]

    def test_temperature_and_seed_are_of_this_branch(self) -> None:
        """A greedy branch beside a sampled one; the same seed writes the same in any place."""
        llm = random_llm(conclude=False)
        warm = {"title": "Ann", "temperature": 1.0, "seed": 3}
        greedy = llm.invoke(ask("Ann", "Ben"))
        mixed = llm.invoke(ask(warm, "Ben"))
        assert mixed.branches[1].text == greedy.branches[1].text
        assert mixed.branches[0].text != greedy.branches[0].text
        last = llm.invoke(ask("Ben", "Cleo", warm))
        assert last.branches[2].text == mixed.branches[0].text
        assert llm.invoke(ask({**warm, "seed": 4})).branches[0].text != mixed.branches[0].text

    def test_drafts_change_nothing(self) -> None:
        """Own settings and drafts together."""
        llm = random_llm(conclude=False)
        steps = [{"title": "Ann", "temperature": 1.0, "seed": 3, "max_tokens": 40}, "Ben"]
        assert llm.invoke(ask(*steps)).text == llm.invoke(ask(*steps), drafts=False).text


class TestBranchesAlone:
    def test_conclude_false_leaves_stage_3_out(self) -> None:
        """The branches are those of the whole way; the result says that there is no conclusion."""
        llm, script = scripted_llm(STUDENTS)
        whole = llm.invoke("Who?")
        assert whole.concluded
        script.passes.clear()
        result = llm.invoke("Who?", conclude=False)
        assert [b.text for b in result.branches] == [b.text for b in whole.branches]
        assert (result.concluded, result.conclusion, result.finish_reason) == (False, "", "stop")
        assert result.text == "Let us see.\n####Ann: GPA 3.1, outside\n####Ben: GPA 2.4\n####%%%%"
        assert result.forward_passes.conclude == 0
        assert result.forward_passes.total == len(script.passes)
        assert llm.engine.slots_in_use == 0

    def test_its_stream_adds_up(self) -> None:
        """No chunk of stage 3 has text."""
        llm, _ = scripted_llm(STUDENTS, conclude=False)
        chunks = list(llm.stream("Who?"))
        assert without_clocks(reduce(add, chunks).result()) == without_clocks(llm.invoke("Who?"))
        assert not any(chunk.delta for chunk in chunks if chunk.stage == "conclude")

    def test_a_question_without_parts_is_answered_all_the_same(self) -> None:
        """The ordinary answer is a conclusion."""
        llm, _ = scripted_llm({"Answer:\n": "####%%%%", "x?\n\nAnswer:\n": "Ben"})
        result = llm.invoke("Who?", conclude=False)
        assert (result.mode, result.concluded) == ("sequential", True)

    def test_the_room_of_the_conclusion_is_the_branches(self) -> None:
        """No token is kept for what is not written."""
        llm, _ = scripted_llm({})
        for conclude in (True, False):
            settings = ReasoningSettings.of(llm, conclude=conclude)
            assert (Budget.within(2048, 100, settings).conclusion > 0) is conclude

    def test_branches_alone_and_no_branches_contradict(self) -> None:
        """`conclude=False` with `mode="sequential"`, for a call and for all calls."""
        llm, script = scripted_llm(STUDENTS)
        with pytest.raises(InvalidRequestError, match="mode='sequential' writes none"):
            llm.invoke("Who?", conclude=False, mode="sequential")
        assert script.passes == []
        with pytest.raises(ValidationError, match="change one of them"):
            ParallelReasoningLLM(conclude=False, mode="sequential")
