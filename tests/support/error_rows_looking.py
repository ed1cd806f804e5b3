"""What `test_errors_table.py` tries for figures and document chains in `docs/errors.md`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda

from langchain_pos import ReasoningChunk, ReasoningResult, read_documents_chain
from langchain_pos.errors import InvalidRequestError, MissingExtraError
from tests.support.error_rows import Outcome, row
from tests.support.error_rows_models import ROWS
from tests.support.hostile import hostile_result
from tests.support.scripted import scripted_llm

__all__ = ["ROWS"]


@row("no-matplotlib")
def _(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="langchain-pos"):
        hostile_result(("a", "b")).plot_mask()
    with pytest.raises(MissingExtraError, match="langchain-pos") as caught:
        hostile_result(("a", "b")).plot_timeline()
    return caught.value


@row("no-timings")
def _() -> Outcome:
    with pytest.raises(InvalidRequestError, match="no timings") as caught:
        ReasoningChunk(conclusion="x").plot_timeline()
    return caught.value


@row("no-block")
def _() -> Outcome:
    with pytest.raises(InvalidRequestError, match="the result has 1"):
        hostile_result(("a", "b")).plot_mask(1)
    with pytest.raises(InvalidRequestError, match="sequential") as caught:
        ReasoningResult(mode="sequential", conclusion="x").plot_mask()
    return caught.value


def unread(documents: list[Document], said: str, **settings: int) -> Outcome:
    """The error of a chain over these documents, which must cost no pass."""
    llm, script = scripted_llm({}, **settings)
    chain = read_documents_chain(RunnableLambda(lambda _: documents), llm)
    with pytest.raises(InvalidRequestError, match=said) as caught:
        chain.invoke("Who?")
    assert script.passes == []
    return caught.value


@row("no-documents")
def _() -> Outcome:
    return unread([], "no documents for 'Who\\?'")


@row("too-many-documents")
def _() -> Outcome:
    return unread([Document("x")] * 3, "allowed are 1 to 2", max_branches=2)


@row("prompt-without-documents")
def _() -> Outcome:
    llm, _ = scripted_llm({})
    with pytest.raises(InvalidRequestError, match=r"no \{documents\}") as caught:
        read_documents_chain(
            RunnableLambda(lambda _: []), llm, prompt=PromptTemplate.from_template("{question}")
        )
    return caught.value
