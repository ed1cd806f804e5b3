"""Answers that turn out to be lists: written in parallel in the model's own marks."""

from __future__ import annotations

import re
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.errors import PlanFormatError
from langchain_pos.reasoning.native_form import NATIVE as NATIVE_FORM
from tests.support.native_list import (
    ASKED,
    BULLETS,
    EMPTY,
    GOES_ON,
    LIST,
    TIGHT,
    UNWILLING,
    WRITTEN,
    begun,
    native_llm,
)
from tests.support.scripted import TOKENIZERS, random_llm, without_clocks


class TestAList:
    def test_its_entries_are_branches_and_the_answer_is_the_sequential_one(self) -> None:
        """Lead-in, entries and what follows stand where sequential decoding writes them."""
        llm, _ = native_llm(LIST)
        result = llm.invoke("Who?")
        assert result.mode == "parallel", result.fallback_reason
        assert [(b.title, b.text) for b in result.branches] == [
            ("Ann", "is tall\n   - and old."),
            ("Ben", "is small."),
        ]
        assert (result.preamble, result.conclusion) == ("Some of them:", "That is all.")
        assert result.text == WRITTEN == llm.invoke("Who?", mode="sequential").conclusion
        assert result.plan is not None
        assert result.plan.heads == ("1. **Ann**:", "2. **Ben**:")
        assert result.plan.pressure == pytest.approx(0, abs=1e-3)

    def test_a_branch_sees_the_question_the_lead_in_and_itself(self) -> None:
        """The skeleton is cut away; nothing is said to the model but the question."""
        llm, script = native_llm(LIST, visibility="isolated")
        llm.invoke("Who?")
        (ben,) = [f for feeds in script.passes for f in feeds if f.text == "2. **Ben**:"]
        assert ben.seen == f"Question: {ASKED}Some of them:\n\n"
        assert all("..." not in f.seen for f in script.passes[-1])

    async def test_the_sum_of_a_stream_is_what_invoke_returns(self) -> None:
        """Sync and async; and no piece of the first head is passed on as text."""
        llm, _ = native_llm(LIST)
        expected = without_clocks(llm.invoke("Who?"))
        chunks = list(llm.stream("Who?"))
        assert without_clocks(reduce(add, chunks).result()) == expected
        lead = "".join(c.conclusion for c in chunks if not c.blocks and c.stage == "conclude")
        assert lead.startswith("Some of them:")
        assert "**" not in lead.removesuffix("That is all.")
        achunks = [chunk async for chunk in llm.astream("Who?")]
        assert without_clocks(reduce(add, achunks).result()) == expected

    def test_an_answer_that_ends_with_its_list_needs_no_conclusion(self) -> None:
        """For "compare X and Y" the branches are the answer."""
        rules = {**LIST, "2. **Ben**:": " is small.", "is small.": ""}
        llm, _ = native_llm(rules)
        result = llm.invoke("Who?")
        assert (result.mode, result.conclusion, result.error) == ("parallel", "", None)
        assert result.text == WRITTEN.removesuffix("\n\nThat is all.")

    @pytest.mark.parametrize("gap", [" ", "\n", "\n   "])
    @pytest.mark.parametrize("visibility", ["first", "isolated", "titles"])
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            *(("1. **", "**:"), ("1. **", "**\n"), ("1. ", ":"), ("1) **", ":**")),
            *(("- **", "**:"), ("- **", "**\n"), ("* ", ":")),
            *(("### ", "\n"), ("## 1. ", "\n"), ("**", "**\n"), ("**", ":**\n")),
        ],
    )
    def test_a_body_stands_where_the_model_puts_it(
        self, before: str, after: str, gap: str, visibility: Any
    ) -> None:
        """Beside its title or below it; there, a list's depth are the spaces before it."""

        def head(place: int, title: str) -> str:
            return before.replace("1", str(place)) + title + after

        below = after.endswith("\n")
        ann, ben = (f"{gap.removeprefix(chr(10)) if below else gap}- {x}\n   - old" for x in "xy")
        elided = "...\n\n" if below else " ...\n\n"
        rules = {
            ASKED: f"Some of them:\n\n{head(1, 'Ann')}",
            head(1, "Ann"): f"{ann}\n\n{head(2, 'Ben')}",
            head(2, "Ben"): f"{ben}\n\nThat is all.",
            head(1, "Ann") + elided: f"{head(2, 'Ben')}{elided}T",
            ben: "\n\nThat is all.",
        }
        llm, _ = native_llm(rules, visibility=visibility, max_branch_tokens=64)
        result = llm.invoke("Who?")
        assert [branch.title for branch in result.branches] == ["Ann", "Ben"]
        assert result.text == llm.invoke("Who?", mode="sequential").text

    def test_it_ends_where_a_title_repeats(self) -> None:
        """What the model lists twice is written once."""
        rules = {**LIST, "1. **Ann**: ...\n\n": "2. **Ben**: ...\n\n3. **ann**: ...\n\n4. **Cem"}
        llm, _ = native_llm(rules)
        assert [b.title for b in llm.invoke("Who?").branches] == ["Ann", "Ben"]

    def test_titles_that_differ_in_marks_alone_are_different(self) -> None:
        """C, C++ and C# are three languages."""
        text = "1. **C**: ...\n\n2. **C++**: ...\n\n3. **C#**: ...\n\n4. **c**: ...\n\n"
        plan = begun("1. **C**: ...").read(text)
        assert plan is not None
        assert plan.titles == ("C", "C++", "C#")

    def test_a_title_with_the_papers_mark_in_it_is_none(self) -> None:
        """A step's title may not hold it: the answer goes on, and does not fail."""
        assert NATIVE_FORM.opened("1. **a ####b**: c") is None
        with pytest.raises(PlanFormatError, match="not the title"):
            begun("1. **Ann**: ...").read("1. **Ann**: ...\n\n2. **a ####b**: ...\n\n")

    def test_a_title_may_have_dots_in_it(self) -> None:
        """They are no body that is left out."""
        rules = {**LIST, "1. **Ann**: ...\n\n": "2. **Wait...and**: ...\n\n3. **Cem**: ...\n\nT"}
        rules |= {"2. **Wait...and**:": " see.", "3. **Cem**:": " is slow.", "is slow.": ""}
        llm, _ = native_llm(rules, max_title_tokens=48)
        assert [b.title for b in llm.invoke("Who?").branches] == ["Ann", "Wait...and", "Cem"]

    @pytest.mark.parametrize("most", [2, 3])
    def test_its_end_is_nobodys_choice_where_no_more_entries_are_allowed(self, most: int) -> None:
        """What the model would have listed after `max_branches` does not count against it."""
        heads = "2. **Ben**: ...\n\n3. **Cem**: ...\n\n4. **Dan**: ...\n\nT"
        rules = {**LIST, "1. **Ann**: ...\n\n": heads}
        llm, _ = native_llm(rules, max_branches=most)
        plan = llm.invoke("Who?").plan
        assert plan is not None
        assert len(plan.steps) == most
        assert plan.pressure == pytest.approx(0, abs=1e-3)

    def test_a_title_that_is_one_of_many_is_no_pressure(self) -> None:
        """The model is undecided about letters, and sure of the marks."""
        llm, _ = native_llm(LIST)
        tokenizer, run = llm.engine.tokenizer, llm.engine.forward.run
        letters = tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))

        def undecided(*args: Any) -> Any:
            logits = run(*args)
            for row in logits:
                if str(tokenizer.decode([int(row.argmax())])).strip().isalpha():
                    row[letters] = row[letters].clamp_min(float(row.max()) - 0.01)
            return logits

        llm.engine.forward.run = undecided  # type: ignore[method-assign]
        result = llm.invoke("Who?")
        assert result.plan is not None, result.fallback_reason
        assert result.plan.titles == ("Ann", "Ben")
        assert result.plan.pressure == pytest.approx(0, abs=1e-3)

    @pytest.mark.parametrize(
        ("first", "second", "after"),
        [
            ("- **Ann**:", "- **Ben**:", ""),
            ("* **Ann:**", "* **Ben:**", ""),
            ("1) Ann:", "2) Ben:", ""),
            ("### Ann\n", "### Ben\n", "\n\n## All"),
            ("**Ann**\n", "**Ben**\n", ""),
        ],
    )
    def test_it_keeps_the_marks_that_the_model_begins_with(
        self, first: str, second: str, after: str
    ) -> None:
        """Numbers, bullets, headings, bold lines."""
        gap = "" if first.endswith("\n") else " "
        rules: dict[str, str | list[str]] = {
            ASKED: f"Some:\n\n{first}",
            first: f"{gap}is tall.\n\n{second}",
            second: f"{gap}is small.{after}",
            f"{first}{gap}...\n\n": f"{second}{gap}...\n\n",
        }
        llm, _ = native_llm(rules)
        result = llm.invoke("Who?")
        assert [(b.title, b.text) for b in result.branches] == [
            ("Ann", "is tall."),
            ("Ben", "is small."),
        ], result.fallback_reason
        assert result.plan is not None
        assert result.plan.heads == (first, second)


