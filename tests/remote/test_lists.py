"""A server's answer that turns out to be a list, as with a local model."""

from __future__ import annotations

import pytest

from langchain_pos.results.data import NO_LIST
from tests.support.completions_server import Server, told
from tests.support.native_list import ASKED, GOES_ON, LIST, NATIVE
from tests.support.scripted import scripted_llm

RULES = {"once": LIST, "goes on": GOES_ON}


@pytest.mark.parametrize("name", RULES)
def test_the_answer_is_that_of_a_local_model(server: Server, name: str) -> None:
    """The same script in this process and behind a server: the same branches and text."""
    server.rules.clear()
    server.rules.update(RULES[name])
    local, _ = scripted_llm(RULES[name], **NATIVE)
    theirs, ours = server.llm(**NATIVE).invoke("Who?"), local.invoke("Who?")
    assert theirs.text == ours.text
    assert [block.plan.titles for block in theirs.blocks] == [b.plan.titles for b in ours.blocks]
    assert told(theirs)["blocks"] == told(ours)["blocks"]


def test_what_is_no_entry_is_no_list(server: Server) -> None:
    """The request ends with the first words that are none; nothing was cut."""
    server.rules.clear()
    server.rules.update({**LIST, "1. **Ann**: ...\n\n": "That is all."})
    result = server.llm(**NATIVE).invoke("Who?")
    assert result.fallback_reason == NO_LIST


def test_a_long_first_entry_is_asked_for_again(server: Server) -> None:
    """A server cannot go on with what was cut; the others do not see it then."""
    server.rules.clear()
    long = " ".join(map(str, range(120)))
    server.rules.update({**LIST, "1. **Ann**:": f" {long}\n\n2. **Ben**:"})
    result = server.llm(**NATIVE, max_branch_tokens=300).invoke("Who?")
    assert [branch.text for branch in result.branches] == [long, "is small."]
    prompts = [prompt.rpartition("Some of them:\n\n")[2] for prompt in server.prompts]
    assert prompts.count("1. **Ann**:") == 2
    assert prompts.count("2. **Ben**:") == 1


def test_what_is_no_object_is_no_example(server: Server) -> None:
    """Without a grammar a first branch may fail; it is tried again, unseen by the others."""
    server.rules.clear()
    server.rules.update({**LIST, "1. **Ann**:": " no json", "2. **Ben**:": ' {"tall": true}'})
    schema = {"type": "object", "properties": {"tall": {"type": "boolean"}}, "required": ["tall"]}
    result = server.llm(**NATIVE, branch_schema=schema).invoke("Who?")
    assert [bool(branch.error) for branch in result.branches] == [True, False]
    assert sum(prompt.endswith("Some of them:\n\n1. **Ann**:") for prompt in server.prompts) == 4
    assert any(prompt.endswith("Some of them:\n\n2. **Ben**:") for prompt in server.prompts)


def test_further_heads_are_asked_for_where_the_list_began(server: Server) -> None:
    """Not after the bodies."""
    server.rules.clear()
    server.rules.update(GOES_ON)
    server.llm(**NATIVE).invoke("Who?")
    elided = "".join(f"{n}. **{t}**: ...\n\n" for n, t in enumerate(("Ann", "Ben", "Cem"), 1))
    assert f"Question: {ASKED}Some of them:\n\n{elided}" in server.prompts
