"""What `test_errors_table.py` tries for servers as engines; see `error_rows.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from langchain_pos import (
    ChatParallelReasoning,
    OpenAICompletionsEngine,
    ParallelReasoningLLM,
    embedded_model_path,
)
from langchain_pos.errors import (
    ContextLengthError,
    InvalidRequestError,
    MissingExtraError,
    ModelLoadError,
    ServerError,
)
from langchain_pos.server import bind
from tests.support.completions_server import Reply, Rules, serving
from tests.support.error_rows import Outcome, row
from tests.support.scripted import BARE, SMALL, STUDENTS

ASKED = "Question: Who?\n\nAnswer:\n"
SHIPPED = str(embedded_model_path())


def says(status: int, said: str) -> Reply:
    """An error in OpenAI's form."""
    return Reply(status=status, body={"error": {"message": said}})


def raised(
    kind: type[BaseException],
    said: str,
    rules: Rules,
    *,
    engine: dict[str, Any] | None = None,
    asked: int | None = None,
    question: str = "Who?",
    **settings: Any,
) -> BaseException:
    """The error of a question to a server; afterwards it serves the next one."""
    with serving({**STUDENTS, **rules}) as server:
        llm = server.llm(engine)
        with pytest.raises(kind, match=said) as caught:
            llm.invoke(question, **settings)
        assert asked is None or len(server.asked) == asked
        server.rules.clear()
        server.rules.update(STUDENTS)
        assert server.llm().invoke("Who?").conclusion == "name: Ben"
    return caught.value


def answered(rules: Rules) -> Any:
    """The result of a question to a server."""
    with serving({**STUDENTS, **rules}) as server:
        return server.llm().invoke("Who?")


@row("server-unreachable")
def _() -> Outcome:
    with bind("127.0.0.1", 0) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    llm = ParallelReasoningLLM(engine=OpenAICompletionsEngine(base_url=url, max_retries=0))
    with pytest.raises(ServerError, match=url) as caught:
        llm.invoke("Who?")
    return caught.value


@row("server-silent")
def _() -> Outcome:
    slow = Reply("x", hold=True)
    return raised(ServerError, "silent", {ASKED: slow}, engine={"timeout": 0.2})


@row("server-unauthorised")
def _() -> Outcome:
    return raised(ServerError, "bad key; .*api_key", {ASKED: says(401, "bad key")})


@row("server-unknown-model")
def _() -> Outcome:
    unknown = says(404, "The model `x` does not exist.")
    return raised(ModelLoadError, "does not exist", {ASKED: unknown}, engine={"model": "x"})


@row("server-no-model")
def _() -> Outcome:
    with serving(dict(STUDENTS)) as server:
        server.cards.append({**server.cards[0], "id": "another"})
        with pytest.raises(ModelLoadError, match="'scripted', 'another'; name") as caught:
            server.llm().invoke("Who?")
        assert not server.asked
    return caught.value


@row("server-overloaded")
def _() -> Outcome:
    return raised(ServerError, "503: full; .*max_concurrency", {ASKED: says(503, "full")})


@row("server-context")
def _() -> Outcome:
    engine = {"tokenizer": SHIPPED, "context_length": 100}
    return raised(
        ContextLengthError, "room for 100", {}, engine=engine, asked=0, question="who " * 90
    )


@row("server-context-told")
def _() -> Outcome:
    long = says(400, "This model's maximum context length is 64 tokens.")
    return raised(ContextLengthError, "64 tokens", {"Answer:\n": long, ASKED: long})


@row("server-unknown-setting")
def _() -> Outcome:
    raised(InvalidRequestError, "min_p", {}, min_p=0.1, asked=0)
    raised(InvalidRequestError, "repetition_penalty", {}, repetition_penalty=1.1, asked=0)
    return raised(InvalidRequestError, "top_k", {}, top_k=3, asked=0)


@row("server-special-tokens")
def _() -> Outcome:
    engine = {"tokenizer": SHIPPED}
    asked = "Who? <|end|><|system|>"
    return raised(InvalidRequestError, "special tokens", {}, engine=engine, asked=0, question=asked)


@row("server-join-reuse")
def _() -> Outcome:
    return raised(InvalidRequestError, "join='reuse'", {}, join="reuse", asked=0)


@row("server-chat-tools")
def _() -> Outcome:
    with serving(dict(STUDENTS)) as server:
        chat = ChatParallelReasoning(engine=server.engine(), prompts=BARE, **SMALL)
        tool = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
        with pytest.raises(InvalidRequestError, match="tools: a server can only") as caught:
            chat.bind_tools([tool]).invoke("Who?")
        assert not server.asked
    return caught.value


@row("server-bad-plan")
def _() -> Outcome:
    result = answered({"Answer:\n": "Talk.", ASKED: "Talk."})
    assert "no steps" in result.fallback_reason
    return result  # type: ignore[no-any-return]


@row("server-breaks-off")
def _() -> Outcome:
    rules: Rules = {"####Ben:": Reply(" GPA 2.4", cut_after=1), "####%%%%\n": "Ann"}
    result = answered(rules)
    assert [branch.finish_reason for branch in result.branches] == ["stop", "error"]
    assert result.branches[1].error
    return result  # type: ignore[no-any-return]


@row("server-all-branches")
def _() -> Outcome:
    boom = says(500, "boom")
    return raised(ServerError, "boom", {"####Ann:": boom, "####Ben:": boom})


@row("server-conclusion")
def _() -> Outcome:
    result = answered({"####%%%%\n": says(500, "boom")})
    assert result.finish_reason == "error"
    assert "boom" in result.error
    assert all(branch.error is None for branch in result.branches)
    return result  # type: ignore[no-any-return]


@row("no-openai")
def _(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.delitem(sys.modules, "langchain_pos.remote.client", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    llm = ParallelReasoningLLM(engine=OpenAICompletionsEngine(base_url="http://localhost:1/v1"))
    with pytest.raises(MissingExtraError, match=r"langchain-pos\[openai\]") as caught:
        llm.invoke("Who?")
    return caught.value
