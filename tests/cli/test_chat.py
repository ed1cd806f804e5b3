"""`langchain-pos chat`, against a fake runnable."""

from __future__ import annotations

import pytest

from tests.support.fake_runnable import FakeLLM, llm, run

__all__ = ["llm"]  # a fixture


def turns(llm: FakeLLM) -> list[list[tuple[str, str]]]:
    """What was asked with each question, without the answers' own layout."""
    return [[(r, t.splitlines()[-1]) for r, t in asked["messages"]] for asked, _ in llm.asked]


def test_a_conversation_keeps_its_turns(llm: FakeLLM) -> None:
    """Each question goes with those before it and their answers; `/new` forgets them."""
    done = run("chat", "--model", "m", "--system", "Be brief.", stdin="Who?\n\nWhy?\n/new\nWho?\n")
    assert done.exit_code == 0
    assert done.stdout.count("name: Ben") == 3
    first = [("system", "Be brief."), ("user", "Who?")]
    assert turns(llm) == [first, [*first, ("assistant", "name: Ben"), ("user", "Why?")], first]


def test_a_question_that_fails_is_left_out(llm: FakeLLM) -> None:
    """The error is one line, the conversation goes on without it, and `/exit` ends it."""
    done = run("chat", "--model", "m", stdin="too long\nWho?\n/exit\nWho?\n")
    assert done.exit_code == 0
    assert "9000 tokens, the model reads 2048 (/new forgets the conversation)" in done.stderr
    assert turns(llm) == [[("user", "too long")], [("user", "Who?")]]


def test_an_interrupted_answer_stays_in_the_conversation(llm: FakeLLM) -> None:
    """The next question goes with as much of it as was written."""
    done = run("chat", "--model", "m", stdin="stop here\nWho?\n")
    assert done.exit_code == 0
    assert "what was written stays" in done.stderr
    assert [role for role, _ in llm.asked[-1][0]["messages"]] == ["user", "assistant", "user"]
    assert "####Ben: GPA 2.40" in llm.asked[-1][0]["messages"][1][1]


@pytest.mark.parametrize("line", ["/foo", "/hlep me", "/new please", "/"])
def test_an_unknown_command_is_not_asked(llm: FakeLLM, line: str) -> None:
    """The message names those that exist, and the conversation goes on."""
    done = run("chat", "--model", "m", stdin=f"{line}\nWho?\n")
    assert f"unknown command {line!r}; use /new, /help and /exit" in done.stderr
    assert turns(llm) == [[("user", "Who?")]]


@pytest.mark.parametrize("line", ["/etc/hosts: what is it?", "/tmp is full, what now?"])
def test_a_path_may_begin_a_question(llm: FakeLLM, line: str) -> None:
    """A command is a word alone, or nearly one that exists."""
    run("chat", "--model", "m", stdin=f"{line}\n")
    assert turns(llm) == [[("user", line)]]
