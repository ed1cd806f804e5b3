"""Text to plan: the canonical skeleton, what models write in its place, and what is refused."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.fake import FakeListLLM
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from langchain_pos.errors import ParallelReasoningError, PlanFormatError
from langchain_pos.reasoning.plan_parser import PlanParser, PlanParserError, declined
from langchain_pos.results.data import Plan

CANONICAL = "Let us see.\n####Ann:......\n####Ben:......\n####%%%%"
ANN_BEN = ("Ann", "Ben")


def titles(text: str) -> tuple[str, ...]:
    """What a parser without bounds reads."""
    return PlanParser().parse(text).titles


def test_canonical_skeleton_is_read() -> None:
    """Preamble and titles of the paper's form come out as they stand there."""
    assert PlanParser().parse(CANONICAL) == Plan.of(["Ann", "Ben"], preamble="Let us see.")


@pytest.mark.parametrize(
    "text",
    [
        "####Ann：......\n####Ben：......\n####%%%%",
        "#### Ann: ......\n\n#### Ben : ......\n\n#### %%%%",
        "####Ann:\n......\n\n####Ben:\n......\n\n####%%%%",
        "####Ann:...\n####Ben:…",
        "####Ann:……\n####Ben：。。。。。。\n####%%%%",
        "####Ann......\n####Ben……\n####%%%%",
        "####Ann\n####Ben\n####%%%%",
        "####Ann\n......\n####Ben\n......",
        "####Ann - ......\n####Ben — ......\n####%%%%",
        "####**Ann**:......\n####**Ben:** ......\n####%%%%",
        "#### **Ann:**......\n**####Ben:** **......**\n**####%%%%**",
        "####`Ann`:......\n####*Ben*:......\n####%%%%",
        "####【Ann】:......\n####[Ben]:[......]\n####%%%%",
        "####1. Ann:......\n####2. Ben:......\n####%%%%",
        "####1)Ann:......\n####2） Ben:......\n####%%%%",
        "####(1) Ann:......\n####（2）Ben:......\n####%%%%",
        "####一、Ann：……\n####二、Ben：……\n####%%%%",
        "####（一）Ann：……\n####（二）Ben：……\n####%%%%",
        "####①Ann:......\n####② Ben:......\n####%%%%",
        "####**1. Ann**:......\n#### 2. **Ben**:......\n####%%%%",
        "- ####Ann:......\n- ####Ben:......\n- ####%%%%",
        "1. ####Ann:......\n2. ####Ben:......\n####%%%%",
        "> ####Ann:......\n> ####Ben:......\n> ####%%%%",
        "\\#\\#\\#\\#Ann:......\n\\#\\#\\#\\#Ben:......\n\\#\\#\\#\\#\\%\\%\\%\\%",
        "####Ann:......####Ben:......####%%%%",
        "####Ann:......\r\n####Ben:......\r\n####%%%%\r\n",
        "####title: Ann:......\n####title: Ben:......\n####%%%%",
        "####Title 1: Ann\n####Title 2: Ben\n####%%%%",
        "####标题：Ann:......\n####标题：Ben:......\n####%%%%",
        "####Ann:......\n####Ben:......",
        "####Ann:......\n####Ben:......<|im_end|>",
        "####Ann:......\n####Ben:......\n</s>\n<|endoftext|>",
        "####Ann:......\n####Ben:......\n%%%%\n####Cem:......",
        "####Ann:......\n####Ben:......\n########%%%%\n####Cem:......",
        "####Ann:......\n####Ben:......\n####%%\n####Cem:......",
        "####Ann:......\n####Ben:......\n####\n%%%%\n####Cem:......",
        "####Ann:......\n####Ben:......\n####%%%%Ben is.\n####Note:......",
        "####Ann: GPA is 3.1, too low.\n####Ben: 3.4...\n####%%%%\n\nSo it is Ben.",
        "####Ann: she has\n- a degree\n- a job: nurse\n\n####Ben: nothing\n####%%%%",
        "####: Ann\n####: Ben\n####%%%%",
        "### Ann:\n......\n\n#### Ben:\n......\n\n####%%%%",
        "##### Ann:......\n##### Ben:......\n####%%%%",
        "### Ann:\nGPA is 3.1\n### Ben:\nGPA is 3.4\n####%%%%",
        "1. Ann:......\n2. Ben:......\n####%%%%",
        "- **Ann**: ......\n- **Ben**: ......",
        "####\nAnn:......\n####\nBen:......\n####%%%%",
        "<think>\nPerhaps ####Cem:......\n</think>\n####Ann:......\n####Ben:......\n####%%%%",
        "####Ann:......\n####\n\n####Ben:......\n####",
    ],
)
def test_what_models_write_is_read(text: str) -> None:
    """Every way in which a model dresses up two steps yields the two steps."""
    assert titles(text) == ANN_BEN


