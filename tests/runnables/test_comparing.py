"""`compare_modes`: the same questions in both modes, as a table."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest

from langchain_pos import ParallelReasoningLLM, compare_modes, demo_question
from langchain_pos.embedded.demo import DEMO_ANSWER
from langchain_pos.errors import InvalidRequestError
from langchain_pos.results.data import Block, BranchResult, Plan, StagePasses, StageTimings
from langchain_pos.results.result import ReasoningResult
from langchain_pos.runnables.comparing import holds, last_line


class Canned:
    """Stands for a runnable: it answers one way in parallel and another sequentially."""

    def __init__(self) -> None:
        self.answers = {
            "Who is tall?": ("I look.\nName: Ann.", "name:  ann"),
            "Who is | short?": ("Ben", "Cem"),
        }
        self.settings: list[dict[str, Any]] = []

    def invoke(self, question: str, config: Any, **settings: Any) -> ReasoningResult:
        self.settings.append(settings)
        parallel, sequential = self.answers[question]
        if settings["mode"] == "parallel":
            return ReasoningResult(
                blocks=(Block(plan=Plan.of(["a", "b"])),),
                conclusion=parallel,
                forward_passes=StagePasses(expand=10),
                timings=StageTimings(expand=1.0),
            )
        return ReasoningResult(
            conclusion=sequential,
            mode="sequential",
            forward_passes=StagePasses(conclude=30),
            timings=StageTimings(conclude=2.0),
        )


def test_answers_are_compared_by_their_last_line() -> None:
    """Case, spaces and a full stop do not count; what differs is found and counted."""
    llm: Any = Canned()
    found = compare_modes(llm, list(llm.answers), expected=["Ann", "Cem"], temperature=0.5)
    assert [row.agrees for row in found.rows] == [True, False]
    assert [row.question for row in found.differences] == ["Who is | short?"]
    assert found.agreement == 0.5
    assert found.parallel_share == 1
    assert found.correct == (0.5, 1.0)
    assert (found.passes, found.seconds) == ((20, 60), (2.0, 4.0))
    assert all(settings["temperature"] == 0.5 for settings in llm.settings)


def test_the_table_shows_both_answers() -> None:
    """As text and as markdown, in which what was asked and answered stays text."""
    llm: Any = Canned()
    found = compare_modes(llm, list(llm.answers))
    text, markdown = str(found), found._repr_markdown_()
    first, second = (line.split() for line in text.splitlines()[1:3])
    assert first == "Who is tall? Name: Ann. name: ann agree 10 / 30".split()
    assert second == "Who is | short? Ben Cem differ 10 / 30".split()
    assert "50% of 2 answers agree, 100% were written in parallel." in text
    assert "correct in parallel" not in text
    assert "Who is \\| short?" in markdown


def test_what_is_compared_can_be_chosen() -> None:
    """Another part of the result, and another judge of two answers."""
    llm: Any = Canned()
    question = ["Who is tall?"]
    whole = compare_modes(llm, question, answer=attrgetter("text"))
    assert whole.agreement == 0
    judged = compare_modes(llm, question, answer=attrgetter("text"), agree=lambda a, b: a != b)
    assert judged.agreement == 1


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("Another one", "no", False),
        ("No.", "no", True),
        ("name: ANN  Lee!", "ann lee", True),
        ("Annabel", "Ann", False),
        ("答案是北京。", "北京", True),
        ("答案是Ann。", "Ann", True),
        ("答案是13个", "13", True),
        ("答えは東京です", "東京", True),
        ("서울입니다", "서울", True),
        ("13", "3", False),
        ("3.5", "3", False),
        ("1,300", "300", False),
        ("It is 3.", "3", True),
        ("3, 4", "3", True),
        ("1.Ann", "Ann", True),
        ("US$5", "$5", True),
        ("C++11", "C++", True),
    ],
)
def test_what_is_expected_counts_as_whole_words(answer: str, expected: str, right: bool) -> None:
    """Where a script has spaces between words, and for numbers."""
    assert holds(answer, expected) is right


def test_the_last_line_is_that_of_the_conclusion() -> None:
    """Else that of the text."""
    branch = BranchResult(index=0, title="a", text="one")
    block = Block(plan=Plan.of(["a"]), branches=(branch,))
    assert last_line(ReasoningResult(blocks=(block,), conclusion="So:\n two \n")) == "two"
    assert last_line(ReasoningResult(blocks=(block,))) == "####%%%%"


def test_nothing_to_compare_is_refused() -> None:
    """No question, or a wrong number of expected answers, is an error that says so."""
    llm: Any = Canned()
    with pytest.raises(InvalidRequestError, match="no questions"):
        compare_modes(llm, [])
    with pytest.raises(InvalidRequestError, match=r"write \['Who'\]"):
        compare_modes(llm, "Who")
    with pytest.raises(InvalidRequestError, match=r"write \['no'\]"):
        compare_modes(llm, list(llm.answers), expected="no")
    with pytest.raises(InvalidRequestError, match=r"expected\[1\] is ' . '"):
        compare_modes(llm, list(llm.answers), expected=["Ann", " . "])
    with pytest.raises(InvalidRequestError, match="1 expected answers are given for 2 questions"):
        compare_modes(llm, list(llm.answers), expected=["Ann"])


def test_the_shipped_model_agrees_with_itself() -> None:
    """On the demo's question both modes name the right student, in parallel in fewer passes."""
    found = compare_modes(ParallelReasoningLLM(), [demo_question()], expected=[DEMO_ANSWER])
    assert found.agreement == found.parallel_share == 1
    assert found.correct == (1, 1)
    assert found.passes[0] < found.passes[1]
