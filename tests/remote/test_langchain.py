"""Questions over a server, from LangChain: chains, callbacks, chat models, settings."""

from __future__ import annotations

import asyncio
import pickle
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from pydantic import ValidationError

from langchain_pos import (
    ChatParallelReasoning,
    OpenAICompletionsEngine,
    ParallelReasoningLLM,
    read_documents_chain,
)
from langchain_pos.errors import InvalidRequestError, ModelLoadError
from langchain_pos.results.data import TokenUsage
from langchain_pos.server import make_server
from tests.support.completions_server import Gpa, Server, told
from tests.support.scripted import BARE, SMALL


class TestLangChain:
    def test_a_stream_adds_up_to_invoke(self, server: Server) -> None:
        """The chunks of all stages."""
        llm = server.llm()
        chunks = list(llm.stream("Who?"))
        assert told(reduce(add, chunks).result()) == told(llm.invoke("Who?"))
        assert {chunk.branch for chunk in chunks if chunk.stage == "expand"} == {0, 1}
        assert "".join(c.delta for c in chunks if c.branch == 1) == "GPA 2.4"

    async def test_async_is_the_same(self, server: Server) -> None:
        """`ainvoke`, `astream`, `abatch`, on whatever loop."""
        llm = server.llm()
        expected = told(await asyncio.to_thread(llm.invoke, "Who?"))
        assert told(await llm.ainvoke("Who?")) == expected
        chunks = [chunk async for chunk in llm.astream("Who?")]
        assert told(reduce(add, chunks).result()) == expected
        assert [told(r) for r in await llm.abatch(["Who?", "Who?"])] == [expected] * 2

    def test_one_runnable_outlives_event_loops(self, server: Server) -> None:
        """The connections belong to no caller's loop."""
        llm = server.llm()
        answers = [asyncio.run(llm.ainvoke("Who?")).conclusion for _ in range(2)]
        assert answers == ["name: Ben"] * 2

    def test_batches(self, server: Server) -> None:
        """Together, each with its own error."""
        llm = server.llm()
        found = llm.batch(["Who?", " ", "Who?"], return_exceptions=True)
        assert [type(each).__name__ for each in found] == [
            "ReasoningResult",
            "InvalidRequestError",
            "ReasoningResult",
        ]
        assert {i for i, _ in llm.batch_as_completed(["Who?", "Who?"])} == {0, 1}

    def test_callbacks_hear_of_stages_and_branches(self, server: Server) -> None:
        """A child run for each, and their tokens add up to the result's."""
        heard = Heard()
        result = server.llm().invoke("Who?", {"callbacks": [heard]})
        assert sorted(heard.models) == ["branch 0", "branch 1", "conclude", "plan"]
        assert heard.usage == result.usage
        assert heard.events.count("parallel_reasoning_branch_end") == 2

    def test_it_can_be_pickled_and_copied(self, server: Server) -> None:
        """Each process has its own connections."""
        llm = pickle.loads(pickle.dumps(server.llm()))
        assert llm.invoke("Who?").conclusion == "name: Ben"
        assert llm.model_copy(deep=True).invoke("Who?").conclusion == "name: Ben"

    def test_chains_of_ours_run_on_it(self, server: Server) -> None:
        """Documents are read in a branch each."""
        server.rules["####Document 1:"] = server.rules["####Document 2:"] = " a deer"
        server.rules["####%%%%\n"] = "Document 2"
        from langchain_core.documents import Document
        from langchain_core.runnables import RunnableLambda

        found = RunnableLambda(lambda _: [Document("a"), Document("b")])
        answer = read_documents_chain(found, server.llm()).invoke("Which?")
        assert [reading.cited for reading in answer["readings"]] == [False, True]


