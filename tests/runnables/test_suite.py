"""What LangChain expects of any runnable, and langchain-tests has no suite for."""

from __future__ import annotations

import json
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd, dumps
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from pydantic import BaseModel, TypeAdapter

from langchain_pos import (
    ParallelReasoningLLM,
    ReasoningChunk,
    ReasoningRequest,
    ReasoningResult,
)
from langchain_pos.errors import InvalidRequestError, NonFiniteLogitsError
from tests.support.scripted import STUDENTS, random_llm, scripted_llm, without_clocks

SETTINGS: list[dict[str, Any]] = [
    {},
    {"mode": "sequential"},
    {"conclude": False},
    {"visibility": "titles"},
    {"drafts": False},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.01, "seed": 1},
    {"repetition_penalty": 1.3},
    {"max_branch_tokens": 1},
    {"max_parallel_branches": 1},
    {"max_blocks": 1},
    {"stop": ["e"]},
    {"allow_decline": False, "max_branches": 2},
]
ASK = {"question": "Which?", "steps": ["Ann", "Ben"]}


class TestSchemas:
    def test_input_schema_takes_what_invoke_takes(self) -> None:
        """Text, messages, a dict, a request."""
        llm, _ = scripted_llm(STUDENTS)
        schema = llm.get_input_jsonschema()
        assert {"ReasoningRequest", "BaseMessage"} <= set(schema["$defs"])
        kinds = {option.get("type", option.get("$ref")) for option in schema["anyOf"]}
        assert {"string", "array", "#/$defs/ReasoningRequest"} <= kinds
        request = schema["$defs"]["ReasoningRequest"]
        assert request["required"] == ["question"]
        assert set(schema["$defs"]["Step"]["properties"]) == {
            *("title", "prompt", "max_tokens", "temperature", "seed", "stop")
        }

    def test_output_schema_is_the_results(self) -> None:
        """A result's JSON is valid for it."""
        llm, _ = scripted_llm(STUDENTS)
        assert llm.get_output_jsonschema()["title"] == "ReasoningResult"
        result = llm.invoke("Who?")
        adapter = TypeAdapter(llm.get_output_schema())
        assert adapter.validate_json(result.model_dump_json()) == result

    def test_config_schema_has_the_configurable_fields(self) -> None:
        """Those that were made so, with their defaults."""
        llm, _ = scripted_llm(STUDENTS)
        changing = llm.configurable_fields(max_branch_tokens=ConfigurableField(id="room"))
        fields = changing.get_config_jsonschema()["$defs"]["Configurable"]["properties"]
        assert fields["room"]["default"] == 24


class TestConfig:
    @pytest.mark.parametrize("call", ["invoke", "stream", "batch"])
    def test_name_tags_and_metadata_reach_callbacks(self, call: str) -> None:
        """From `with_config` and from the call, added up."""
        starts: list[dict[str, Any]] = []

        class Starts(BaseCallbackHandler):
            def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
                starts.append(kwargs)

        llm, _ = scripted_llm(STUDENTS)
        named = llm.with_config(run_name="Reasoning", tags=["a"], metadata={"k": 1})
        config: Any = {"callbacks": [Starts()], "tags": ["b"], "metadata": {"l": 2}}
        given: Any = ["Who?"] if call == "batch" else "Who?"
        list(getattr(named, call)(given, config))
        assert starts[0]["name"] == "Reasoning"
        assert set(starts[0]["tags"]) == {"a", "b"}
        assert starts[0]["metadata"].items() >= {"k": 1, "l": 2}.items()

    def test_configurable_alternatives_choose_a_runnable(self) -> None:
        """One name in the config, another model."""
        llm, _ = scripted_llm(STUDENTS)
        other, _ = scripted_llm({**STUDENTS, "####%%%%\n": "name: Ann"})
        either = llm.configurable_alternatives(ConfigurableField(id="who"), other=other)
        assert either.invoke("Who?").conclusion == "name: Ben"
        config: Any = {"configurable": {"who": "other"}}
        assert either.invoke("Who?", config).conclusion == "name: Ann"

    def test_configurable_fields_keep_their_kind(self) -> None:
        """A schema and a budget, set in the config."""

        class Word(BaseModel):
            word: str

        llm, _ = scripted_llm(
            {**STUDENTS, "####Ann:": '{"word": "a"}', "####Ben:": '{"word": "b"}'}
        )
        changing = llm.configurable_fields(branch_schema=ConfigurableField(id="schema"))
        config: Any = {"configurable": {"schema": Word}}
        assert changing.invoke("Who?", config).branches[0].parsed == Word(word="a")
        assert changing.invoke("Who?").branches[0].parsed is None


