"""The paper's form as text: openings, joins, steps that open a block."""

from __future__ import annotations

from langchain_pos.reasoning.paper_form import PAPER
from langchain_pos.results.data import Block, BranchResult, Plan


def test_branch_opens_with_its_title() -> None:
    """A branch starts with the mark, its title and a colon."""
    assert PAPER.opening(Plan.of(["Ann"]), 0) == "####Ann:"


def test_joined_text_has_the_paper_s_form() -> None:
    """Branches are joined line by line, in order, and closed."""
    joined = PAPER.join(Plan.of(["Ann", "Ben"]), ["GPA is 3.1", "GPA is 3.4\nwell above"])
    assert joined == "####Ann: GPA is 3.1\n####Ben: GPA is 3.4\nwell above\n####%%%%\n"


def test_joined_text_is_that_of_a_block() -> None:
    """What the model goes on from is what the result shows."""
    pairs = [("Ann", "3.1"), ("Ben", ""), ("Cem", "two\nlines")]
    branches = [BranchResult(index=i, title=t, text=b) for i, (t, b) in enumerate(pairs)]
    plan = Plan.of([title for title, _ in pairs], preamble="Let us see.")
    block = Block(plan=plan, branches=tuple(branches))
    assert f"{block.text}\n" == f"Let us see.\n{PAPER.join(plan, [body for _, body in pairs])}"