class Heard(BaseCallbackHandler):
    """Collects what callbacks are told."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.events: list[str] = []
        self.usage = TokenUsage()

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.models.append(kwargs["name"])

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        usage = response.generations[0][0].message.usage_metadata
        self.usage += TokenUsage(usage["input_tokens"], usage["output_tokens"])

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.events.append(name)


class TestChat:
    def test_plain_answers(self, server: Server) -> None:
        """Branches are reasoning, the conclusion is the text."""
        chat = ChatParallelReasoning(engine=server.engine(), prompts=BARE, **SMALL)
        message = chat.invoke("Who?")
        assert message.text == "name: Ben"
        assert message.response_metadata["mode"] == "parallel"
        streamed = reduce(add, list(chat.stream("Who?")))
        assert streamed.text == "name: Ben"
        assert not chat.profile["tool_calling"]

    def test_anything_else_is_refused(self, server: Server) -> None:
        """Tools, schemas, log-probabilities: with what to do instead."""
        chat = ChatParallelReasoning(engine=server.engine(), prompts=BARE, **SMALL)
        with pytest.raises(InvalidRequestError, match="ChatOpenAI"):
            chat.with_structured_output(Gpa).invoke("Who?")
        with pytest.raises(InvalidRequestError, match="logprobs"):
            chat.invoke("Who?", logprobs=True)
        with pytest.raises(InvalidRequestError, match="tokenizer="):
            chat.get_num_tokens("Who?")
        assert not server.asked

    def test_it_is_not_served_again(self, server: Server) -> None:
        """A server in front of a server has no slots to tell of."""
        chat = ChatParallelReasoning(engine=server.engine())
        with pytest.raises(InvalidRequestError, match="is a server itself"):
            make_server(chat)


class TestFields:
    def test_a_local_engine_is_refused(self) -> None:
        """With the way that it is given."""
        with pytest.raises(ValidationError, match="from_engine"):
            ParallelReasoningLLM(engine=object())  # type: ignore[arg-type]

    def test_model_and_engine_contradict_each_other(self) -> None:
        """The server's model belongs to the engine."""
        engine = OpenAICompletionsEngine(base_url="http://localhost:1/v1")
        with pytest.raises(ValidationError, match=r"OpenAICompletionsEngine\(model="):
            ParallelReasoningLLM(engine=engine, model="x")

    def test_an_address_is_needed(self) -> None:
        """With its scheme."""
        with pytest.raises(ValidationError, match="http://localhost:8000/v1"):
            OpenAICompletionsEngine(base_url="localhost:8000")

    def test_the_key_is_not_shown(self) -> None:
        """Neither by `repr` nor in cache keys."""
        engine = OpenAICompletionsEngine(base_url="http://localhost:1/v1", api_key="secret")  # type: ignore[arg-type]
        assert "secret" not in repr(engine) + repr(ParallelReasoningLLM(engine=engine))
        assert "secret" not in str(ChatParallelReasoning(engine=engine)._identifying_params)

    def test_the_key_is_sent_and_no_other(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key of the environment belongs to another server."""
        monkeypatch.setenv("OPENAI_API_KEY", "elsewhere")
        server.llm({"api_key": "mine"}).invoke("Who?")
        server.llm().invoke("Who?")
        keys = {headers["authorization"] for headers in server.headers}
        assert keys == {"Bearer mine", "Bearer none"}

    def test_join_reuse_is_refused(self, server: Server) -> None:
        """The branches' keys and values are the server's."""
        with pytest.raises(InvalidRequestError, match="join='reuse'"):
            server.llm(join="reuse").invoke("Who?")

    def test_the_model_is_named_where_several_are_listed(self, server: Server) -> None:
        """Or none."""
        server.cards.clear()
        with pytest.raises(ModelLoadError, match="lists none; name the model"):
            server.llm().invoke("Who?")
        assert server.llm({"model": "x"}).invoke("Who?").model_name == "x"

    @pytest.mark.parametrize("status", [404, 500])
    def test_a_server_without_a_list_serves_all_the_same(self, server: Server, status: int) -> None:
        """Where the model is named; `transformers serve` fails over its list."""
        server.models_status = status
        assert server.llm({"model": "x"}).invoke("Who?").conclusion == "name: Ben"
        with pytest.raises(ModelLoadError, match="lists none"):
            server.llm().invoke("Who?")
