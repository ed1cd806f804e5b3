"""The way of a question, with a model that follows a script."""

from __future__ import annotations

import pytest

from langchain_pos import ReasoningRequest
from langchain_pos.errors import ContextLengthError, InvalidRequestError
from langchain_pos.reasoning.paper_form import PAPER
from langchain_pos.reasoning.prompts import ReasoningPrompts
from langchain_pos.results.data import Plan
from tests.support.scripted import STUDENTS, Script, scripted_llm

PROMPT = "Question: Who?\n\nAnswer:\n"
JOINED = "####Ann: GPA 3.1, outside\n####Ben: GPA 2.4\n####%%%%\n"


def fed(script: Script) -> list[str]:
    """The text of every feed, pass by pass."""
    return [feed.text for feeds in script.passes for feed in feeds]


class TestThreeStages:
    def test_texts_of_all_stages_are_what_the_model_wrote(self) -> None:
        """Preamble, titles, bodies and conclusion arrive unchanged, in the paper's form."""
        llm, _ = scripted_llm(STUDENTS)
        result = llm.invoke("Who?")
        assert result.preamble == "Let us see."
        assert result.plan is not None
        assert result.plan.titles == ("Ann", "Ben")
        assert [(b.index, b.title, b.text) for b in result.branches] == [
            (0, "Ann", "GPA 3.1, outside"),
            (1, "Ben", "GPA 2.4"),
        ]
        assert result.conclusion == "name: Ben"
        assert result.text == "Let us see.\n" + JOINED + "name: Ben"
        assert (result.mode, result.finish_reason, result.error) == ("parallel", "stop", None)
        assert result.plan_attempts == 1
        assert result.question == "Who?"

    def test_a_branch_sees_prompt_and_preamble_and_itself_only(self) -> None:
        """Branches open where the block began; the skeleton is cut away before."""
        llm, script = scripted_llm(STUDENTS)
        llm.invoke("Who?")
        (opening,) = [f for feeds in script.passes for f in feeds if f.text == "####Ben:"]
        assert opening.seen == PROMPT + "Let us see.\n"
        last = [f for feeds in script.passes for f in feeds if f.segment is opening.segment][-1]
        assert last.seen + last.text == PROMPT + "Let us see.\n####Ben: GPA 2.4"

    def test_the_conclusion_sees_all_branches_joined(self) -> None:
        """Stage 3 stands on prompt, preamble and the joined text, and on nothing else."""
        llm, script = scripted_llm(STUDENTS)
        llm.invoke("Who?")
        last = script.passes[-1][0]
        assert last.seen + last.text == PROMPT + "Let us see.\n" + JOINED + "name: Ben"

    def test_nothing_of_the_prompt_is_fed_twice(self) -> None:
        """All rows are the prompt once, what was written, the openings, and the join."""
        llm, script = scripted_llm(STUDENTS)
        llm.invoke("Who?")
        texts = "".join(fed(script))
        skeleton = "Let us see.\n####Ann:......\n####Ben:......\n####"
        bodies = ["####Ann: GPA 3.1, outside", "####Ben: GPA 2.4"]
        conclusion = "name: Ben"
        assert len(texts) == len(PROMPT + skeleton + "".join(bodies) + JOINED + conclusion)
        assert texts.startswith(PROMPT + skeleton)
        assert texts.endswith(JOINED + conclusion)
        assert texts.count("Who?") == 1

    def test_forced_text_costs_no_pass(self) -> None:
        """`:......`, the line break and `####` ride along with the next token."""
        llm, script = scripted_llm(STUDENTS)
        result = llm.invoke("Who?")
        tokenize = llm.engine.tokenizer.encode
        free = len(tokenize("Let us see.\n")) + len(tokenize("####")) + 2 * len(tokenize("Ann"))
        assert result.forward_passes.plan == free + 3  # `:` of two titles, `%` of the end
        assert ":......\n####" in fed(script)

    def test_passes_of_stage_2_are_those_of_its_longest_branch(self) -> None:
        """Five branches of different lengths take as many passes as the longest alone."""
        bodies = [" a", " bb b b b b b b b", " cccc", " d d d", " e"]
        titles = ["T0", "T1", "T2", "T3", "T4"]
        rules = {f"####{t}:": b for t, b in zip(titles, bodies, strict=True)}
        llm, _ = scripted_llm({**rules, "####%%%%\n": "done"})
        alone = [
            llm.invoke({"question": "Who?", "steps": [title]}).forward_passes.expand
            for title in titles
        ]
        together = llm.invoke({"question": "Who?", "steps": titles})
        assert together.forward_passes.expand == max(alone)
        assert len(set(alone)) > 2
        assert [b.text for b in together.branches] == [b.strip() for b in bodies]

    def test_usage_counts_prompt_and_all_that_was_written(self) -> None:
        """Input is the prompt; output is skeleton, bodies and conclusion, thrown-away ones too."""
        llm, _ = scripted_llm(STUDENTS)
        result = llm.invoke("Who?")
        tokenize = llm.engine.tokenizer.encode
        assert result.usage.input_tokens == len(tokenize(PROMPT))
        bodies = sum(branch.usage.output_tokens for branch in result.branches)
        assert bodies == len(tokenize(" GPA 3.1, outside")) + len(tokenize(" GPA 2.4"))
        assert [b.usage.input_tokens for b in result.branches] == [len(tokenize("####Ann:"))] * 2
        assert result.usage.output_tokens > bodies + len(tokenize("name: Ben"))

    def test_timings_and_peak_are_filled_in(self) -> None:
        """Seconds by stage are positive, branches lie inside them, slots were held."""
        llm, _ = scripted_llm(STUDENTS)
        result = llm.invoke("Who?")
        assert min(result.timings.plan, result.timings.expand, result.timings.conclude) > 0
        for branch in result.branches:
            assert 0 < branch.started < branch.ended <= result.timings.total
        longest = len(llm.engine.tokenizer.encode(PROMPT + JOINED))
        assert result.peak_slots >= longest
        assert llm.engine.slots_in_use == 0