@pytest.mark.parametrize("fence", ["```", "```text", "~~~"])
def test_code_fences_are_no_part_of_the_plan(fence: str) -> None:
    """A fence around the skeleton or the whole answer disappears."""
    closing = fence[:3]
    assert PlanParser().parse(f"{fence}\n{CANONICAL}\n{closing}").preamble == "Let us see."
    inner = CANONICAL.replace("see.\n", f"see.\n\n{fence}\n")
    plan = PlanParser().parse(f"{inner}\n{closing}")
    assert plan == Plan.of(["Ann", "Ben"], preamble="Let us see.")


def test_preamble_keeps_a_fence_of_its_own() -> None:
    """Code that the preamble quotes is not torn apart."""
    preamble = "We compare:\n```\nx = 1\n```\nline by line."
    assert PlanParser().parse(f"{preamble}\n####A:......").preamble == preamble


@pytest.mark.parametrize(
    "title",
    [
        "3家主要竞争对手的品类布局",
        "2.5 GPA and above",
        "1. FC Köln",
        "A* search",
        "A*",
        "10:30 meeting",
        "Step 1: gather data",
        "C++ (2nd ed.)",
        "Re: [urgent] offer",
        "50% off",
        "Wu Qiang has a GPA of 3.93, which falls within the range.",
        "[a] and [b]",
        "`a` and `b`",
        '用户画像中"新手妈妈"与"育儿经验丰富的父母"的差异',
        "…",
        "-",
        "`",
        "**",
        "1.",
    ],
)
def test_titles_keep_their_wording(title: str) -> None:
    """What belongs to a title is not taken for decoration."""
    assert titles(f"####{title}:......\n####Ben:......\n####%%%%") == (title, "Ben")


def test_numbers_that_do_not_count_the_steps_stay() -> None:
    """Only 1, 2, 3 from the first on are the model's counting; other numbers are the title's."""
    assert titles("####2. Liga:......\n####3. Liga:......") == ("2. Liga", "3. Liga")


def test_counting_may_stop_before_the_last_step() -> None:
    """An unnumbered step behind numbered ones does not keep the numbers in the titles."""
    text = "####九、A:......\n####总结:......"
    assert titles(text) == ("九、A", "总结")
    numerals = "一 二 三 四 五 六 七 八 九 十 十一 十二".split()
    text = "\n".join(f"####{n}、step {i}:......" for i, n in enumerate(numerals))
    assert titles(f"{text}\n####总结:......") == (*(f"step {i}" for i in range(12)), "总结")


def test_marks_behind_a_preamble_on_its_line_are_found() -> None:
    """A skeleton written into the preamble's line is cut at the marks."""
    plan = PlanParser().parse("让我们看：####经济:......####政治:......####%%%%")
    assert plan == Plan.of(["经济", "政治"], preamble="让我们看：")


def test_headings_that_are_no_steps_belong_to_the_preamble() -> None:
    """A heading of another level without an ellipsis is not taken for a step."""
    plan = PlanParser().parse("### Analysis\n\n#### A:\n......\n#### B:\n......\n####%%%%")
    assert plan == Plan.of(["A", "B"], preamble="### Analysis")


def test_only_the_first_block_is_read() -> None:
    """A second block of steps is another plan."""
    assert titles(f"{CANONICAL}\nThen:\n####Cem:......\n####%%%%") == ANN_BEN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no steps"),
        ("The answer is 42.", "no steps"),
        ("First: look...\nThe answer is 42.", "no steps"),
        ("### Introduction\ntext\n### Body\ntext", "no steps"),
        ("####%%%%\nThe answer is 42.", "no steps"),
        ("####:......\n####%%%%", "step 1 has no title"),
        ("####Ann:......\n####ann :......", "same title: 'ann'"),
        ("####**Ann**:......\n####Ann：......", "same title: 'Ann'"),
        ("####Ann ####Ben", "'Ann ####Ben'"),
    ],
)
def test_unusable_text_is_refused_with_the_reason(text: str, said: str) -> None:
    """No steps, no title, one title twice: the error says so and carries the text."""
    with pytest.raises(PlanFormatError) as caught:
        PlanParser().parse(text)
    assert said in str(caught.value)
    assert caught.value.text == text


def test_bounds_hold() -> None:
    """Fewer or more steps than allowed are an error with the numbers."""
    assert PlanParser(min_branches=2, max_branches=2).parse(CANONICAL).titles == ANN_BEN
    with pytest.raises(PlanFormatError, match=r"2 step\(s\); at least 3"):
        PlanParser(min_branches=3).parse(CANONICAL)
    with pytest.raises(PlanFormatError, match="2 steps; at most 1"):
        PlanParser(max_branches=1).parse(CANONICAL)


