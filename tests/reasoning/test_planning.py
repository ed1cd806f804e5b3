"""Stage 1: a skeleton comes of any model, or the reason why there is none."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from langchain_pos import ParallelReasoningLLM
from langchain_pos.errors import NonFiniteLogitsError, PlanFormatError
from langchain_pos.reasoning.skeleton_grammar import PREAMBLE_CLOSE
from tests.support.scripted import STUDENTS, TOKENIZERS, Script, scripted_llm

ASKED = "Who?\n\nAnswer:\n"
TWICE = "####Ann:......\n####Ann:......\n####%%%%"
GOOD = "####Ann:......\n####Ben:......\n####%%%%"
REST = {"####Ann:": " a", "####Ben:": " b", "####%%%%\n": "done"}


def record_sampling(llm: ParallelReasoningLLM, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Temperature and seed of every sequence that gets a grammar."""
    original, seen = llm.engine.sequence, []

    def sequence(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("constraint") is not None:
            seen.append((kwargs["sampling"].temperature, kwargs["seed"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(llm.engine, "sequence", sequence)
    return seen


class TestBudgets:
    def test_a_preamble_that_never_ends_is_closed(self) -> None:
        """After `max_preamble_tokens` the first step is opened for the model."""
        llm, script = scripted_llm({ASKED: "…", **REST}, max_preamble_tokens=12, max_branches=2)
        result = llm.invoke("Who?", allow_decline=False)
        assert len(result.preamble) == 12
        text = "".join(feed.text for feeds in script.passes for feed in feeds)
        assert result.preamble + PREAMBLE_CLOSE in text

    def test_a_title_that_never_ends_is_closed(self) -> None:
        """After `max_title_tokens` the colon is written for the model, and the next step opens."""
        llm, _ = scripted_llm(
            {ASKED: "####aaaaaaaaaaaaaaaaaaaaaaaaaaaaa…", "......\n####": "bbbbbbbbbbbbbbbbbbbb…"},
            max_title_tokens=5,
            max_branches=2,
        )
        result = llm.invoke("Who?")
        assert result.plan is not None
        assert result.plan.titles == ("aaaaa", "bbbbb")

    def test_a_list_of_steps_that_never_ends_is_closed(self) -> None:
        """After `max_plan_tokens` the terminator is written, whatever the model would add."""
        steps = "".join(f"####part {i}:......\n" for i in range(60))
        llm, _ = scripted_llm({ASKED: steps + "####%%%%"}, max_branches=64, max_plan_tokens=64)
        result = llm.invoke("Who?", max_branch_tokens=2)
        assert result.plan is not None
        assert 2 < len(result.plan.steps) < 20
        assert result.plan.titles[:2] == ("part 0", "part 1")
        assert result.plan_attempts == 1

    def test_a_list_that_goes_round_in_a_circle_is_ended(self) -> None:
        """Long before its budget; of the steps that repeat none is left in the end."""
        steps = "".join(f"####{'Ann' if i % 2 else 'Ben'}:......\n" for i in range(60))
        llm, _ = scripted_llm({"Answer:\n": steps, **REST}, max_branches=64, max_plan_tokens=999)
        result = llm.invoke("Who?")
        assert result.plan is not None
        assert result.plan.titles == ("Ben", "Ann")
        assert result.plan_attempts == 3
        assert result.usage.output_tokens < 3 * len(steps) / 6

    def test_the_number_of_steps_is_bounded(self) -> None:
        """`max_branches` steps, then the grammar allows the terminator only."""
        steps = "".join(f"####part {i}:......\n" for i in range(20))
        llm, _ = scripted_llm({ASKED: steps + "####%%%%"}, max_branches=3, max_plan_tokens=256)
        result = llm.invoke("Who?")
        assert result.plan is not None
        assert result.plan.titles == ("part 0", "part 1", "part 2")

    def test_a_plan_too_long_for_the_context_is_answered_sequentially(self) -> None:
        """Steps that leave no room for their bodies are given up, with the numbers."""
        llm, _ = scripted_llm(
            {ASKED: "".join(f"####{letter}:......\n" for letter in "abcdefgh") + "####%%%%"},
            positions=96,
            visibility="titles",
        )
        result = llm.invoke("Who?")
        assert result.mode == "sequential"
        assert result.fallback_reason is not None
        assert "steps do not fit" in result.fallback_reason


class TestRetries:
    def test_the_second_prompt_tells_what_was_wrong(self) -> None:
        """Two steps with one title: the error is in the next prompt, and the plan is the next."""
        told = "Who? (two steps have the same title: 'Ann')\n\nAnswer:\n"
        llm, script = scripted_llm({ASKED: TWICE, told: GOOD, **REST})
        result = llm.invoke("Who?")
        assert result.mode == "parallel"
        assert result.plan_attempts == 2
        assert result.plan is not None
        assert result.plan.titles == ("Ann", "Ben")
        prompts = [f.text for feeds in script.passes for f in feeds if "Question:" in f.text]
        assert prompts == [f"Question: {ASKED}", f"Question: {told}"]
        tokens = [len(llm.engine.tokenizer.encode(prompt)) for prompt in prompts]
        assert result.usage.input_tokens == sum(tokens)
        assert llm.engine.slots_in_use == 0

    def test_the_third_attempt_samples(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Greedy, greedy with the error told, then with a temperature; each with its own seed."""
        llm, _ = scripted_llm({"Answer:\n": TWICE, **REST})
        sampling = record_sampling(llm, monkeypatch)
        result = llm.invoke("Who?", max_plan_attempts=4, seed=1)
        assert [temperature for temperature, _ in sampling] == [0, 0, 0.7, 0.7]
        assert len({seed for _, seed in sampling}) == 4
        assert result.plan_attempts == 4

    def test_a_retry_prompt_that_tells_nothing_new_samples_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the wording has no room for the error, the second attempt samples already."""
        llm, _ = scripted_llm({"Answer:\n": TWICE, **REST})
        llm.prompts = llm.prompts and llm.prompts.model_copy(update={"retry": "{question}"})
        sampling = record_sampling(llm, monkeypatch)
        llm.invoke("Who?", max_plan_attempts=2)
        assert [temperature for temperature, _ in sampling] == [0, 0.7]

    def test_a_hotter_caller_stays_hot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A retry never samples colder than the caller wants."""
        llm, _ = scripted_llm({"Answer:\n": TWICE, **REST})
        sampling = record_sampling(llm, monkeypatch)
        llm.invoke("Who?", temperature=1.5, max_plan_attempts=3)
        assert [temperature for temperature, _ in sampling] == [1.5, 1.5, 1.5]

    def test_after_the_last_attempt_the_question_is_answered_sequentially(self) -> None:
        """An answer comes all the same, and says why it is not parallel."""
        llm, _ = scripted_llm({"Answer:\n": [TWICE, "Ann it is"], ")\n\nAnswer:\n": TWICE})
        llm.prompts = llm.prompts and llm.prompts.model_copy(
            update={"sequential": "{question}\n\nAnswer:\n"}
        )
        result = llm.invoke("Who?")
        assert (result.mode, result.conclusion) == ("sequential", "Ann it is")
        assert result.fallback_reason == "no valid plan: two steps have the same title: 'Ann'"
        assert result.plan_attempts == 3
        assert result.blocks == ()
        assert result.forward_passes.plan > 0
        assert result.finish_reason == "stop"

    def test_a_title_that_occurs_twice_to_the_last_is_left_out(self) -> None:
        """Where two steps are left without the repeats, they are the plan."""
        skeleton = "See.\n####Ann:......\n####ann:......\n####Ben:......\n####%%%%"
        llm, script = scripted_llm({"Answer:\n": skeleton, **REST})
        result = llm.invoke("Who?")
        assert result.plan is not None
        assert (result.preamble, result.plan.titles) == ("See.", ("Ann", "Ben"))
        assert result.plan_attempts == 3
        told = "See.\n####Ann: a\n####Ben: b\n####%%%%\ndone"
        last = script.passes[-1][0]
        assert (last.seen + last.text).endswith(told)

    def test_on_plan_failure_raise_gives_the_error_and_the_text(self) -> None:
        """`PlanFormatError` names what was wrong and carries the last skeleton."""
        llm, _ = scripted_llm({"Answer:\n": TWICE})
        with pytest.raises(PlanFormatError, match="same title: 'Ann'") as caught:
            llm.invoke("Who?", on_plan_failure="raise", max_plan_attempts=2)
        assert caught.value.text == TWICE
        assert llm.engine.slots_in_use == 0


class TestDeclining:
    @pytest.mark.parametrize(
        "skeleton", ["####%%%%", "One thing only.\n####%%%%", "####Ann:......\n####%%%%"]
    )
    def test_fewer_than_two_steps_is_an_ordinary_answer(self, skeleton: str) -> None:
        """The terminator at once, or one step only: nothing runs in parallel."""
        llm, script = scripted_llm({"Answer:\n": [skeleton, "Ben"]})
        llm.prompts = llm.prompts and llm.prompts.model_copy(
            update={"sequential": "{question}\n\nAnswer:\n"}
        )
        result = llm.invoke("Who?")
        assert (result.mode, result.conclusion, result.blocks) == ("sequential", "Ben", ())
        assert result.fallback_reason is not None
        assert result.fallback_reason.startswith("declined")
        assert result.plan_attempts == 1
        assert result.forward_passes.expand == 0
        assert result.forward_passes.total == len(script.passes)

    def test_steps_that_build_on_one_another_are_declined(self) -> None:
        """At once: what the question is like does not change with another attempt."""
        skeleton = "####Step 1:......\n####Step 2:......\n####%%%%"
        llm, _ = scripted_llm({ASKED: [skeleton, "Ann, at last."]})
        result = llm.invoke("Who?")
        assert result.fallback_reason == "no valid plan: its steps build on one another"
        assert result.plan_attempts == 1
        assert result.conclusion
        assert llm.invoke({"question": "Who?", "steps": ["Step 1", "Step 2"]}).mode == "parallel"
        llm, _ = scripted_llm({ASKED: skeleton, "####%%%%\n": "done"})
        assert llm.invoke("Who?", allow_decline=False).mode == "parallel"

    @pytest.mark.parametrize("title", ["Stage 4 cancer", "Day 1", "Summary statistics", "Steps"])
    def test_other_titles_with_such_words_are_not(self, title: str) -> None:
        """Records in the question may be called so."""
        skeleton = f"####{title}:......\n####Ben:......\n####%%%%"
        llm, _ = scripted_llm({ASKED: skeleton, **REST, f"####{title}:": " a"})
        assert llm.invoke("Who?").mode == "parallel"

    def test_declining_can_be_forbidden(self) -> None:
        """With `allow_decline=False` the terminator cannot come before the second step."""
        llm, _ = scripted_llm({ASKED: "####%%%%", **REST})
        result = llm.invoke("Who?", allow_decline=False)
        assert result.mode == "parallel"
        assert len(result.branches) >= 2


class TestBrokenModels:
    def test_nan_while_planning_ends_the_question(self) -> None:
        """There is nothing to fall back on: the same model would answer sequentially."""
        llm, _ = scripted_llm({ASKED: f"Let{Script.NAN}"})
        with pytest.raises(NonFiniteLogitsError, match="dtype"):
            llm.invoke("Who?")
        assert llm.engine.slots_in_use == 0
        assert llm.invoke({"question": "Who?", "steps": ["Ann"]}).branches[0].text

    def test_eos_cannot_break_a_skeleton_off(self) -> None:
        """A model that wants to stop inside the skeleton writes on: EOS is not allowed there."""
        llm, _ = scripted_llm({ASKED: "Let us see.\n####An", **REST})
        result = llm.invoke("Who?")
        assert (result.mode, result.preamble) == ("parallel", "Let us see.")
        assert result.branches[0].title.startswith("An")
        assert len(result.branches[0].title) > 2


class TestOtherTokenizers:
    @pytest.mark.parametrize("question", ["Who?", "Who of them?\nAnn\nBen"])
    def test_tokens_that_reach_over_the_mark_do_no_harm(self, question: str) -> None:
        """`####` may begin inside a token; the text of each stage stays the same."""
        merging = deepcopy(TOKENIZERS["byte-level"]())
        merging.add_tokens([".\n####", "\n####", "......\n", "%%%%\n", ".\n", " 2.4\n##"])
        texts = set()
        for tokenizer in (*(TOKENIZERS[n]() for n in ("byte-level", "chat template")), merging):
            cue = "assistant\n" if tokenizer.chat_template else "Answer:\n"
            rules = {cue: STUDENTS[ASKED], **{k: v for k, v in STUDENTS.items() if k != ASKED}}
            llm, _ = scripted_llm(rules, tokenizer=tokenizer)
            texts.add(llm.invoke(question).text)
        assert len(texts) == 1
        assert texts.pop().endswith("name: Ben")
