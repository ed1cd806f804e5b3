"""Lists that go on after their entries, end, or begin anew."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest

from langchain_pos.reasoning.native_form import NATIVE as NATIVE_FORM
from langchain_pos.results.data import Step
from tests.support.native_list import (
    ASKED,
    BULLETS,
    GOES_ON,
    LIST,
    TIGHT,
    native_llm,
)


class TestGoesOn:
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
        """As an empty line would; but not an entry's own bullets."""
        opened = NATIVE_FORM.opened("Pros:\n- Cost: low")
        assert opened is not None
        plan = NATIVE_FORM.alone(opened)
        assert plan is not None
        end = NATIVE_FORM.entry_end(plan)
        assert end.find(" low\nor none.\nCons:\n- Cost: high") == len(" low\nor none.")
        assert end.find(" low\nor: none at all\n") is None
        opened = NATIVE_FORM.opened("Places:\n1. Rom: x")
        assert opened is not None
        plan = NATIVE_FORM.alone(opened)
        assert plan is not None
        assert NATIVE_FORM.entry_end(plan).find(" x\n- Food:\n- Sights:\n") is None

    def test_after_a_line_of_its_own_it_goes_on_as_that_has_it(self) -> None:
        """A list that begins with 3 right under a line would not be one."""
        before = [NATIVE_FORM.given([Step(title="Ann"), Step(title="Ben")])]
        before[0] = before[0].model_copy(update={"gap": "\n"})
        for text, gap in (("", "\n"), ("\n\n", "\n"), ("More:\n\n", "\n\n")):
            opened = NATIVE_FORM.opened(f"{text}3. **Cem**: x", before)
            assert opened is not None
            assert opened.goes_on
            assert opened.marks[0].mark.gap == gap

    def test_one_entry_may_be_left(self) -> None:
        """Nothing forces a second one where a list goes on: the last entry is only text."""
        rules = {**GOES_ON, "3. **Cem**: ...\n\n": "That is all."}
        rules["3. **Cem**:"] = " is quick.\n\nThat is all."
        for most in (0.2, None):
            llm, _ = native_llm(rules, max_pressure=most)
            result = llm.invoke("Who?")
            assert len(result.blocks) == 1
            assert result.conclusion == "3. **Cem**: is quick.\n\nThat is all."

    @pytest.mark.parametrize("most", [2, 3, 4, 5])
    def test_all_its_parts_together_have_at_most_max_branches(self, most: int) -> None:
        """What the model lists beyond that is text, as it writes it."""
        rules = {**GOES_ON, "is slow.": "\n\n5. **Eva**:", "5. **Eva**:": " is odd.\n\nAll."}
        room = {"max_sequential_tokens": 400, "max_conclusion_tokens": 400}
        llm, _ = native_llm(rules, max_branches=most, **room)
        result = llm.invoke("Who?")
        assert len(result.branches) == most - most % 2
        assert "is small.\n\n3. **Cem**:" in result.text
        assert result.text == llm.invoke("Who?", mode="sequential").conclusion

    @pytest.mark.parametrize(
        ("under", "second"), [("\n", "2. **Yan**:"), ("\n\n", "2. **Yan**:"), ("\n\n", "")]
    )
    def test_a_list_under_a_single_further_entry(self, under: str, second: str) -> None:
        """That entry is text; what stands between it and the list is not lost, list or not."""
        gap = under if second else ""
        further = f"\n\n### Cem{under}1. **Xia**:"
        rules = {
            ASKED: "Some:\n\n### Ann\n",
            "### Ann\n": "Tall.\n\n### Ben\n",
            "### Ben\n": f"Small.{further}",
            "Small.": further,
            "### Ann\n...\n\n": "### Ben\n...\n\nT",
            "### Cem\n...\n\n": "That",
            f"### Cem{under}": "1. **Xia**:",
            "1. **Xia**:": f" Quick.{gap}{second}" if second else " Quick.\n\nThat is all.",
            "1. **Xia**: ...\n\n": "2. **Yan**: ...\n\nT" if second else "That",
            "2. **Yan**:": " Slow.\n\nThat is all.",
            "Slow.": "\n\nThat is all.",
        }
        llm, _ = native_llm(rules, max_branch_tokens=99, max_conclusion_tokens=99)
        result = llm.invoke("Who?")
        assert len(result.blocks) == (2 if second else 1)
        assert result.text == llm.invoke("Who?", mode="sequential").text
        chunks = [chunk for chunk in llm.stream("Who?") if chunk.stage == "conclude"]
        assert reduce(add, llm.stream("Who?")).result().text == result.text
        assert "".join(chunk.delta for chunk in chunks).endswith("That is all.")

    @pytest.mark.parametrize(
        ("repeats", "outline", "circles"),
        [(True, "native", True), (False, "native", False), (True, "ask", False)],
    )
    def test_not_where_its_entries_repeat_one_another(
        self, repeats: bool, outline: Any, circles: bool
    ) -> None:
        """A small model lists on for ever then; else it may, and a list asked for goes on."""
        same = "He is as tall as any. He is also quite old."
        bodies = [same, same if repeats else "He is not so tall.", same if repeats else "So is he."]
        titles = ["Ann", "Ben", "Cem", "Dan", "Eva"]
        rules = {"Answer:\n": "Some:\n\n1. **Ann**:"}
        for place, title in enumerate(titles[:-1], 1):
            body = bodies[min(place - 1, 2)]
            rules[f"{place}. **{title}**:"] = f" {body}\n\n{place + 1}. **{titles[place]}**:"
        rules["1. **Ann**: ...\n\n"] = "2. **Ben**: ...\n\n3. **Cem**: ...\n\nT"
        rules[bodies[2]] = "\n\n4. **Dan**:"
        rules |= {"4. **Dan**: ...\n\n": "5. **Eva**: ...\n\nT", "5. **Eva**:": " Yes."}
        llm, _ = native_llm(rules, max_branch_tokens=64, outline=outline)
        result = llm.invoke("Who?")
        assert [len(block.branches) for block in result.blocks] == ([3] if circles else [3, 2])
        assert ("4. **Dan**" in result.text) is not circles

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

    @pytest.mark.parametrize("rules", [LIST, GOES_ON])
    def test_branches_may_be_reused(self, rules: dict[str, str | list[str]]) -> None:
        """The join ends with a branch's last token, which the model reads in the new segment."""
        llm, _ = native_llm(rules, join="reuse")
        result = llm.invoke("Who?")
        assert (result.error, result.finish_reason) == (None, "stop")
        assert result.text == native_llm(rules)[0].invoke("Who?").text

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