class TestGivenSteps:
    def test_given_steps_skip_stage_1(self) -> None:
        """No pass is spent on a plan, and the titles are the caller's."""
        llm, script = scripted_llm(STUDENTS)
        result = llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]})
        assert result.forward_passes.plan == 0
        assert result.plan_attempts == 0
        assert [b.text for b in result.branches] == ["GPA 3.1, outside", "GPA 2.4"]
        assert result.preamble == ""
        assert [feed.text for feed in script.passes[0]] == [PROMPT, "####Ann:", "####Ben:"]

    def test_one_given_step_is_one_branch(self) -> None:
        """A caller may ask for a single step; the model may not."""
        llm, _ = scripted_llm(STUDENTS)
        result = llm.invoke(ReasoningRequest(question="Who?", steps=("Ann",)))
        assert result.mode == "parallel"
        assert [b.title for b in result.branches] == ["Ann"]

    @pytest.mark.parametrize(
        ("steps", "said"),
        [
            ([], "0 steps are given; allowed are 1 to 8"),
            ([f"step {i}" for i in range(9)], "9 steps are given; allowed are 1 to 8"),
            (["Ann", " ann "], "two steps have the same title: 'ann'"),
            (["Ann", "  "], "empty"),
            (["Ann", "a####b"], "contains '####'"),
        ],
    )
    def test_unusable_steps_are_refused_before_any_work(self, steps: list[str], said: str) -> None:
        """The error says which step and why; not one pass has run."""
        llm, script = scripted_llm(STUDENTS)
        with pytest.raises(InvalidRequestError, match=said.replace("(", r"\(")):
            llm.invoke({"question": "Who?", "steps": steps})
        assert script.passes == []

    def test_steps_that_do_not_fit_are_refused_before_any_work(self) -> None:
        """Forty given steps in 300 positions: the numbers, and no pass."""
        llm, script = scripted_llm(STUDENTS, positions=300, max_branches=64)
        with pytest.raises(ContextLengthError, match="40 steps do not fit: 279 tokens are left"):
            llm.invoke({"question": "Who?", "steps": [f"step number {i}" for i in range(40)]})
        assert script.passes == []
        assert llm.engine.slots_in_use == 0

    def test_sequential_mode_pays_no_heed_to_steps(self) -> None:
        """`mode="sequential"` is the ordinary answer, whatever else is given."""
        llm, _ = scripted_llm({"Answer:\n": "Ben"})
        result = llm.invoke({"question": "Who?", "steps": ["Ann", "Ann"]}, mode="sequential")
        assert (result.mode, result.conclusion, result.blocks) == ("sequential", "Ben", ())
        assert result.fallback_reason is None


