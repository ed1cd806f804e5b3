"""Read each document in its own branch, then answer with citations.

A retriever finds N documents; all of them go into the prompt, which every branch sees, and each
gets one branch: N readings take as many forward passes as the longest of them. The conclusion then
answers from the readings and cites documents by their numbers.

    question ─ retriever ─ prompt ─ llm, one step for each document ─ citations
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import Any

from langchain_core.documents import Document
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.retrievers import RetrieverLike
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from langchain_pos.errors import InvalidRequestError
from langchain_pos.results.data import BranchResult, ReasoningRequest
from langchain_pos.results.result import ReasoningResult
from langchain_pos.runnables.inputs import ReasoningInput, as_request

LABEL = "Document"
"""The name of a document, before its number."""

DOCUMENTS_PROMPT = PromptTemplate.from_template(
    "Here are {count} documents:\n\n{documents}\n\nQuestion: {question}\n"
    "Name the documents that your answer rests on."
)
"""Asks about the documents; a replacement needs `{documents}` and `{question}`."""

DOCUMENT_PROMPT = PromptTemplate.from_template("{page_content}")
"""How a document appears in the prompt, after its label; metadata may be used, too."""


class Reading(BaseModel):
    """A document and its branch's text about it.

    Attributes:
        number: its number in the prompt and in citations, from 1.
        document: what the retriever returned.
        branch: the reading; None if the question was answered without branches.
        cited: whether the conclusion names it.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    document: Document
    branch: BranchResult | None
    cited: bool


class DocumentsAnswer(TypedDict):
    """The output of `read_documents_chain`; while streaming, pieces with some of the keys.

    Attributes:
        question: as asked.
        documents: as the retriever returned them, in order.
        result: the whole result; pieces of it while streaming.
        readings: one for each document, in the same order.
        unknown_citations: cited numbers that no document has.
    """

    question: str
    documents: list[Document]
    result: ReasoningResult
    readings: list[Reading]
    unknown_citations: list[int]


def read_documents_chain(
    retriever: RetrieverLike,
    llm: Runnable[ReasoningInput, ReasoningResult],
    *,
    prompt: BasePromptTemplate[Any] = DOCUMENTS_PROMPT,
    document_prompt: BasePromptTemplate[str] = DOCUMENT_PROMPT,
    label: str = LABEL,
) -> Runnable[str, DocumentsAnswer]:
    """A chain from a question to an answer with readings and citations.

    It consists of LangChain's own parts, so streaming, batches, callbacks, `with_config` and
    `get_graph` work as in any chain. Streamed pieces add up with `+`; those with the key "result"
    carry the answer while it is written.

    Args:
        retriever: any runnable from a text to documents.
        llm: a `ParallelReasoningLLM`, or one with `bind`, `with_retry` or `with_fallbacks`.
        prompt: text or chat prompt with `{documents}` and `{question}`, optionally `{count}`.
        document_prompt: with `{page_content}` and names of metadata that all documents have.
        label: name of a document; its branch is titled with `label` and its number.

    Raises:
        InvalidRequestError: the prompt lacks a variable. At run time: the retriever finds nothing,
            or more documents than `max_branches`.

    Examples:
        >>> chain = read_documents_chain(retriever, ParallelReasoningLLM())  # doctest: +SKIP
        >>> answer = chain.invoke("Which document names the animal deer?")  # doctest: +SKIP
        >>> [r.document for r in answer["readings"] if r.cited]  # doctest: +SKIP
    """
    missing = {"documents", "question"} - set(prompt.input_variables)
    if missing:
        raise InvalidRequestError(
            f"the prompt has no {' and no '.join(f'{{{name}}}' for name in sorted(missing))}; "
            "it must contain {documents} and {question}"
        )

    def request(found: dict[str, Any]) -> ReasoningRequest:
        documents = found["documents"]
        if not documents:
            raise InvalidRequestError(
                f"the retriever found no documents for {found['question']!r}, so there is nothing "
                "to read; rephrase the question, widen the search, or give the chain a fallback "
                "(`with_fallbacks`) that answers without documents"
            )
        titles = [f"{label} {number}" for number in range(1, len(documents) + 1)]
        texts = [format_document(document, document_prompt) for document in documents]
        asked: PromptValue = prompt.invoke(
            {
                "count": len(documents),
                "documents": "\n".join(
                    f"{title}: {text}" for title, text in zip(titles, texts, strict=True)
                ),
                "question": found["question"],
            }
        )
        return ReasoningRequest.model_validate({**dict(as_request(asked)), "steps": titles})

    def readings(found: dict[str, Any]) -> list[Reading]:
        documents, result = found["documents"], found["result"]
        branches = result.blocks[0].branches if result.blocks else [None] * len(documents)
        cited = cited_numbers(result.conclusion, label)
        return [
            Reading(number=number, document=document, branch=branch, cited=number in cited)
            for number, (document, branch) in enumerate(zip(documents, branches, strict=True), 1)
        ]

    def unknown(found: dict[str, Any]) -> list[int]:
        cited = cited_numbers(found["result"].conclusion, label)
        return [number for number in cited if not 1 <= number <= len(found["documents"])]

    chain: Runnable[Any, Any] = (
        RunnableLambda(_question, name="question")
        | RunnablePassthrough.assign(documents=itemgetter("question") | retriever)
        | RunnablePassthrough.assign(result=RunnableLambda(request, name="prompt") | llm)
        | RunnablePassthrough.assign(
            readings=RunnableLambda(readings), unknown_citations=RunnableLambda(unknown)
        )
    )
    return chain.with_types(input_type=str, output_type=DocumentsAnswer).with_config(
        run_name="read_documents"
    )


def _question(question: str) -> dict[str, str]:
    return {"question": question}


_NUMBER = r"\d{1,6}"
_SEVERAL = rf"{_NUMBER}(?:\s*(?:,\s*and|,\s*or|[,;&、–-]|and|or|to|和|至)\s*{_NUMBER})*"
_ONE_OR_RANGE = re.compile(rf"({_NUMBER})(?:\s*(?:to|[–-]|至)\s*({_NUMBER}))?")
_LONGEST_RANGE = 1000


def cited_numbers(text: str, label: str = LABEL) -> list[int]:
    """The numbers of the documents that a text cites, in order of citation, each once.

    Citations are "Document 3", "documents 1, 2 and 4", "Documents 2-4", and any number in square
    brackets: "[3]", "[1, 2]".

    Examples:
        >>> cited_numbers("Documents 1 and 3 [5, 3] say so, in 12 words.")
        [1, 3, 5]
    """
    named = rf"(?<![A-Za-z0-9]){re.escape(label)}s?\s*({_SEVERAL})"
    cited = re.finditer(rf"{named}|\[\s*({_SEVERAL})\s*\]", text, re.IGNORECASE)
    numbers: dict[int, None] = {}
    for match in cited:
        for first, last in _ONE_OR_RANGE.findall(match[1] or match[2]):
            end = min(int(last or first), int(first) + _LONGEST_RANGE)
            numbers |= dict.fromkeys(range(int(first), max(end, int(first)) + 1))
    return list(numbers)
