"""Answers that turn out to be lists: written in parallel in the model's own marks."""

from __future__ import annotations

import re
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.engine import Constraint
from langchain_pos.engine.constraints.compiler import ConstraintCompiler
from langchain_pos.errors import PlanFormatError
from langchain_pos.reasoning.native_form import NATIVE as NATIVE_FORM
from langchain_pos.reasoning.native_form import NativeSkeleton
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.data import Step
from tests.support.native_list import (
    ASKED,
    BULLETS,
    EMPTY,
    GOES_ON,
    LIST,
    NATIVE,
    TIGHT,
    UNWILLING,
    WRITTEN,
)
from tests.support.scripted import TOKENIZERS, Script, random_llm, scripted_llm, without_clocks
from tests.support.tokenizers import byte_level


def native_llm(
    rules: dict[str, str | list[str]], **fields: Any
) -> tuple[ParallelReasoningLLM, Script]:
    """A runnable that answers in native form, and its script."""
    return scripted_llm(rules, **{**NATIVE, **fields})


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

    def test_it_ends_where_a_title_repeats(self) -> None:
        """What the model lists twice is written once."""
        rules = {**LIST, "1. **Ann**: ...\n\n": "2. **Ben**: ...\n\n3. **ann**: ...\n\n4. **Cem"}
        llm, _ = native_llm(rules)
        assert [b.title for b in llm.invoke("Who?").branches] == ["Ann", "Ben"]

    def test_titles_that_differ_in_marks_alone_are_different(self) -> None:
        """C, C++ and C# are three languages."""
        text = "1. **C**: ...\n\n2. **C++**: ...\n\n3. **C#**: ...\n\n4. **c**: ...\n\n"
        plan = _skeleton("1. **C**: ...").read(text)
        assert plan is not None
        assert plan.titles == ("C", "C++", "C#")

    def test_a_title_with_the_papers_mark_in_it_is_none(self) -> None:
        """A step's title may not hold it: the answer goes on, and does not fail."""
        assert NATIVE_FORM.opened("1. **a ####b**: c") is None
        with pytest.raises(PlanFormatError, match="not the title"):
            _skeleton("1. **Ann**: ...").read("1. **Ann**: ...\n\n2. **a ####b**: ...\n\n")

    def test_it_may_go_on_after_its_entries(self) -> None:
        """The model sees the bodies, and lists on: a further block, which goes on counting."""
        llm, script = native_llm(GOES_ON)
        result = llm.invoke("Who?")
        assert [[(b.title, b.text) for b in block.branches] for block in result.blocks] == [
            [("Ann", "is tall\n   - and old."), ("Ben", "is small.")],
            [("Cem", "is quick."), ("Dan", "is slow.")],
        ]
        assert result.blocks[1].plan.heads == ("3. **Cem**:", "4. **Dan**:")
        assert result.text == llm.invoke("Who?", mode="sequential").conclusion
        assert result.text.endswith("3. **Cem**: is quick.\n\n4. **Dan**: is slow.\n\nThat is all.")
        opened = [f.text for feeds in script.passes for f in feeds if f.text == "4. **Dan**:"]
        assert len(opened) == 1

    @pytest.mark.parametrize("join", ["reprefill", "reuse"])
    def test_its_further_heads_are_written_where_it_began(self, join: str) -> None:
        """After bodies that are whole, the ellipsis would put the model off. Nothing is left."""
        llm, script = native_llm(GOES_ON, join=join)
        llm.invoke("Who?")
        heads = [f"{n}. **{t}**: ...\n\n" for n, t in enumerate(("Ann", "Ben", "Cem"), 1)]
        (further,) = [f for p in script.passes for f in p if f.text.endswith(heads[2])]
        assert further.text == "".join(heads)
        assert further.seen == f"Question: {ASKED}Some of them:\n\n"
        (dan,) = [f for p in script.passes for f in p if f.text == "4. **Dan**:"]
        assert "..." not in dan.seen
        assert "is tall" in dan.seen
        assert llm.engine.slots_in_use == 0

    @pytest.mark.parametrize("join", ["reprefill", "reuse"])
    def test_without_empty_lines(self, join: str) -> None:
        """Right under the line before it, as the model has begun it; also where it goes on."""
        llm, script = native_llm(TIGHT, join=join)
        result = llm.invoke("Who?")
        assert [block.plan.gap for block in result.blocks] == ["\n", "\n"]
        assert [block.plan.titles for block in result.blocks] == [("Ann", "Ben"), ("Cem", "Dan")]
        assert result.text == llm.invoke("Who?", mode="sequential").conclusion
        assert result.text.startswith(
            "Some of them:\n1. **Ann**: is tall\n   - and old.\n2. **Ben**"
        )
        assert "is small.\n3. **Cem**: is quick.\n4. **Dan**: is slow.\n\nThat" in result.text
        heads = "1. **Ann**: ...\n\n2. **Ben**: ...\n\n3. **Cem**: ...\n\n"
        assert any(feed.text == heads for feeds in script.passes for feed in feeds)

    def test_bullets_without_empty_lines(self) -> None:
        """They go on without a number to tell, and without empty lines all the same."""
        llm, script = native_llm(BULLETS)
        result = llm.invoke("Who?")
        heads = "- **Ann**: ...\n\n- **Ben**: ...\n\n- **Cem**: ...\n\n"
        assert any(feed.text == heads for feeds in script.passes for feed in feeds)
        assert [block.plan.gap for block in result.blocks] == ["\n", "\n"]
        assert result.text == llm.invoke("Who?", mode="sequential").conclusion
        assert "is small.\n- **Cem**: is quick.\n- **Dan**: is slow.\n\nThat" in result.text

    @pytest.mark.parametrize(
        ("began", "text", "goes_on"),
        [
            ("### Rom\n", "### Oslo\n", True),
            ("### Rom\n", "## Food\n", False),
            ("### 1. Rom\n", "### Food\n", False),
            ("- Rom: ", "- Oslo: ", True),
            ("- Rom: ", "* Oslo: ", False),
            ("- Rom: ", "More:\n- Oslo: ", False),
            ("**Rom**\n", "**Oslo**\n", True),
        ],
    )
    def test_a_list_without_numbers_goes_on_in_its_own_marks(
        self, began: str, text: str, goes_on: bool
    ) -> None:
        """And at once; else it is another list."""
        first = NATIVE_FORM.opened(began)
        assert first is not None
        plan = NATIVE_FORM.alone(first)
        assert plan is not None
        opened = NATIVE_FORM.opened(f"\n\n{text}", [plan])
        assert opened is not None
        assert opened.goes_on is goes_on

    def test_a_line_that_leads_in_ends_a_list_without_empty_lines(self) -> None:
        """As an empty line would."""
        opened = NATIVE_FORM.opened("Pros:\n- Cost: low")
        assert opened is not None
        plan = NATIVE_FORM.alone(opened)
        assert plan is not None
        end = NATIVE_FORM.entry_end(plan)
        assert end.find(" low\nor none.\nCons:\n- Cost: high") == len(" low\nor none.")
        assert end.find(" low\nor: none at all\n") is None

    def test_after_a_line_of_its_own_it_goes_on_as_that_has_it(self) -> None:
        """A list that begins with 3 right under a line would not be one."""
        before = [NATIVE_FORM.given([Step(title="Ann"), Step(title="Ben")])]
        before[0] = before[0].model_copy(update={"gap": "\n"})
        for text, gap in (("", "\n"), ("\n\n", "\n"), ("More:\n\n", "\n\n")):
            opened = NATIVE_FORM.opened(f"{text}3. **Cem**: x", before)
            assert opened is not None
            assert opened.goes_on
            assert opened.marks[0].mark.gap == gap

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

    def test_one_entry_may_be_left(self) -> None:
        """Nothing forces a second one where a list goes on: the last entry is only text."""
        rules = {**GOES_ON, "3. **Cem**: ...\n\n": "That is all."}
        rules["3. **Cem**:"] = " is quick.\n\nThat is all."
        for most in (0.2, None):
            llm, _ = native_llm(rules, max_pressure=most)
            result = llm.invoke("Who?")
            assert len(result.blocks) == 1
            assert result.conclusion == "3. **Cem**: is quick.\n\nThat is all."

    def test_every_title_of_a_list_is_remembered(self) -> None:
        """Also those of blocks before the last one."""
        llm, _ = native_llm({**GOES_ON, "is slow.": "\n\n5. **Ann**:"})
        result = llm.invoke("Who?")
        assert len(result.blocks) == 2
        assert result.conclusion.isalpha()  # the script writes letters where it is not let

    @pytest.mark.parametrize(
        ("text", "title"),
        [
            ("\n\n3. **Cem**: x", "Cem"),
            ("\n\n4. **Dan**: x", None),
            ("\n\n03. **Cem**: x", None),
            ("\n\n3.5 km: far", None),
            ("\n\n3) **Cem**: x", "Cem"),
            ("\n   3. **nested**: x", None),
            ("\n\n### 3. Rest\n", None),
            ("\n\n3. **Summary**: x", None),
            ("\n\n3. **Ben**: x\n\n1. **Rom**: y", "Ben"),
            ("No.\n\n3. **Ben**: x\n\n1. **Rom**: y", "Rom"),
            ("\n\n1. **Ann**: anew", "Ann"),
        ],
    )
    def test_what_goes_on(self, text: str, title: str | None) -> None:
        """The next number as it is written, in the same kind of list, with a title of its own."""
        plan = NATIVE_FORM.given([Step(title="Ann"), Step(title="Ben")])
        opened = NATIVE_FORM.opened(text, [plan])
        assert (None if opened is None else opened.title) == title
        if opened is not None:  # no part of its line is passed on before it is decided
            line = text[opened.start :].partition("\n")[0]
            ends = range(1, line.index(":"))
            assert all(NATIVE_FORM.may_open(line[:end], [plan]) for end in ends)

    @pytest.mark.parametrize("rules", ["LIST", "GOES_ON"])
    def test_branches_may_be_reused(self, rules: str) -> None:
        """The join ends with a branch's last token, which the model reads in the new segment."""
        llm, _ = native_llm(globals()[rules], join="reuse")
        result = llm.invoke("Who?")
        assert (result.error, result.finish_reason) == (None, "stop")
        assert result.text == native_llm(globals()[rules])[0].invoke("Who?").text

    @pytest.mark.parametrize(
        ("rules", "again"),
        [
            ({**LIST, "is small.": "\n\n3. **Ann**:"}, "3. **Ann"),
            ({**BULLETS, "is small.": "\n- **Ann**:"}, "- **Ann"),
            ({**BULLETS, "is slow.": "\n- **Ann**:"}, "- **Ann"),
        ],
    )
    def test_a_list_that_comes_back_to_its_first_entries_is_over(
        self, rules: dict[str, str | list[str]], again: str
    ) -> None:
        """Another try begins with something else, and nothing of the entry is streamed."""
        llm, _ = native_llm(rules, max_conclusion_tokens=30)
        chunks = list(llm.stream("Who?"))
        result = reduce(add, chunks)
        assert sum(block.plan.titles.count("Ann") for block in result.blocks) == 1
        assert result.conclusion.isalpha()  # the script goes on with letters where it may not
        said = "".join(c.delta for c in chunks if c.stage == "conclude")
        assert said.strip().endswith(result.conclusion)
        assert again not in said

    def test_a_block_that_failed_forbids_no_other(self) -> None:
        """What opens none is text, and a list after it is one."""
        rules = {**LIST, "is small.": "\n\n1. **Only**:", "1. **Only**:": " one.\n\nT: "}
        rules["1. **Only**: ...\n\n"] = "2. **Only**: ...\n\nThat is all."
        rules["T: "] = "\n\n1. **Rom**:"
        rules["1. **Rom**: ...\n\n"] = "2. **Oslo**: ...\n\nThat is all."
        rules |= {"1. **Rom**:": " is warm.", "2. **Oslo**:": " is cold.", "is cold.": ""}
        llm, _ = native_llm(rules, max_pressure=None, max_conclusion_tokens=120)
        result = llm.invoke("Who?")
        assert [block.plan.titles for block in result.blocks][1:] == [("Rom", "Oslo")]
        assert "1. **Only**: one." in result.text

    @pytest.mark.parametrize("second", ["", "2. **Dear**: so.\n\n"])
    def test_after_a_list_that_opened_no_block_none_before_it_goes_on(self, second: str) -> None:
        """Its entries are text, and so is what counts on from them."""
        rules = {**GOES_ON, "is small.": "\n\nAlso:\n\n1. **Only**:"}
        text = f" one.\n\n{second}3. **Cem**: is quick.\n\n4. **Dan**: is slow."
        rules |= {"1. **Only**:": text, "1. **Only**: ...\n\n": "2. **Only**: ...\n\nT"}
        llm, script = native_llm(rules, max_conclusion_tokens=200, max_blocks=4)
        result = llm.invoke("Who?")
        assert len(result.blocks) == 1
        assert text in result.text
        assert not [f for p in script.passes for f in p if "3. **Cem**: ..." in f.text]

    def test_the_callers_list_is_whole(self) -> None:
        """No further entry follows it, and what does is written after it."""
        rules = {**GOES_ON, "3. **Cem**: ...\n\n": "", "3. **Cem**:": " is quick."}
        llm, _ = native_llm(rules, max_conclusion_tokens=9)
        result = llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]})
        assert len(result.blocks) == 1
        assert result.conclusion.isalpha()  # the script writes letters where it is not let

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
            ("World Cup 2014", "World Cup 2018", False),
            ("Python 2", "Python 3", False),
            ("Area 51", "Area 52", False),
        ],
    )
    def test_titles_that_only_count_are_none(self, first: str, second: str, only: bool) -> None:
        """A branch that knows its place alone would say what all say."""
        text = f"1. **{first}**: ...\n\n2. **{second}**: ...\n\n"
        skeleton = _skeleton(f"1. **{first}**: ...")
        if only:
            with pytest.raises(PlanFormatError, match="only count"):
                skeleton.read(text)
        else:
            assert skeleton.read(text) is not None

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


