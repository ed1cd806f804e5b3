"""The pattern of records gives the next titles."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from langchain_pos import demo_question
from langchain_pos.reasoning.title_drafts import next_titles

NAMES = re.findall(r"student named (.+?) is \d", demo_question())


def test_the_demo_question_gives_all_further_names() -> None:
    """Two names known, eight found."""
    assert len(NAMES) == 10
    assert next_titles(demo_question(), NAMES[:2], 99) == NAMES[2:]


def test_only_as_many_as_wanted() -> None:
    """The bound holds."""
    assert next_titles(demo_question(), NAMES[:3], 2) == NAMES[3:5]


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("named Ann is 1\nnamed Ben is 2\nnamed Cleo is 3", ["Ann"]),
        ("named Ann is 1\nnamed Ben is 2\nnamed Cleo is 3", ["Ann", "Zoe"]),
        ("named Ann is 1\nnamed Ben is 2\nnamed Cleo is 3", ["Ben", "Ann"]),
        ("named Ann is 1\nnamed Ben is 2", ["Ann", "Ben"]),
        ("no titles here", ["Ann", "Ben"]),
        ("Ann Ben Cleo", ["Ann", "Ben"]),
        ("", ["Ann", "Ben"]),
    ],
)
def test_no_pattern_no_guess(text: str, titles: list[str]) -> None:
    """One title, an unknown one, the wrong order, no further record, no marks around: nothing."""
    assert next_titles(text, titles, 5) == []


def test_guesses_can_be_titles() -> None:
    """What could not be a title is not guessed, and guessing ends there."""
    text = "- item: Ann!\n- item: Ben!\n- item: a: b!\n- item: Cleo!"
    assert next_titles(text, ["Ann", "Ben"], 5) == []


def test_the_papers_questions(paper_data: Path) -> None:
    """In all of the paper's retrieval questions every further name is guessed."""
    right = total = 0
    for stem in ("retrieval_10", "retrieval_30"):
        for line in (paper_data / f"{stem}.jsonl").read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["prompt"]
            names = re.findall(r"student named (.+?) is \d+ years old", text)
            right += sum(
                a == b for a, b in zip(next_titles(text, names[:2], 99), names[2:], strict=False)
            )
            total += len(names) - 2
    assert total > 1500
    assert right == total


def test_what_two_records_have_in_common_by_chance_is_no_pattern() -> None:
    """How the record before ends, alike for two of them, does not hide the others."""
    ends = ["sea.", "tea.", "hills.", "pea.", "end"]
    names = ["Ann", "Ben", "Cleo", "Dora", "Egon"]
    lines = [
        f"The student named {name} is {20 + place} and likes {end}"
        for place, (name, end) in enumerate(zip(names, ends, strict=True))
    ]
    text = "\n".join(lines)
    assert next_titles(text, names[:3], 4) == names[3:]
    assert next_titles(text, names[:2], 4) == names[2:]
    assert next_titles(" / ".join(lines), names[:4], 4) == names[4:]


def test_a_title_that_begins_like_another_is_found_in_its_own_place() -> None:
    """Places are looked for one behind the other, from the last title backwards."""
    text = "named Li is 1\nnamed Lily is 2\nnamed Lin is 3\nnamed Lina is 4\nnamed Bo is 5\n"
    assert next_titles(text, ["Li", "Lily"], 9)[:1] == ["Lin"]


@pytest.mark.parametrize("frame", ["GPA of {}", "{} (student)", "Check: {} - GPA", "A {}"])
def test_names_in_a_frame_of_the_models_own(frame: str) -> None:
    """Words that all titles share are no part of the record; names that begin alike are."""
    names = ["Anna", "Andy", "Anton", "Anke", "Berta"]
    text = "\n".join(f"The student named {name} is 20." for name in names)
    titles = [frame.format(name) for name in names]
    assert next_titles(text, titles[:2], 9) == titles[2:]
    assert next_titles(text, titles[:3], 1) == titles[3:4]


def test_titles_that_are_alike_altogether_guess_nothing() -> None:
    """Nothing is left of them without their frame."""
    assert next_titles("a a a", ["step of", "step of "], 3) == []
    assert next_titles("GPA of x", ["GPA of", "GPA of"], 3) == []
