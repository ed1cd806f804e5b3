"""The outline of a list: its grammar, and where its bounds end it."""

from __future__ import annotations

import pytest

from langchain_pos.engine import Constraint
from langchain_pos.engine.constraints.compiler import ConstraintCompiler
from langchain_pos.reasoning.native_form import NATIVE as NATIVE_FORM
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.data import Step
from tests.support.native_list import begun
from tests.support.tokenizers import byte_level


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
    skeleton = begun("1. **Ann**: ", max_pressure=most)
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
    assert begun(text).bounds(500).kept("")[1] == slice(begin, None)


def test_a_piece_may_hold_several_entries() -> None:
    """As servers send them; and the beginning of one."""
    for end in ("3", "3. **Cem**: ...\n\n4. **Dan**: ...\n\n"):
        skeleton = begun("1. **Ann**: ")
        bounds = skeleton.bounds(500)
        bounds.note(f"{skeleton.begin}2. **Ben**: ...\n\n{end}", 1)
        assert not bounds.over
        bounds.note(f"{skeleton.begin}2. **Ben**: ...\n\n{end}\n\nThat", 2)
        assert bounds.over


def test_the_second_head_is_judged_with_the_whole_list() -> None:
    """A list of two has no other way to be a list."""
    skeleton = begun("1. **Ann**: ", max_pressure=0.2)
    bounds = skeleton.bounds(500)
    bounds.note(f"{skeleton.begin}2. **Ben**: ...\n\n", 9, lambda: [-3.0])
    assert not bounds.over


@pytest.mark.parametrize("head", ["1. Ann: ", "- Ann: ", "### Ann\n", "1) **Ann**: ", "**Ann**\n"])
def test_the_space_before_a_title_is_not_forced(head: str) -> None:
    """As a rule it is one token with the title's first word."""
    skeleton = begun(head)
    compiler = ConstraintCompiler(byte_level(), vocabulary=512, stop_token_ids=[0])
    state = compiler.state(Constraint("ebnf", skeleton.grammar))
    forced = state.forced_text()
    assert forced
    assert not forced.endswith(" ")
    space = " " if skeleton.begin.partition("Ann")[0].endswith(" ") else ""
    whole = f"{forced}{space}Ben{skeleton.begin.partition('Ann')[2]}"
    assert state.accept_text(whole)
    assert skeleton.titles(skeleton.begin + whole) == ["Ann", "Ben"]