class TestAsText:
    @pytest.mark.parametrize("rules", [LIST, GOES_ON, TIGHT, BULLETS, UNWILLING, EMPTY])
    async def test_a_parser_gets_the_whole_answer(self, rules: dict[str, str | list[str]]) -> None:
        """With the marks of its lists, at once and streamed."""
        llm, _ = native_llm(rules)
        result = llm.invoke("Who?")
        chain = llm | StrOutputParser()
        assert str(result) == result.text == chain.invoke("Who?")
        assert "".join(chain.stream("Who?")) == result.text
        assert "".join([piece async for piece in chain.astream("Who?")]) == result.text


class TestDeclined:
    def same_as_sequentially(self, llm: ParallelReasoningLLM, **settings: Any) -> ReasoningResult:
        """Ask in both ways; the answers are equal."""
        result = llm.invoke("Who?", **settings)
        plain = llm.invoke("Who?", mode="sequential", **settings)
        assert (result.mode, result.conclusion) == ("sequential", plain.conclusion)
        assert result.finish_reason == plain.finish_reason
        return result

    def test_no_list_costs_nothing(self) -> None:
        """The same tokens, the same passes, one prefill."""
        llm, script = native_llm({ASKED: "Ben, I think."})
        result = self.same_as_sequentially(llm)
        assert "no list" in str(result.fallback_reason)
        half = len(script.passes) // 2
        assert [f.text for p in script.passes[:half] for f in p] == [
            f.text for p in script.passes[half:] for f in p
        ]

    def test_without_branches_there_are_no_objects(self) -> None:
        """A schema for branches is not ignored in silence."""
        llm, _ = native_llm({ASKED: "Ben, I think."})
        schema = {"type": "object", "properties": {"tall": {"type": "boolean"}}}
        reason = str(llm.invoke("Who?", branch_schema=schema).fallback_reason)
        assert "no branches to hold objects of branch_schema: give the steps" in reason

    def test_a_small_budget_is_named(self) -> None:
        """Where a list begins and there is no room to write it in parallel."""
        llm, _ = native_llm(LIST)
        reason = str(llm.invoke("Who?", max_tokens=40).fallback_reason)
        assert "a list began" in reason
        assert "raise max_tokens" in reason

    def test_pressure_drops_the_skeleton(self) -> None:
        """Decoding resumes where the list began, and the result says why, with the figure."""
        llm, _ = native_llm(UNWILLING)
        result = self.same_as_sequentially(llm)
        assert re.search(r"pressure \d+\.\d\d nats a token", str(result.fallback_reason))
        assert result.conclusion == WRITTEN

    def test_a_streamed_answer_that_is_declined_adds_up(self) -> None:
        """What was held back while the list was tried is passed on once."""
        llm, _ = native_llm(UNWILLING)
        chunks = list(llm.stream("Who?"))
        assert "".join(c.delta for c in chunks if c.stage == "conclude") == WRITTEN
        assert reduce(add, chunks).conclusion == WRITTEN

    @pytest.mark.parametrize("title", ["Step 1", "Introduction", "Title"])
    def test_a_first_head_that_is_of_no_use_costs_nothing(self, title: str) -> None:
        """Procedures and parts of one text are written one after the other, in as many passes."""
        rules: dict[str, str | list[str]] = {
            ASKED: f"### {title}\n",
            f"### {title}\n": "Do.\n\n### Ben\n",
            f"### {title}\n...\n\n": "### Ben\n...\n\n",
            "### Ben\n": "Do on.",
        }
        llm, script = native_llm(rules)
        assert "no list" in str(self.same_as_sequentially(llm).fallback_reason)
        half = len(script.passes) // 2
        assert [f.text for p in script.passes[:half] for f in p] == [
            f.text for p in script.passes[half:] for f in p
        ]

    @pytest.mark.parametrize(
        ("lead", "procedure"),
        [
            ("To open it, you can follow these steps:", True),
            ("Here are the main steps:", True),
            ("Here is the step-by-step process:", True),
            ("Gehen Sie folgende Schritte:", True),
            ("请按照以下步骤操作：", True),
            ("Use these simple, easy steps:", True),
            ("Voici les étapes :", True),
            ("Sigue los pasos:", True),
            ("The following are some steps you can take:", False),
            ("Some of the steps you can take:", False),
            ("以下是一些步骤：", False),
            ("Here are some steps you can take:", False),
            ("It takes several steps. Here are some tips:", False),
            ("Sie können folgende Fortschritte erwarten:", False),
            ("Follow these steps.\n\nHere are some tips:", False),
        ],
    )
    def test_a_procedure_opens_nothing(self, lead: str, procedure: bool) -> None:
        """Each of its steps needs those before; the line before the list says so."""
        text = f"{lead}\n\n1. **Ann**: is tall\n   - **old**: yes\n\n2. **Ben**:"
        assert (NATIVE_FORM.opened(text) is None) is procedure

    @pytest.mark.parametrize("head", ["### Step-by-step guide\n", "**Follow these steps:**\n"])
    def test_nor_does_a_head_that_leads_in_to_one(self, head: str) -> None:
        """It is no entry of a list, but stands above it."""
        assert NATIVE_FORM.opened(f"To open it:\n\n{head}\n1. **Ann**: is tall") is None

    def test_a_procedure_is_written_in_as_many_passes(self) -> None:
        """Nothing is tried that would be taken back."""
        lead = "To do it, follow these steps:\n\n"
        llm, script = native_llm({ASKED: f"{lead}1. **Ann**: Do.\n\n2. **Ben**: Go."})
        assert "no list" in str(self.same_as_sequentially(llm).fallback_reason)
        half = len(script.passes) // 2
        assert [f.text for p in script.passes[:half] for f in p] == [
            f.text for p in script.passes[half:] for f in p
        ]

    @pytest.mark.parametrize(
        ("title", "reason"), [("Step 2", "build on one another"), ("Step", "not the title of an")]
    )
    def test_an_outline_ends_where_it_is_of_no_use(self, title: str, reason: str) -> None:
        """The head that shows it is the last that is written."""
        rules: dict[str, str | list[str]] = {
            ASKED: "- **Ann**:",
            "- **Ann**:": f" Do.\n\n- **{title}**: Do on.",
            "- **Ann**: ...\n\n": f"- **{title}**: ...\n\n- **Cem**: ...\n\n- **Dan**: ...\n\n",
        }
        llm, script = native_llm(rules)
        assert reason in str(self.same_as_sequentially(llm).fallback_reason)
        fed = "".join(f.text for p in script.passes for f in p)
        assert title in fed
        assert "Cem" not in fed

    @pytest.mark.parametrize(
        ("first", "second", "only"),
        [
            ("Challenge 1", "Challenge 2", True),
            ("Option #1", "option #2", True),
            ("Echo-Craft", "Echo-Craft-1", True),
            ("Level 0", "Level 1", True),
            ("World War", "World War 2", True),
            ("1st Level", "2nd Level", True),
            ("First Level", "Second Level", True),
            ("First Aid", "Second Opinion", False),
            ("World Cup 2014", "World Cup 2018", False),
            ("Python 2", "Python 3", False),
            ("Area 51", "Area 52", False),
        ],
    )
    def test_titles_that_only_count_are_none(self, first: str, second: str, only: bool) -> None:
        """A branch that knows its place alone would say what all say."""
        text = f"1. **{first}**: ...\n\n2. **{second}**: ...\n\n"
        skeleton = begun(f"1. **{first}**: ...")
        if only:
            with pytest.raises(PlanFormatError, match="only count"):
                skeleton.read(text)
        else:
            assert skeleton.read(text) is not None

    @pytest.mark.parametrize(
        ("titles", "only"),
        [
            (["Warm-up", "First Level", "Second Level"], True),
            (["Ann", "Ben", "Week 3", "Week 4"], True),
            (["Ann", "Ben", "Week 2", "Week 3"], True),
            (["Ann", "Ben", "Python 2", "Python 3"], True),
            (["Ann", "Python 2", "Python 3"], True),
            (["Ann", "World Cup 2014", "World Cup 2018"], False),
            (["Ann", "Area 51", "Area 52"], False),
        ],
    )
    def test_nor_where_they_begin_to(self, titles: list[str], only: bool) -> None:
        """A list that counts from somewhere on is none, either; nor is one that seems to."""
        entries = [f"{place}. **{title}**: ..." for place, title in enumerate(titles, 1)]
        skeleton = begun(entries[0])
        if only:
            with pytest.raises(PlanFormatError, match="only count"):
                skeleton.read("\n\n".join(entries) + "\n\n")
        else:
            assert skeleton.read("\n\n".join(entries) + "\n\n") is not None

    @pytest.mark.parametrize("tokenizer", TOKENIZERS)
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_random_weights_answer_as_they_do_sequentially(
        self, tokenizer: str, temperature: float
    ) -> None:
        """Also sampled: a text that is resumed draws the numbers that it would have drawn."""
        llm = random_llm(TOKENIZERS[tokenizer](), outline="native", max_pressure=0.2)
        for seed in range(3):
            self.same_as_sequentially(llm, temperature=temperature, seed=seed)