class TestStreams:
    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
    async def test_a_streams_sum_is_what_invoke_returns(self, settings: dict[str, Any]) -> None:
        """For every setting, sync and async, with random weights."""
        llm = random_llm()
        given = "Which?" if settings.get("mode") == "sequential" else ASK
        expected = without_clocks(llm.invoke(given, **settings))
        whole = reduce(add, llm.stream(given, **settings))
        assert without_clocks(whole.result()) == expected
        chunks = [chunk async for chunk in llm.astream(given, **settings)]
        assert without_clocks(reduce(add, chunks).result()) == expected
        assert without_clocks(await llm.ainvoke(given, **settings)) == expected

    def test_a_chain_gives_partial_results(self) -> None:
        """A generator behind it sees every sum so far; the last one is whole."""
        llm, _ = scripted_llm(STUDENTS)

        def titles(chunks: Any) -> Any:
            whole = None
            for chunk in chunks:
                whole = chunk if whole is None else whole + chunk
                yield [[branch.title, branch.text] for branch in whole.branches]

        chain: Runnable[Any, Any] = llm | RunnableGenerator(titles)
        told = list(chain.stream("Who?"))
        assert len(told) > 20
        assert told[-1] == [["Ann", "GPA 3.1, outside"], ["Ben", "GPA 2.4"]]
        assert [["Ann", "G"], ["Ben", "G"]] in told

    def test_a_parallel_beside_it(self) -> None:
        """`RunnableParallel`: each key its own."""
        llm, _ = scripted_llm(STUDENTS)
        both = RunnableParallel(
            answer=llm, branches=llm.bind(conclude=False), q=RunnablePassthrough()
        )
        found = both.invoke("Who?")
        assert found["answer"].conclusion == "name: Ben"
        assert not found["branches"].concluded
        assert found["q"] == "Who?"
        keys = {key for chunk in both.stream("Who?") for key in chunk}
        assert keys == {"answer", "branches", "q"}

    def test_branches_can_be_mapped(self) -> None:
        """`map()` over `result.branches`."""
        llm, _ = scripted_llm(STUDENTS)
        shout = RunnableLambda(lambda branch: branch.text.upper()).map()
        chain = llm | RunnableLambda(lambda result: list(result.branches)) | shout
        assert chain.invoke("Who?") == ["GPA 3.1, OUTSIDE", "GPA 2.4"]


class TestBatches:
    @pytest.mark.parametrize("limit", [None, 1, 2])
    async def test_order_and_errors_are_kept(self, limit: int | None) -> None:
        """`return_exceptions`: each question its own outcome, in its own place."""
        llm, _ = scripted_llm({**STUDENTS, "NaN?\n\nAnswer:\n": "\0"})
        given: Any = ["Who?", "", {"question": "Who?", "steps": ["Ben"]}, "NaN?", 7]
        config: Any = {"max_concurrency": limit}
        sync = llm.batch(given, config, return_exceptions=True)
        in_tasks = await llm.abatch(given, config, return_exceptions=True)
        done: dict[int, Any] = dict(llm.batch_as_completed(given, config, return_exceptions=True))
        for found in (sync, in_tasks, [done[place] for place in range(5)]):
            assert [type(item) for item in found] == [
                ReasoningResult,
                InvalidRequestError,
                ReasoningResult,
                NonFiniteLogitsError,
                InvalidRequestError,
            ]
            assert [b.title for b in found[2].branches] == ["Ben"]
        assert llm.engine.slots_in_use == 0

    def test_a_config_for_each(self) -> None:
        """A list of configs: every question its own name."""
        names: list[str] = []

        class Names(BaseCallbackHandler):
            def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
                if kwargs["parent_run_id"] is None:
                    names.append(kwargs["name"])

        llm, _ = scripted_llm(STUDENTS)
        configs: Any = [{"run_name": name, "callbacks": [Names()]} for name in ("a", "b")]
        llm.batch(["Who?", "Who?"], configs)
        assert names == ["a", "b"]


