"""The first branch as the others' example: what they see, what it costs, and when it is none."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from pydantic import BaseModel

from langchain_pos import InvalidRequestError, ParallelReasoningLLM, ReasoningRequest
from langchain_pos.errors import NonFiniteLogitsError
from langchain_pos.local.decoding import LocalDecoding
from langchain_pos.reasoning import expanding, first_branch
from langchain_pos.reasoning.decoder import BranchTask, Outline, Written
from langchain_pos.reasoning.form import OpenedStep
from langchain_pos.reasoning.markdown_list import BOLD_NUMBERS, Head
from langchain_pos.reasoning.native_form import NATIVE as NATIVE_FORM
from langchain_pos.reasoning.progress import Progress
from langchain_pos.reasoning.question import Question
from langchain_pos.reasoning.reasoner import Reasoning
from langchain_pos.reasoning.settings import ReasoningSettings
from tests.support.native_list import ASKED, GOES_ON, LIST, NATIVE, UNWILLING
from tests.support.scripted import BARE, Script, random_llm, scripted_llm
from tests.support.tiny import tiny_engine

ANN = "1. **Ann**: is tall\n   - and old.\n\n"
"""The first entry of `LIST` as the others read it."""
TRUNK = f"Question: {ASKED}Some of them:\n\n"


def native_llm(
    rules: dict[str, str | list[str]], **fields: Any
) -> tuple[ParallelReasoningLLM, Script]:
    """A runnable that answers in native form, and its script."""
    return scripted_llm(rules, **{**NATIVE, **fields})


def seen_by(script: Script, opening: str) -> str:
    """What a branch saw when it began."""
    (begun,) = {f.seen for feeds in script.passes for f in feeds if f.text == opening}
    return begun


class TestBesideTheHeads:
    def test_the_others_see_it(self) -> None:
        """As the answer has it: the model goes on as it would after that entry."""
        llm, script = native_llm(LIST)
        result = llm.invoke("Who?")
        assert seen_by(script, "1. **Ann**:") == TRUNK
        assert seen_by(script, "2. **Ben**:") == TRUNK + ANN
        assert result.plan is not None
        assert result.plan.first_seen

    def test_it_costs_no_pass(self) -> None:
        """Where it is shorter than the heads; else those are waited for that it has more."""
        ahead, apart = (native_llm(LIST, visibility=v)[0] for v in ("auto", "isolated"))
        with_it, without = ahead.invoke("Who?"), apart.invoke("Who?")
        assert with_it.text == without.text
        assert without.forward_passes.plan < without.forward_passes.expand
        assert with_it.forward_passes.plan == without.forward_passes.expand  # Ann's entry
        assert with_it.forward_passes.expand < without.forward_passes.expand  # Ben's
        assert with_it.forward_passes.conclude == without.forward_passes.conclude
        long = {
            **LIST,
            "1. **Ann**: ...\n\n": "2. **Benedict the Sixteenth**: ...\n\n3. **Cem**: ...\n\nT",
        }
        long["1. **Ann**:"] = " old.\n\n2. **Ben**:"
        one, other = (
            native_llm(long, visibility=v, max_title_tokens=40)[0].invoke("Who?").forward_passes
            for v in ("auto", "isolated")
        )
        assert one == other
        assert with_it.usage == without.usage
        assert ahead.engine.slots_in_use == 0

    def test_each_token_counts_once(self) -> None:
        """Its tokens are its branch's, and none of the plan's."""
        llm, _ = native_llm(LIST)
        counter = UsageMetadataCallbackHandler()
        result = llm.invoke("Who?", {"callbacks": [counter]})
        (counted,) = counter.usage_metadata.values()
        assert counted["output_tokens"] == result.usage.output_tokens
        assert counted["input_tokens"] == result.usage.input_tokens

    def test_it_is_streamed_once_and_before_the_others(self) -> None:
        """As soon as there is a plan that it can be a branch of."""
        llm, _ = native_llm(LIST)
        chunks = [c for c in llm.stream("Who?") if c.branch is not None]
        first = "".join(c.delta for c in chunks if c.branch == 0)
        assert first == "is tall\n   - and old."
        assert [c.branch for c in chunks] == sorted(c.branch or 0 for c in chunks)

    @pytest.mark.parametrize("drafts", [False, True])
    @pytest.mark.parametrize("settings", [{}, {"max_tokens": 400}, {"max_parallel_branches": 1}])
    def test_a_long_one_goes_on_beside_the_others(
        self, settings: dict[str, Any], drafts: bool
    ) -> None:
        """It is written once, and is what it would have been; so are the others."""
        long = "and ".join("abcdefghijklmnopqrstuv")
        rules = {**LIST, "1. **Ann**:": f" {long}\n\n2. **Ben**:"}
        found = {}
        for visibility in ("auto", "isolated"):
            llm, script = native_llm(
                rules, visibility=visibility, max_branch_tokens=300, drafts=drafts, **settings
            )
            found[visibility] = result = llm.invoke("Who?")
            assert [branch.text for branch in result.branches] == [long, "is small."]
            assert seen_by(script, "2. **Ben**:") == TRUNK
            assert result.plan is not None
            assert not result.plan.first_seen
            assert llm.engine.slots_in_use == 0
        auto, isolated = found["auto"], found["isolated"]
        assert auto.usage == isolated.usage
        assert auto.branches[0].usage == isolated.branches[0].usage
        assert auto.text == isolated.text

    def test_a_small_budget_cuts_it_no_shorter(self) -> None:
        """What is written ahead is not written again, and takes nothing from the rest."""
        entry = " " + "y" * 90
        heads = [f"{place}. **{title}**:" for place, title in enumerate("abcdef", 1)]
        rules: dict[str, str | list[str]] = {ASKED: heads[0], **dict.fromkeys(heads, entry)}
        rules[f"{heads[0]} ...\n\n"] = "".join(f"{head} ...\n\n" for head in heads[1:])
        lengths = []
        for visibility in ("auto", "isolated"):
            llm, _ = native_llm(rules, visibility=visibility, max_tokens=400, max_branch_tokens=200)
            result = llm.invoke("Who?")
            assert result.mode == "parallel", result.fallback_reason
            assert result.usage.output_tokens <= 400
            lengths.append([branch.usage.output_tokens for branch in result.branches])
        assert min(lengths[0]) >= min(lengths[1]) - 2
        assert lengths[0][0] >= lengths[1][0]

    def test_a_skeleton_that_fails_ends_it(self) -> None:
        """Nobody waits for a branch whose answer is lost."""
        rules = {**LIST, "1. **Ann**: ...\n\n": f"2. **Ben**: ...\n\n3. **C{Script.NAN}"}
        rules["1. **Ann**:"] = " " + "y" * 200
        llm, script = native_llm(rules, max_branch_tokens=250)
        with pytest.raises(NonFiniteLogitsError):
            llm.invoke("Who?")
        assert len(script.passes) < 60
        assert llm.engine.slots_in_use == 0

    def test_its_run_is_told_as_it_was(self) -> None:
        """When it was written, and that the others have read it."""
        llm, _ = native_llm(LIST)
        collector = RunCollectorCallbackHandler()
        result = llm.invoke("Who?", {"callbacks": [collector]})
        (run,) = collector.traced_runs
        ann, ben = next(child for child in run.child_runs if child.name == "expand").child_runs
        assert ben.inputs["prompts"] == [f"Human: Who?\nAI: Some of them:\n{ANN}2. **Ben**:"]
        assert ann.inputs["prompts"] == ["Human: Who?\nAI: Some of them:\n1. **Ann**:"]
        first, second = result.branches
        assert 0 < first.started <= first.ended <= second.started
        assert result.timings.plan >= first.ended - first.started

    def test_a_long_one_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then it is a branch like the others, and all are written together."""
        for module in (expanding, first_branch):
            monkeypatch.setattr(module, "EXAMPLE", 8)
        llm, script = native_llm(LIST)
        result = llm.invoke("Who?")
        assert result.branches[0].text == "is tall\n   - and old."
        assert seen_by(script, "2. **Ben**:") == TRUNK
        assert result.plan is not None
        assert not result.plan.first_seen
        chosen, script = native_llm(LIST, visibility="first")
        assert chosen.invoke("Who?").text == result.text
        assert seen_by(script, "2. **Ben**:") == TRUNK + ANN

    @pytest.mark.parametrize("drafts", [False, True])
    @pytest.mark.parametrize("entries", [2, 3])
    def test_how_long_the_others_wait_depends_on_how_many_they_are(
        self, entries: int, drafts: bool
    ) -> None:
        """For an entry of 40 tokens, more than two are needed."""
        heads = {2: "2. **Ben**: ...\n\nT", 3: "2. **Ben**: ...\n\n3. **Cem**: ...\n\nT"}
        ann = "abcdefghijklmnopqrstuvwxyzabcdefghijklmn"
        rules = {**LIST, "1. **Ann**: ...\n\n": heads[entries], "3. **Cem**:": " is quick."}
        rules["1. **Ann**:"] = f" {ann}\n\n2. **Ben**:"
        llm, script = native_llm(rules, max_branch_tokens=100, drafts=drafts)
        result = llm.invoke("Who?")
        assert result.branches[0].text == ann
        assert result.plan is not None
        assert result.plan.first_seen is (entries == 3)
        shown = f"1. **Ann**: {ann}\n\n" if entries == 3 else ""
        assert seen_by(script, "2. **Ben**:") == TRUNK + shown

    def test_what_its_budget_has_cut_is_none(self) -> None:
        """Unless the caller will have it so."""
        for visibility, seen in (("auto", TRUNK), ("first", f"{TRUNK}1. **Ann**: is tall\n\n")):
            llm, script = native_llm(LIST, max_branch_tokens=6, visibility=visibility)
            result = llm.invoke("Who?")
            assert result.branches[0].finish_reason == "length"
            assert seen_by(script, "2. **Ben**:") == seen

    def test_where_no_plan_comes_of_it_it_ends_with_the_heads(self) -> None:
        """And the answer is the sequential one, in as many passes as without it."""
        texts, passes = set(), set()
        for visibility in ("auto", "isolated"):
            llm, _ = native_llm(UNWILLING, visibility=visibility)
            result = llm.invoke("Who?")
            assert not result.blocks
            texts.add(result.text)
            passes.add(result.forward_passes.total)
            assert llm.engine.slots_in_use == 0
        assert texts == {llm.invoke("Who?", mode="sequential").text}
        assert len(passes) == 1

    def test_a_list_that_goes_on_has_its_examples(self) -> None:
        """Its entries follow others that are whole: there is nothing to wait for."""
        llm, script = native_llm(GOES_ON)
        result = llm.invoke("Who?")
        assert [block.plan.first_seen for block in result.blocks] == [True, False]
        assert seen_by(script, "4. **Dan**:") == f"{TRUNK}{ANN}2. **Ben**: is small.\n\n"

    def test_a_small_budget_leaves_it_out(self) -> None:
        """Its tokens would be missing where five such entries do not fit."""
        llm, script = native_llm(LIST, max_branch_tokens=64, max_tokens=200)
        result = llm.invoke("Who?")
        assert result.mode == "parallel"
        assert seen_by(script, "2. **Ben**:") == TRUNK

    def test_objects_are_examples_too(self) -> None:
        """Whatever a branch is to be, the first one shows it."""

        class Note(BaseModel):
            tall: bool

        rules = {**LIST, "1. **Ann**:": '{"tall": true}', "2. **Ben**:": '{"tall": false}'}
        llm, script = native_llm({**rules, ASKED: "1. **Ann**:"}, branch_schema=Note)
        result = llm.invoke("Who?")
        assert [branch.parsed for branch in result.branches] == [Note(tall=True), Note(tall=False)]
        assert seen_by(script, "2. **Ben**:").endswith('1. **Ann**: {"tall": true}\n\n')


