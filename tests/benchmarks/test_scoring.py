"""Judging answers about students, in any form."""

from __future__ import annotations

from benchmarks.scoring import Score, steps_of
from langchain_pos.results.data import Block, BranchResult, Plan
from langchain_pos.results.result import ReasoningResult

ROW = {
    "prompt": (
        "The student named Ann Lee is 20 years old, has a GPA of 2.45.\n"
        "The student named Ann is 30 years old, has a GPA of 3.10.\n"
        "Which student has a GPA between 2.4 and 2.5?"
    ),
    "gold_keys": "Ann Lee",
}


def _sequential(text: str) -> ReasoningResult:
    return ReasoningResult(conclusion=text, mode="sequential")


def test_prose_is_cut_where_a_name_comes_first() -> None:
    """The longer of two names that begin alike is the one that is meant."""
    result = _sequential("- **Ann Lee**: GPA 2.45, fits.\n- **Ann**: GPA 3.10.\n\nname: Ann Lee")
    assert steps_of(result, ["Ann", "Ann Lee"]) == [
        ("Ann Lee", "**: GPA 2.45, fits.\n- **"),
        ("Ann", "**: GPA 3.10.\n\nname: "),
    ]


def test_a_value_beside_other_numbers_counts_and_a_wrong_one_does_not() -> None:
    """One of two students' GPA is copied; nobody is left out."""
    verdict = Score().add(
        ROW, _sequential("Ann Lee is 20 and has 2.45. Ann is 30 and has 3.11."), 1.0
    )
    assert (verdict["values"], verdict["complete"]) == (1, True)


def test_a_branch_is_about_the_name_in_its_title() -> None:
    """Marks around a name do not hide it; a step about nobody makes the list incomplete."""
    branches = tuple(
        BranchResult(index=i, title=title, text=text)
        for i, (title, text) in enumerate([("**Ann Lee**", "2.45"), ("Summary", "2.45")])
    )
    plan = Plan.of([branch.title for branch in branches])
    result = ReasoningResult(
        conclusion="It is Ann Lee.", mode="parallel", blocks=(Block(plan=plan, branches=branches),)
    )
    verdict = Score().add(ROW, result, 1.0)
    assert (verdict["right"], verdict["values"], verdict["complete"]) == (True, 1, False)