class TestVisibility:
    def test_with_titles_a_branch_sees_the_outline_too(self) -> None:
        """The outline is fed once, behind the trunk, and is gone before the conclusion."""
        llm, script = scripted_llm(STUDENTS, visibility="titles")
        result = llm.invoke("Who?")
        outline = "####Ann:......\n####Ben:......\n####%%%%\n"
        opening = next(f for feeds in script.passes for f in feeds if f.text == "####Ben:")
        assert opening.seen == PROMPT + "Let us see.\n" + outline
        assert fed(script).count(outline) == 1
        assert "......" not in script.passes[-1][0].seen
        assert result.text == "Let us see.\n" + JOINED + "name: Ben"


class TestRefill:
    def test_waiting_steps_take_the_place_of_finished_ones(self) -> None:
        """At most two branches are in a pass, and one that ends is replaced in the next."""
        titles = [f"T{i}" for i in range(5)]
        rules = {f"####{t}:": " x" * (i + 1) for i, t in enumerate(titles)}
        llm, script = scripted_llm({**rules, "####%%%%\n": "done"}, max_parallel_branches=2)
        result = llm.invoke({"question": "Who?", "steps": titles})
        assert [b.text for b in result.branches] == [("x " * (i + 1)).strip() for i in range(5)]
        sizes = [sum(feed.text != PROMPT for feed in feeds) for feeds in script.passes]
        expand = sizes[: result.forward_passes.expand]
        assert max(expand) == 2
        assert expand.index(1) > len(expand) - 8  # alone only when nobody waits any more
        starts = [b.started for b in result.branches]
        assert starts[2] >= min(b.ended for b in result.branches[:2])

    def test_branches_that_wait_hold_no_slots(self) -> None:
        """Many steps one after another never hold more slots than one branch and the join."""
        titles = [f"T{i}" for i in range(6)]
        rules = {f"####{t}:": " x x x x" for t in titles}
        llm, _ = scripted_llm({**rules, "####%%%%\n": "done"}, max_parallel_branches=1)
        one = llm.invoke({"question": "Who?", "steps": titles})
        many = llm.invoke({"question": "Who?", "steps": titles}, max_parallel_branches=6)
        tokenize = llm.engine.tokenizer.encode
        joined = PROMPT + PAPER.join(Plan.of(titles), ["x x x x"] * len(titles)) + "done"
        assert one.peak_slots <= len(tokenize(joined))
        assert many.peak_slots >= one.peak_slots
        assert one.text == many.text


class TestSequentialMode:
    def test_the_ordinary_answer_is_one_sequence(self) -> None:
        """No plan, no branches: prompt in, text out, all of it stage 3."""
        prompts = ReasoningPrompts(
            plan="P {question}", sequential="Q: {question}", retry="P {question}"
        )
        llm, script = scripted_llm({"Q: Who?\n\nAnswer:\n": " Ben it is. "}, prompts=prompts)
        result = llm.invoke("Who?", mode="sequential")
        assert result.conclusion == result.text == "Ben it is."
        assert (result.forward_passes.plan, result.forward_passes.expand) == (0, 0)
        assert result.forward_passes.conclude == len(script.passes)
        assert fed(script)[0] == "Question: Q: Who?\n\nAnswer:\n"

    def test_an_empty_ordinary_answer_says_so(self) -> None:
        """EOS at once is an error with a reason, not an empty answer."""
        llm, _ = scripted_llm({"Answer:\n": ""})
        result = llm.invoke("Who?", mode="sequential")
        assert result.finish_reason == "error"
        assert result.error == "the model ended (stop) without any text"

    def test_delimiters_are_text_in_the_ordinary_answer(self) -> None:
        """`####` opens nothing when the caller wants the ordinary way."""
        llm, _ = scripted_llm({"Answer:\n": "a\n####b: c\n####%%%%\nd"})
        result = llm.invoke("Who?", mode="sequential")
        assert result.conclusion == "a\n####b: c\n####%%%%\nd"
        assert result.blocks == ()
