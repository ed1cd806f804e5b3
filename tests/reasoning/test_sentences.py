"""Sentences that stand in several branches."""

from __future__ import annotations

import pytest

from langchain_pos.reasoning.sentences import go_in_circles, sentences

SAME = "Start there and you will see. It is a good place for you. Go on to the next one then."


def test_sentences_of_a_body() -> None:
    """Marks of lists are none of theirs; an answer of a word or two is no sentence."""
    assert sentences("No. It is a cold day!\n   - **Wool** is quite warm here\n2.5") == [
        "It is a cold day!",
        "Wool** is quite warm here",
    ]
    assert sentences("今天的天气非常好。我们可以一起去公园。好。") == [
        "今天的天气非常好。",
        "我们可以一起去公园。",
    ]


@pytest.mark.parametrize(
    ("texts", "circles"),
    [
        ([], False),
        ([SAME], False),
        ([SAME, SAME], False),
        ([SAME, SAME, SAME], True),
        ([SAME, SAME.replace("there", "here"), SAME.replace("there", "near")], True),
        ([SAME, "Another one is not like it.", SAME], False),
        (["Not in range."] * 9, False),
        (["", "", ""], False),
        (["今天的天气非常好。我们可以一起去公园。"] * 3, True),
        ([f"GPA: 3.{n}. This is not in the range of 2.0 to 2.5." for n in range(9)], False),
        (["So it is here and there.", "So it is here and there. But not so at all."] * 2, False),
    ],
)
def test_lists_that_go_in_circles(texts: list[str], circles: bool) -> None:
    """Most entries mostly say what was said: a few words of their own do not save them."""
    assert go_in_circles(texts) is circles