def _skeleton(text: str, **settings: Any) -> NativeSkeleton:
    """The skeleton of a list that begins like this."""
    opened = NATIVE_FORM.opened(text)
    assert opened is not None
    return NATIVE_FORM.skeleton(ReasoningSettings(**settings), "", opened)


@pytest.mark.parametrize(
    ("most", "own", "kept"),
    [
        (0.2, [-0.1, -9.0], 3),  # one title of many that would do
        (0.2, [-0.2, -0.1], 2),  # it may have ended: 0.18
        (0.2, [-0.15, -0.1], 3),  # 0.14
        (None, [-3.0, -3.0], 3),
    ],
)
def test_a_list_ends_before_a_head_where_the_model_might_have_ended_it(
    most: float | None, own: list[float], kept: int
) -> None:
    """That head is left out of the plan, and of its pressure."""
    skeleton = _skeleton("1. **Ann**: ", max_pressure=most)
    bounds = skeleton.bounds(500)
    chosen, text = [-0.1] * 3, f"{skeleton.begin}2. **Ben**: ...\n\n"
    bounds.note(text, 9, lambda: chosen)
    assert not bounds.over
    text += "3. **Cem**: ...\n\n"
    bounds.note(text, 18, lambda: [*chosen, *own])
    assert bounds.over is (kept == 2)
    read = skeleton.read(bounds.kept(text)[0])
    assert read is not None
    assert read.titles == ("Ann", "Ben", "Cem")[:kept]
    assert bounds.kept(text)[1] == slice(0, 3 if kept == 2 else None)