@pytest.mark.parametrize("bounds", [{"min_branches": 0}, {"max_branches": 0}])
def test_senseless_bounds_are_refused(bounds: dict[str, Any]) -> None:
    """A parser for plans without a step cannot be made."""
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        PlanParser(**bounds)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("####%%%%", True),
        ("This has one part only.\n####%%%%\nIt is 42.", True),
        (CANONICAL, False),
        ("1. Ann:......\n2. Ben:......\n####%%%%", False),
        ("####Ann:......\n####%%%%", False),
        ("It is 42.", False),
        ("", False),
    ],
)
def test_declining_is_told_from_failing(text: str, expected: bool) -> None:
    """A terminator without steps is a decision; text without either is a failure."""
    assert declined(text) is expected


def test_error_speaks_langchain_s_language_too() -> None:
    """The error is ours and LangChain's, and carries what a model needs to try again."""
    with pytest.raises(OutputParserException) as caught:
        PlanParser().parse("no")
    error = caught.value
    assert isinstance(error, PlanFormatError)
    assert isinstance(error, ParallelReasoningError)
    assert (error.send_to_llm, error.llm_output) == (True, "no")
    assert error.observation == str(error)
    assert "http" not in str(error)


def test_error_survives_pickling() -> None:
    """The error crosses process borders whole."""
    error = pickle.loads(pickle.dumps(PlanParserError("bad", text="no")))
    assert (str(error), error.text, error.observation) == ("bad", "no", "bad")


def test_parser_works_in_a_chain() -> None:
    """Model, parser and fallback are composed as with every LangChain parser."""
    plan = Plan.of(["Ann", "Ben"], preamble="Let us see.")
    chain = FakeListLLM(responses=[CANONICAL, "no"]) | PlanParser()
    assert chain.invoke("?") == plan
    fallback = RunnableLambda(lambda _: Plan.of(["whole"]))
    handled = chain.with_fallbacks([fallback], exceptions_to_handle=(OutputParserException,))
    assert handled.invoke("?").titles == ("whole",)
    assert PlanParser().invoke(AIMessage(CANONICAL)) == plan
    assert asyncio.run(PlanParser().ainvoke(CANONICAL)) == plan
    assert PlanParser().OutputType is Plan


def test_retrying_chain_asks_again() -> None:
    """LangChain's retry catches the error and the next answer is parsed."""
    chain = FakeListLLM(responses=["no", CANONICAL]) | PlanParser()
    retrying = chain.with_retry(
        retry_if_exception_type=(OutputParserException,), wait_exponential_jitter=False
    )
    assert retrying.invoke("?").titles == ANN_BEN


def test_format_instructions_describe_what_is_read() -> None:
    """The instructions name the step's form, the terminator and the bound."""
    text = PlanParser(max_branches=12).get_format_instructions()
    for part in ("####title:......", "####%%%%", "12"):
        assert part in text
    assert "at most" not in PlanParser().get_format_instructions()


WORDS = st.text(st.characters(categories=["L"]), min_size=1, max_size=8)
TITLES = st.lists(
    st.lists(WORDS, min_size=1, max_size=3).map(" ".join),
    min_size=1,
    max_size=12,
    unique_by=lambda title: title.casefold(),
)


@given(TITLES, st.sampled_from([":......", "：……", ": ...", "......", ":\n......", ": body text."]))
def test_any_plain_titles_come_through(wanted: list[str], body: str) -> None:
    """Titles made of words in any script are read back unchanged."""
    text = "".join(f"####{title}{body}\n" for title in wanted)
    assert titles(f"Preamble.\n{text}####%%%%") == tuple(wanted)


@given(st.text(alphabet="#%:：.…*`1一、.(-[]\\<|> \n\tAb", max_size=60))
def test_any_text_is_a_plan_or_a_format_error(text: str) -> None:
    """No text whatever makes the parser fail in another way."""
    try:
        plan = PlanParser().parse(text)
    except PlanFormatError:
        return
    assert all(title.strip() and "\n" not in title for title in plan.titles)


@pytest.mark.parametrize(
    "unit",
    ["####a:......\n", "\n", " ", "*", "#", ".", "####", "a:......\n", "# a\n", "```\n", "\\#"],
)
def test_long_degenerate_text_is_read_or_refused(unit: str) -> None:
    """A model that repeats itself for 200,000 characters gives a format error at worst."""
    text = unit * (200_000 // len(unit))
    with suppress(PlanFormatError):
        assert PlanParser().parse(text).steps