class TestBeforeTheOthers:
    """`visibility="first"`, in either form and with the caller's own steps."""

    STEPS = ("Ann", "Ben", "Cem")

    @pytest.mark.parametrize("outline", ["native", "paper"])
    def test_a_branch_is_what_the_model_writes_after_the_first_one(self, outline: str) -> None:
        """With random weights: the first as if alone, the others as after its text.

        So another second branch changes nothing in the third, and another first one does.
        """
        llm = random_llm(outline=outline, visibility="first")

        def texts(*steps: str) -> list[str]:
            result = llm.invoke({"question": "Who?", "steps": steps})
            assert result.plan is not None
            assert result.plan.first_seen
            return [branch.text for branch in result.branches]

        ann, ben, cem = texts(*self.STEPS)
        assert texts("Ann", "Dan", "Cem")[2] == cem
        assert texts("Dan", "Ben", "Cem")[2] != cem
        plan = llm.invoke({"question": "Who?", "steps": self.STEPS}).plan
        assert plan is not None
        form = NATIVE_FORM if outline == "native" else None
        opening = form.opening(plan, 1) if form else "####Ben:"
        before = "Question: Who?\n\nAnswer:\n" + plan.entry(0, ann) + plan.between
        alone = llm.invoke({"question": "Who?", "steps": ["Ben"]}, visibility="isolated")
        assert alone.branches[0].text != ben
        engine = llm.engine
        token_ids = [*engine.tokenizer(before)["input_ids"]]
        done = engine.generate(
            token_ids + engine.tokenizer(opening, add_special_tokens=False)["input_ids"],
            max_new_tokens=len(ben) + 24,
        )
        assert done.text.strip(" \t\n").startswith(ben)

    def test_one_step_has_nobody_to_show_anything(self) -> None:
        """It is written like any other."""
        llm = random_llm(visibility="first")
        result = llm.invoke({"question": "Who?", "steps": ["Ann"]})
        assert result.plan is not None
        assert not result.plan.first_seen
        assert len(result.branches) == 1

    def test_an_empty_one_is_not_seen(self) -> None:
        """The others are written all the same."""
        llm, script = native_llm({**LIST, "1. **Ann**:": ""}, visibility="first")
        result = llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]})
        assert [branch.text for branch in result.branches] == ["", "is small."]
        assert "Ann" not in seen_by(script, "2. **Ben**:")

    def test_the_first_is_as_long_as_it_may_be(self) -> None:
        """What is guessed before there is a plan is no bound."""
        rules = {**LIST, "1. **Ann**:": " " + "y" * 70 + "\n\n2. **Ben**:"}
        llm, script = native_llm(
            rules, visibility="first", max_tokens=300, max_branch_tokens=200, max_branches=2
        )
        ann, _ = llm.invoke("Who?").branches
        assert (ann.text, ann.finish_reason) == ("y" * 70, "stop")
        assert seen_by(script, "2. **Ben**:").endswith(f"**: {'y' * 70}\n\n")

    def test_one_that_failed_is_not_shown(self) -> None:
        """Half a text, or half an object, is no example."""
        llm, script = scripted_llm(
            {"####Ann:": f" is t{Script.NAN}", "####Ben:": " b"},
            visibility="first",
            outline="paper",
        )
        result = llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]})
        assert [branch.finish_reason for branch in result.branches] == ["error", "stop"]
        assert "is t" not in seen_by(script, "####Ben:")

    @pytest.mark.parametrize("fields", [{"join": "reuse"}, {"max_branch_thinking_tokens": 8}])
    def test_what_does_not_go_with_it_is_refused(self, fields: dict[str, Any]) -> None:
        """The message names what to change."""
        llm, _ = native_llm(LIST)
        with pytest.raises(InvalidRequestError, match="reprefill"):
            llm.invoke("Who?", visibility="first", **fields)

    def test_branches_that_are_joined_as_they_lie_are_isolated(self) -> None:
        """Unless something else is chosen, which is refused."""
        llm, script = native_llm(LIST, join="reuse")
        assert llm.invoke("Who?").mode == "parallel"
        assert seen_by(script, "2. **Ben**:") == TRUNK


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "qwen2 (sliding)", "lfm2", "qwen3_5", "mamba2"])
def test_heads_and_a_branch_side_by_side_are_each_alone(name: str, drafts: bool) -> None:
    """Also where layers carry states, and drafts are taken back."""
    engine = tiny_engine(name)
    settings = ReasoningSettings(
        outline="native", max_pressure=None, max_branch_tokens=24, drafts=drafts
    )
    progress = Progress(deltas=False)
    question = Question.of(ReasoningRequest(question="Who? " * 9), settings, progress, prompts=BARE)
    decoding = LocalDecoding(engine)
    reasoning = Reasoning(decoding, question, "")
    assert reasoning.budget is not None
    head = Head(BOLD_NUMBERS, "Ann", 0, 0)
    skeleton = NATIVE_FORM.skeleton(settings, "Who?", OpenedStep("Ann", 0, (head, ())))
    outline = Outline(skeleton, 24, 0.0, 1, lambda _: None)
    task = BranchTask("1. **Ann**:", 24, 0.0, 2, (), None, False, None, lambda _: None)
    found: list[Written] = []

    async def steps(pending: Any) -> Any:
        with progress.under_way(pending, reasoning.decoder):
            decoder = reasoning.decoder
            await decoder.start(pending)
            trunk = decoder.open(question.plan_messages())
            trunk.settle("Some of them:\n\n")
            await decoder.write_branches(
                trunk,
                "",
                [task],
                parallel=1,
                on_start=lambda _: None,
                on_end=lambda _, written: found.append(written),
            )
            alone = await decoder.write_outline(trunk, outline)
            trunk.keep(alone, 0)
            both = Outline(skeleton, 24, 0.0, 1, lambda _: None, None, task, found.append)
            found.extend([alone, await decoder.write_outline(trunk, both)])
            trunk.keep(found[-1], 0)
            return found

    decoding.submit(steps, budget=reasoning.budget, caller=None).wait()
    branch, *beside, alone, together = found
    assert together.token_ids == alone.token_ids
    if skeleton.is_plan(skeleton.begin + alone.text):
        assert [written.token_ids for written in beside] == [branch.token_ids]
    assert len(branch.token_ids) == 24
    assert engine.slots_in_use == 0
