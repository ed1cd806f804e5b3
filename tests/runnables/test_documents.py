from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda

from langchain_pos import InvalidRequestError, ParallelReasoningLLM, read_documents_chain
from langchain_pos.runnables.documents import cited_numbers
from tests.support.scripted import scripted_llm, without_clocks

DOCUMENTS = [
    Document("The mill is old.", id="a", metadata={"source": "mill.txt"}),
    Document("The inn is new.", id="b", metadata={"source": "inn.txt"}),
    Document("The barn is old.", id="c", metadata={"source": "barn.txt"}),
]
RULES: dict[str, str | list[str]] = {
    "####Document 1:": " old, yes",
    "####Document 2:": " new, no",
    "####Document 3:": " old, yes",
    "####%%%%\n": "Documents 1 and 3, not 2 [7]",
}


class Shelf(BaseRetriever):
    """Returns all of its documents, as a retriever of LangChain does."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return self.documents


def shelf_chain(**options: Any) -> tuple[Any, Any]:
    """A chain over the three documents, and the script of its model."""
    llm, script = scripted_llm(RULES)
    return read_documents_chain(Shelf(documents=DOCUMENTS), llm, **options), script


def test_every_document_is_read_in_its_branch() -> None:
    """Readings stand in the retriever's order; cited are those that the conclusion names."""
    chain, _ = shelf_chain()
    answer = chain.invoke("Which are old?")
    assert answer["question"] == "Which are old?"
    assert answer["documents"] == DOCUMENTS
    readings = answer["readings"]
    assert [reading.document.id for reading in readings] == ["a", "b", "c"]
    assert [reading.number for reading in readings] == [1, 2, 3]
    assert [reading.branch.text for reading in readings] == ["old, yes", "new, no", "old, yes"]
    assert [reading.cited for reading in readings] == [True, False, True]
    assert answer["unknown_citations"] == [7]
    assert answer["result"].conclusion == "Documents 1 and 3, not 2 [7]"
    assert answer["result"].plan_attempts == 0


def test_branches_see_all_documents() -> None:
    """All documents and the question stand in the prompt that the branches share."""
    chain, script = shelf_chain()
    chain.invoke("Which are old?")
    prompt = script.passes[0][0].text
    for number, document in enumerate(DOCUMENTS, 1):
        assert f"Document {number}: {document.page_content}" in prompt
    assert "Question: Which are old?" in prompt


async def test_the_async_path_is_the_same() -> None:
    """`ainvoke` and `astream` give what `invoke` gives."""
    chain, _ = shelf_chain()
    once = chain.invoke("Which are old?")
    again = await chain.ainvoke("Which are old?")
    assert without_clocks(once["result"]) == without_clocks(again["result"])
    pieces = [piece async for piece in chain.astream("Which are old?")]
    whole = reduce(operator.add, pieces)
    assert without_clocks(whole["result"].result()) == without_clocks(once["result"])
    assert [r.cited for r in whole["readings"]] == [r.cited for r in again["readings"]]


def test_streamed_pieces_add_up() -> None:
    """Documents come first, then the answer piece by piece, then the readings."""
    chain, _ = shelf_chain()
    pieces = list(chain.stream("Which are old?"))
    keys = [next(iter(piece)) for piece in pieces]
    assert keys[:2] == ["question", "documents"]
    assert keys.count("result") > 5
    assert set(keys[-2:]) == {"readings", "unknown_citations"}
    whole = reduce(operator.add, pieces)
    assert set(whole) == {"question", "documents", "result", "readings", "unknown_citations"}
    assert whole["result"].conclusion == "Documents 1 and 3, not 2 [7]"
    assert whole["readings"] == [
        reading.model_copy(update={"branch": branch})
        for reading, branch in zip(whole["readings"], whole["result"].branches, strict=True)
    ]