class TestSerialising:
    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
    def test_results_and_chunks_round_trip(self, settings: dict[str, Any]) -> None:
        """JSON there and back, also of every chunk on the way."""
        llm = random_llm()
        given = "Which?" if settings.get("mode") == "sequential" else ASK
        chunks = list(llm.stream(given, **settings))
        for chunk in chunks:
            again = ReasoningChunk.model_validate_json(chunk.model_dump_json())
            assert again == chunk
        result = reduce(add, chunks).result()
        assert ReasoningResult.model_validate_json(result.model_dump_json()) == result

    def test_chunks_that_went_through_json_add_up(self) -> None:
        """A server may send them one by one, with what is set and nothing else."""
        llm, _ = scripted_llm(STUDENTS)
        chunks = list(llm.stream("Who?"))
        sent = [chunk.model_dump_json(exclude_unset=True) for chunk in chunks]
        received = [ReasoningChunk.model_validate_json(text) for text in sent]
        assert reduce(add, received).result() == reduce(add, chunks).result()

    def test_langchain_describes_it(self) -> None:
        """`dumpd` and `dumps` never fail; they name the class."""
        llm, _ = scripted_llm(STUDENTS, branch_schema=ReasoningRequest)
        assert dumpd(llm)["id"][-1] == "ParallelReasoningLLM"
        chain = PromptTemplate.from_template("{q}") | llm
        assert json.loads(dumps(chain))["kwargs"]["last"]["id"][-1] == "ParallelReasoningLLM"


class TestGraph:
    def test_the_stages_are_drawn(self) -> None:
        """Input → plan → branches → conclusion → output."""
        graph = ParallelReasoningLLM().get_graph()
        names = [node.name for node in graph.nodes.values()]
        assert names[1:-1] == ["plan", "branches", "conclusion"]
        assert names[-1].endswith("ReasoningResult") or "Output" in names[-1]
        nodes = list(graph.nodes)
        assert [(edge.source, edge.target) for edge in graph.edges] == list(pairwise(nodes))
        drawn = graph.draw_mermaid()
        assert drawn.index("plan(") < drawn.index("branches(") < drawn.index("conclusion(")

    @pytest.mark.parametrize(
        ("fields", "names"),
        [({"conclude": False}, ["plan", "branches"]), ({"mode": "sequential"}, ["answer"])],
    )
    def test_what_the_settings_leave_out_is_not_drawn(self, fields: Any, names: list[str]) -> None:
        """No conclusion, or no parts at all."""
        nodes = list(ParallelReasoningLLM(**fields).get_graph().nodes.values())
        assert [node.name for node in nodes[1:-1]] == names

    def test_a_chain_draws_it_among_its_steps(self) -> None:
        """Prompt, three stages, function."""
        chain = PromptTemplate.from_template("{q}") | ParallelReasoningLLM() | RunnableLambda(str)
        names = [node.name for node in chain.get_graph().nodes.values()]
        assert names[1:5] == ["PromptTemplate", "plan", "branches", "conclusion"]
        assert "plan" in chain.get_graph().draw_mermaid()


class TestWrappers:
    def test_with_retry_tries_again(self) -> None:
        """Streams are not retried; `invoke` and `batch` are."""
        llm, script = scripted_llm(STUDENTS)
        broken = iter([NonFiniteLogitsError("NaN")])

        def fail_once() -> None:
            for error in broken:
                raise error

        script.before = fail_once
        retrying = llm.with_retry(
            retry_if_exception_type=(NonFiniteLogitsError,), wait_exponential_jitter=False
        )
        assert retrying.batch(["Who?"])[0].conclusion == "name: Ben"

    async def test_with_fallbacks_asks_another(self) -> None:
        """What one cannot serve the next one does, invoked and streamed."""
        short, _ = scripted_llm({}, positions=70)
        llm, _ = scripted_llm(STUDENTS)
        safe = short.with_fallbacks([llm])
        assert safe.invoke("Who?").conclusion == "name: Ben"
        assert (await safe.ainvoke("Who?")).conclusion == "name: Ben"
        assert reduce(add, safe.stream("Who?")).conclusion == "name: Ben"