@pytest.mark.parametrize(("own", "over"), [(-0.6, False), (-0.8, True)])  # ended: 0.45, 0.55
def test_a_list_that_went_on_ends_where_the_model_rather_would(own: float, over: bool) -> None:
    """From its next head on: that it goes on is known of the first alone."""
    plan = NATIVE_FORM.given([Step(title="Ann"), Step(title="Ben")])
    opened = NATIVE_FORM.opened("3. **Cem**:", [plan])
    assert opened is not None
    skeleton = NATIVE_FORM.skeleton(ReasoningSettings(max_pressure=2.5), "", opened)
    bounds = skeleton.bounds(500)
    bounds.note(f"{skeleton.begin}4. **Dan**: ...\n\n", 9, lambda: [own])
    assert bounds.over is over


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("Some:\n1. Ann: ", 1),
        ("Some:\n\n1. Ann: ", 0),
        ("Some:\n- Ann: ", 0),
        ("Some:\n\n### 1. Ann\n", 0),
    ],
)
def test_the_second_number_of_a_list_without_empty_lines_says_nothing(
    text: str, begin: int
) -> None:
    """The skeleton has one before it. Bullets count: one may well stand alone."""
    assert _skeleton(text).bounds(500).kept("")[1] == slice(begin, None)


def test_a_piece_may_hold_several_entries() -> None:
    """As servers send them; and the beginning of one."""
    for end in ("3", "3. **Cem**: ...\n\n4. **Dan**: ...\n\n"):
        skeleton = _skeleton("1. **Ann**: ")
        bounds = skeleton.bounds(500)
        bounds.note(f"{skeleton.begin}2. **Ben**: ...\n\n{end}", 1)
        assert not bounds.over
        bounds.note(f"{skeleton.begin}2. **Ben**: ...\n\n{end}\n\nThat", 2)
        assert bounds.over


def test_the_second_head_is_judged_with_the_whole_list() -> None:
    """A list of two has no other way to be a list."""
    skeleton = _skeleton("1. **Ann**: ", max_pressure=0.2)
    bounds = skeleton.bounds(500)
    bounds.note(f"{skeleton.begin}2. **Ben**: ...\n\n", 9, lambda: [-3.0])
    assert not bounds.over


@pytest.mark.parametrize("head", ["1. Ann: ", "- Ann: ", "### Ann\n", "1) **Ann**: ", "**Ann**\n"])
def test_the_space_before_a_title_is_not_forced(head: str) -> None:
    """As a rule it is one token with the title's first word."""
    skeleton = _skeleton(head)
    compiler = ConstraintCompiler(byte_level(), vocabulary=512, stop_token_ids=[0])
    state = compiler.state(Constraint("ebnf", skeleton.grammar))
    forced = state.forced_text()
    assert forced
    assert not forced.endswith(" ")
    space = " " if skeleton.begin.partition("Ann")[0].endswith(" ") else ""
    whole = f"{forced}{space}Ben{skeleton.begin.partition('Ann')[2]}"
    assert state.accept_text(whole)
    assert skeleton.titles(skeleton.begin + whole) == ["Ann", "Ben"]


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
