"""In a chain, an output parser reads the answer as a text."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser

from langchain_pos import ChatParallelReasoning, ParallelReasoningLLM
from tests.support.scripted import STUDENTS, scripted_llm


@pytest.fixture(params=["or", "pipe"])
def chain(request: pytest.FixtureRequest) -> Any:
    """The runnable with a parser after it."""
    llm, _ = scripted_llm(STUDENTS)
    if request.param == "or":
        return llm | StrOutputParser()
    return llm.pipe(StrOutputParser())


async def test_the_parser_gets_the_readable_answer(chain: Any) -> None:
    """The same for one answer, many, and a stream, of which the conclusion comes in pieces."""
    llm, _ = scripted_llm(STUDENTS)
    text = str(llm.invoke("Who?"))
    assert text.startswith("Let us see.\n\nAnn: ")
    assert text.endswith("\n\nname: Ben")
    assert chain.invoke("Who?") == text
    assert await chain.ainvoke("Who?") == text
    assert chain.batch(["Who?", "Who?"]) == [text, text]
    pieces = list(chain.stream("Who?"))
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert "".join([piece async for piece in chain.astream("Who?")]) == text


def test_sequential_answers_and_other_steps() -> None:
    """A sequential answer is its text; what is no parser gets the result."""
    llm, _ = scripted_llm({"Who?\n\nAnswer:\n": "Ben."})
    assert (llm | StrOutputParser()).invoke("Who?", mode="sequential") == "Ben."
    assert (llm | (lambda result: result.mode)).invoke("Who?", mode="sequential") == "sequential"


@pytest.mark.parametrize("kind", [ParallelReasoningLLM, ChatParallelReasoning])
def test_repr_names_the_model(kind: Any) -> None:
    """And what differs from the defaults, nothing else."""
    assert repr(kind()) == f"{kind.__name__}(model='langchain_pos/embedded')"
    assert repr(kind(model="a/b", seed=3)) == f"{kind.__name__}(model='a/b', seed=3)"