def test_prompts_may_be_chats_and_name_metadata() -> None:
    """A chat prompt, a document prompt with metadata, and another label."""
    llm, script = scripted_llm(
        {"####Quelle 1:": " alt", "####Quelle 2:": " neu", "####Quelle 3:": " alt"}
        | {"####%%%%\n": "Quelle 2"}
    )
    chain = read_documents_chain(
        Shelf(documents=DOCUMENTS),
        llm,
        prompt=ChatPromptTemplate.from_messages(
            [("system", "Be short."), ("human", "{documents}\n{question}")]
        ),
        document_prompt=PromptTemplate.from_template("({source}) {page_content}"),
        label="Quelle",
    )
    answer = chain.invoke("Was ist neu?")
    assert "Quelle 2: (inn.txt) The inn is new." in script.passes[0][0].text
    assert [reading.cited for reading in answer["readings"]] == [False, True, False]


def test_without_branches_readings_have_none() -> None:
    """An answer in the ordinary way still says which documents it cites."""
    llm, _ = scripted_llm({"rests on.\n\nAnswer:\n": "Document 2"}, mode="sequential")
    answer = read_documents_chain(Shelf(documents=DOCUMENTS), llm).invoke("Which is new?")
    assert [reading.branch for reading in answer["readings"]] == [None] * 3
    assert [reading.cited for reading in answer["readings"]] == [False, True, False]


def test_a_fallback_answers_when_nothing_is_found() -> None:
    """What the error says to do works."""
    llm, _ = scripted_llm(RULES)
    chain = read_documents_chain(RunnableLambda(lambda _: []), llm)
    safe = chain.with_fallbacks(
        [RunnableLambda(lambda question: {"question": question, "documents": []})],
        exceptions_to_handle=(InvalidRequestError,),
    )
    assert safe.invoke("Who?") == {"question": "Who?", "documents": []}


def test_the_graph_shows_the_way() -> None:
    """`get_graph` names the steps."""
    chain, _ = shelf_chain()
    drawn = chain.get_graph().draw_mermaid()
    for name in ("question", "Shelf", "PromptTemplate", "readings"):
        assert name in drawn


def test_the_schemas_say_what_goes_in_and_comes_out() -> None:
    """A text goes in; the keys of the answer come out."""
    chain, _ = shelf_chain()
    assert chain.get_input_jsonschema()["type"] == "string"
    keys = {"question", "documents", "result", "readings", "unknown_citations"}
    assert set(chain.get_output_jsonschema()["$defs"]["DocumentsAnswer"]["properties"]) == keys


def test_the_shipped_model_reads_documents() -> None:
    """It finds the document with a year, and cites it."""
    documents = [
        Document("Velmara is a quiet place. It was built in 1236."),
        Document("This is about Okstead. Its history began in 1818."),
        Document("Drumley is a bold place. It was built in 1735."),
    ]
    chain = read_documents_chain(Shelf(documents=documents), ParallelReasoningLLM())
    answer = chain.invoke("Which document names the year 1735?")
    assert [reading.cited for reading in answer["readings"]] == [False, False, True]
    assert answer["unknown_citations"] == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Document 3", [3]),
        ("documents 1, 2 and 4", [1, 2, 4]),
        ("Documents 2-4", [2, 3, 4]),
        ("Documents 2 to 4, and 9", [2, 3, 4, 9]),
        ("Document 12, not Document 1", [12, 1]),
        ("see [3] and [1, 2]", [3, 1, 2]),
        ("[2][2] Document 2", [2]),
        ("in 12 words, of 3 kinds", []),
        ("mydocument 3", []),
        ("文档 3、4", []),
        ("Document 4-2", [4]),
        ("Documents 1-999999", list(range(1, 1002))),
        ("", []),
    ],
)
def test_citations_are_found(text: str, numbers: list[int]) -> None:
    """Labels with numbers, lists and ranges, and numbers in brackets; no other number."""
    assert cited_numbers(text) == numbers


def test_citations_in_other_languages() -> None:
    """The label may be of a language that writes no spaces."""
    assert cited_numbers("见文档3、4和6", "文档") == [3, 4, 6]