def test_given_steps_are_entries_of_a_numbered_list() -> None:
    """They are never declined; the model writes on after each head."""
    llm, _ = native_llm(UNWILLING)
    result = llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]})
    assert result.mode == "parallel"
    assert [b.text for b in result.branches] == ["is tall\n   - and old.", "is small."]
    assert result.text == WRITTEN.removeprefix("Some of them:\n\n")


def test_a_list_may_be_asked_for() -> None:
    """One sentence more, in the question's language."""
    prompts = {"plan": "{question}", "sequential": "{question}", "retry": "{question}"}
    from langchain_pos import ReasoningPrompts

    llm, script = native_llm(
        {"in turn.\n\nAnswer:\n": "Ben"},
        outline="ask",
        prompts=ReasoningPrompts(**prompts, ask="{question} All in turn."),
    )
    assert llm.invoke("Who?").conclusion == "Ben"
    assert script.passes[0][0].text == "Question: Who? All in turn.\n\nAnswer:\n"


@pytest.mark.parametrize("join", ["reprefill", "reuse"])
def test_where_a_conclusion_is_asked_for_the_model_may_not_end_with_the_list(join: str) -> None:
    """With the caller's steps, and where a sentence asks for a list and a conclusion."""
    llm, _ = native_llm({**LIST, "is small.": ""}, max_conclusion_tokens=9, join=join)
    assert llm.invoke("Who?").conclusion == ""
    for asked in ({"outline": "ask"}, {}):
        question = "Who?" if asked else {"question": "Who?", "steps": ["Ann", "Ben"]}
        result = llm.invoke(question, **asked)
        assert [b.text for b in result.branches] == ["is tall\n   - and old.", "is small."]
        assert result.conclusion.isalpha()  # the script writes letters where it may not end
        assert f"is small.\n\n{result.conclusion}" in result.text


