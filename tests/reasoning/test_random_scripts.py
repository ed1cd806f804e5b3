"""Models that write marks, ellipses, headings and blanks in any order: nothing goes wrong."""

from __future__ import annotations

import random
from functools import reduce
from operator import add
from typing import Any

import pytest

from tests.support.scripted import byte_level, chat_tokenizer, scripted_llm, without_clocks

PIECES = [
    "####a:......", "\n####a:......", "\n####b:......", "\n\n####d: ...", "####c:…", "####a:",
    "####", "##", "\n####%%%%", "\n####%%%%\n", "\n#### H\n", "...", ":", "\n", "  ", "x y", "END",
]  # fmt: skip
PLANS = [
    "####a:......\n####b:......\n####%%%%",
    "See.\n####b:......\n####c:......\n####a:......\n####%%%%",
    "####a:......\n####a:......\n####%%%%",
]


@pytest.mark.parametrize("seed", range(24))
def test_streams_drafts_and_errors_agree(seed: int) -> None:
    """The stream adds up to the result, drafts change no text, and what is empty says why."""
    draw = random.Random(seed)

    def text(pieces: int) -> str:
        return "".join(draw.choice(PIECES) for _ in range(draw.randrange(pieces)))

    tokenizer = draw.choice([byte_level(), chat_tokenizer()])
    rules: dict[str, str | list[str]] = {
        "####a:": [" " + text(4) for _ in range(3)],
        "####b:": [text(4) for _ in range(3)],
        "####c:": " c",
        "%%%%\n": [text(8) for _ in range(4)],
        "assistant\n" if tokenizer.chat_template else "Answer:\n": [draw.choice(PLANS), text(8)],
    }
    settings: dict[str, Any] = {
        "max_branches": draw.choice([2, 4, 64]),
        "max_parallel_branches": draw.choice([1, 2, 32]),
        "max_blocks": draw.choice([1, 3]),
        "max_conclusion_tokens": draw.choice([1, 30, 100]),
        "max_branch_tokens": draw.choice([1, 5, 24]),
        "join": draw.choice(["reprefill", "reuse"]),
        "visibility": draw.choice(["auto", "isolated", "titles"]),
        "stop": draw.choice([(), ("END",), ("\n",), ("####",)]),
    }
    llm, _ = scripted_llm(rules, tokenizer=tokenizer, positions=draw.choice([150, 400, 2048]))
    result = llm.invoke("Who?", **settings)
    streamed = reduce(add, llm.stream("Who?", **settings)).result()
    assert without_clocks(streamed) == without_clocks(result)
    drafted = llm.invoke("Who?", **settings, drafts=True)
    assert drafted.text == result.text
    assert [b.finish_reason for b in drafted.branches] == [b.finish_reason for b in result.branches]
    for branch in result.branches:
        assert bool(branch.error) == (branch.finish_reason == "error") == (not branch.text)
    assert bool(result.error) == (result.finish_reason == "error") == (not result.conclusion)
    assert llm.engine.slots_in_use == 0
