"""Questions that the page's tests ask, what their model answers, and results made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_pos import ReasoningResult
from langchain_pos.results.data import (
    Block,
    BranchResult,
    Plan,
    StagePasses,
    StageTimings,
    TokenUsage,
)
from langchain_pos.results.plain_text import strip_control_characters
from tests.support.hostile import HTML
from tests.support.scripted import STUDENTS, Halt, Script
from tests.support.serving import Running

INJECTION = HTML[0]
FURTHER = {
    "Both?\n\nAnswer:\n": "####Cyd:......\n####Dan:......\n####%%%%",
    "####Cyd:": " a",
    "####Dan:": " b",
    "b\n####%%%%\n": "Now cities.\n####Rome:......\n####Oslo:......\n####%%%%",
    "####Rome:": " warm",
    "####Oslo:": " cold",
    "cold\n####%%%%\n": "So Rome.",
}
RULES = {
    **{cue: text for cue, text in STUDENTS.items() if cue != "####%%%%\n"},
    "2.4\n####%%%%\n": STUDENTS["####%%%%\n"],
    **FURTHER,
    "Hello?\n\nAnswer:\n": "one two three four",
    "Long?\n\nAnswer:\n": "…",
    "Evil?\n\nAnswer:\n": "####Eve:......\n####Mallory:......\n####%%%%",
    "####Eve:": f" {INJECTION}",
    "####Mallory:": " <b>bold</b>",
    "bold</b>\n####%%%%\n": "</div><svg onload=x()>",
}


def result_of(server: Running, question: str) -> ReasoningResult:
    """The result that another client gets."""
    return ReasoningResult.model_validate(server.ask(question).reasoning)


def shown(result: ReasoningResult) -> list[tuple[str, str]]:
    """A result's branches as cards show them."""
    return [
        (strip_control_characters(branch.title), strip_control_characters(branch.text))
        for branch in result.branches
    ]


@contextmanager
def halted(script: Script, at: int) -> Iterator[Halt]:
    """The model stops in this pass, and goes on when the block ends, if not before."""
    halt = Halt(script, at)
    try:
        yield halt
    finally:
        halt.go_on.set()


def many(branches: int, text: str = "GPA 3.1, wanted 2 to 3, no") -> ReasoningResult:
    """A result with so many branches."""
    titles = [f"Student {number}" for number in range(branches)]
    written = tuple(
        BranchResult(index=n, title=title, text=text, started=0.2, ended=0.9)
        for n, title in enumerate(titles)
    )
    return ReasoningResult(
        blocks=(Block(plan=Plan.of(titles, "Let us see."), branches=written),),
        conclusion="Nobody.",
        usage=TokenUsage(9, 500),
        timings=StageTimings(plan=0.2, expand=0.7, conclude=0.1),
        forward_passes=StagePasses(plan=10, expand=50, conclude=5),
    )