def test_the_form_is_native_unless_the_model_brings_prompts() -> None:
    """`outline="auto"`: the paper's form is for models that are trained for it."""
    llm, _ = native_llm(LIST, outline="auto", prompts=None)
    result = llm.invoke("Who?")
    assert result.plan is not None
    assert result.plan.form == "native"
    assert random_llm().invoke("Who?").plan.form == "paper"  # type: ignore[union-attr]


def test_after_a_list_comes_a_new_paragraph_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model would have written on in the last entry's line is not taken for more text."""
    body = "is small. And so is Cem."
    rules = {**LIST, "2. **Ben**:": f" {body}\n\nThat is all."}
    del rules["is small."]
    llm, _ = native_llm(rules, max_branch_tokens=10, max_conclusion_tokens=40)  # cuts the body
    result = llm.invoke("Who?")
    rest = body.removeprefix(result.branches[-1].text).strip()
    assert rest != body
    assert rest
    assert not result.conclusion.startswith(rest[:3])
    monkeypatch.setattr("langchain_pos.local.own_text._NEW_LINE", "root ::= {lead} [^\\0]*")
    assert llm.invoke("Who?").conclusion.startswith(rest[:3])
    monkeypatch.undo()
    llm, _ = native_llm({**LIST, "2. **Ben**:": " is small.", "is small.": ""})
    assert llm.invoke("Who?").conclusion == ""
