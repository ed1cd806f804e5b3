"""`ParallelReasoningLLM` as a LangChain runnable: calls, chains, callbacks, settings."""

from __future__ import annotations

import copy
import pickle
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompt_values import StringPromptValue
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from pydantic import ValidationError

from langchain_pos import ParallelReasoningLLM, ReasoningRequest, ReasoningResult, Step
from langchain_pos.errors import InvalidRequestError, ModelLoadError, NonFiniteLogitsError
from langchain_pos.reasoning.settings import ReasoningSettings
from tests.support.run_events import Recorder
from tests.support.scripted import (
    STUDENTS,
    STUDENTS_TEXT,
    Script,
    random_llm,
    scripted_llm,
    without_clocks,
)


class TestInvokeAndStream:
    def test_the_sum_of_a_stream_is_what_invoke_returns(self) -> None:
        """Field by field, the clock's aside."""
        llm, _ = scripted_llm(STUDENTS)
        whole = reduce(add, llm.stream("Who?")).result()
        assert without_clocks(whole) == without_clocks(llm.invoke("Who?"))
        assert whole.text == STUDENTS_TEXT

    def test_random_models_stream_what_they_invoke(self) -> None:
        """The same with weights that write bytes, blanks and unfinished characters."""
        llm = random_llm(allow_decline=False)
        for question in ("Which?", "哪一个？"):
            for settings in ({}, {"mode": "sequential"}, {"temperature": 1.0, "seed": 3}):
                whole = reduce(add, llm.stream(question, **settings)).result()
                assert without_clocks(whole) == without_clocks(llm.invoke(question, **settings))

    def test_chunks_say_who_wrote_what(self) -> None:
        """Stages come in order, and each branch's deltas are its text."""
        llm, _ = scripted_llm(STUDENTS)
        chunks = list(llm.stream("Who?"))
        stages = [chunk.stage for chunk in chunks]
        assert stages == sorted(stages, key=["plan", "expand", "conclude"].index)
        for index, text in enumerate(["GPA 3.1, outside", "GPA 2.4"]):
            assert "".join(c.delta for c in chunks if c.branch == index) == text
        conclusion = "".join(c.delta for c in chunks if c.stage == "conclude")
        assert conclusion == "name: Ben"
        assert "####Ann" in "".join(c.delta for c in chunks if c.stage == "plan")

    def test_branches_are_streamed_side_by_side(self) -> None:
        """The second branch's first piece comes before the first one's last."""
        llm, _ = scripted_llm(STUDENTS)
        order = [
            chunk.branch for chunk in llm.stream("Who?") if chunk.delta and chunk.stage == "expand"
        ]
        assert order.index(1) < len(order) - 1 - order[::-1].index(0)

    def test_the_same_seed_gives_the_same_answer(self) -> None:
        """Sampling is a matter of the seed; without one, answers differ."""
        llm = random_llm(allow_decline=False, temperature=1.0)
        first, second = (llm.invoke("Which?", seed=1).text for _ in range(2))
        assert first == second
        assert llm.invoke("Which?", seed=2).text != first
        assert len({llm.invoke("Which?").text for _ in range(3)}) > 1


class TestInputs:
    @pytest.mark.parametrize(
        "given",
        [
            "Who?",
            [HumanMessage("Who?")],
            [("human", "Who?")],
            [("user", "Who?")],
            [{"role": "user", "content": "Who?"}],
            StringPromptValue(text="Who?"),
            PromptTemplate.from_template("{q}?").invoke({"q": "Who"}),
            ChatPromptTemplate.from_messages([("human", "{q}?")]).invoke({"q": "Who"}),
            {"question": "Who?"},
            ReasoningRequest(question="Who?"),
            [HumanMessage([{"type": "text", "text": "Who?"}])],
        ],
    )
    def test_every_form_of_a_question_is_the_same_question(self, given: Any) -> None:
        """Text, messages, tuples, prompt values, dict and request."""
        llm, script = scripted_llm(STUDENTS)
        result = llm.invoke(given)
        assert script.passes[0][0].text == "Question: Who?\n\nAnswer:\n"
        assert (result.question, result.text) == ("Who?", STUDENTS_TEXT)

    def test_a_history_comes_before_the_question(self) -> None:
        """System, earlier turns, question; neighbours of one role are one message."""
        llm, script = scripted_llm(STUDENTS)
        history = [
            SystemMessage("Be brief."),
            HumanMessage("Hi"),
            AIMessage("Hello"),
            HumanMessage("Who"),
            HumanMessage("is it?"),
        ]
        result = llm.invoke(history)
        assert script.passes[0][0].text == (
            "Be brief.\n\nQuestion: Hi\n\nAnswer: Hello\n\nQuestion: Who\nis it?\n\nAnswer:\n"
        )
        assert result.question == "Who\nis it?"

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ("", "the question is empty"),
            (" \n\t", "the question is empty"),
            ([], "the messages end with nothing"),
            ([AIMessage("x")], "the messages end with assistant"),
            ([("robot", "x")], "Unexpected message type"),
            ([1, 2], "list cannot be asked"),
            (b"Who?", "bytes cannot be asked"),
            (7, "int cannot be asked"),
            (None, "NoneType cannot be asked"),
            ([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])], "only text"),
            ({"query": "Who?"}, "question: Field required"),
            ({"question": "Who?", "topic": "x"}, "topic: Extra inputs"),
            (
                {"question": "Who?", "steps": "Ann, Ben"},
                r"'Ann, Ben' is a text, not a list; write steps=\['Ann', 'Ben'\]",
            ),
            ({"question": "Who?", "messages": "Who?"}, r"write messages=\[\('user', 'Who\?'\)\]"),
            ({"question": None}, "question: "),
        ],
    )
    def test_what_is_no_question_is_refused_in_words(self, given: Any, said: str) -> None:
        """One error class for all of it, and no pass is spent."""
        llm, script = scripted_llm(STUDENTS)
        with pytest.raises(InvalidRequestError, match=said):
            llm.invoke(given)
        assert script.passes == []


class TestChains:
    def test_a_chain_of_prompt_model_and_function(self) -> None:
        """`prompt | llm | function`, invoked, in a batch, and streamed."""
        llm, _ = scripted_llm(STUDENTS)
        prompt = ChatPromptTemplate.from_messages([("human", "{q}?")])
        chain = prompt | llm | RunnableLambda(lambda result: result.conclusion)
        assert chain.invoke({"q": "Who"}) == "name: Ben"
        assert chain.batch([{"q": "Who"}] * 3) == ["name: Ben"] * 3
        assert list(chain.stream({"q": "Who"})) == ["name: Ben"]

    def test_a_stream_passes_through_a_chain(self) -> None:
        """`prompt | llm` streams chunk by chunk, and they add up."""
        llm, _ = scripted_llm(STUDENTS)
        chunks = list((PromptTemplate.from_template("{q}?") | llm).stream({"q": "Who"}))
        assert len(chunks) > 20
        assert reduce(add, chunks).text == STUDENTS_TEXT

    def test_an_input_that_comes_in_pieces_is_taken_whole(self) -> None:
        """`transform` waits for all of the question; an empty one is refused."""
        llm, _ = scripted_llm(STUDENTS)
        assert reduce(add, llm.transform(iter(["W", "ho", "?"]))).text == STUDENTS_TEXT
        with pytest.raises(InvalidRequestError, match="nothing was asked"):
            list(llm.transform(iter([])))

    def test_with_retry_tries_again(self) -> None:
        """A model that breaks once is asked once more."""
        llm, script = scripted_llm(STUDENTS)
        broken = iter([NonFiniteLogitsError("NaN")])

        def fail_once() -> None:
            for error in broken:
                raise error

        script.before = fail_once
        retrying = llm.with_retry(
            retry_if_exception_type=(NonFiniteLogitsError,), wait_exponential_jitter=False
        )
        assert retrying.invoke("Who?").text == STUDENTS_TEXT

    def test_with_fallbacks_asks_another(self) -> None:
        """What one cannot serve the next one does."""
        short, _ = scripted_llm({}, positions=70)
        llm, _ = scripted_llm(STUDENTS)
        assert short.with_fallbacks([llm]).invoke("Who?").text == STUDENTS_TEXT

    def test_bind_and_with_config_keep_their_arguments(self) -> None:
        """Settings bound once, tags and name given once."""
        llm, _ = scripted_llm(STUDENTS)
        assert llm.bind(mode="sequential").invoke("Who?").mode == "sequential"
        recorder = Recorder()
        named = llm.with_config(run_name="Reasoning", tags=["a"], callbacks=[recorder])
        named.invoke("Who?")
        assert recorder.starts[0]["name"] == "Reasoning"
        assert recorder.starts[0]["tags"] == ["a"]

    def test_schemas_and_graph_are_there(self) -> None:
        """LangChain asks for them when it draws or serves a chain."""
        llm, _ = scripted_llm(STUDENTS)
        assert llm.get_output_jsonschema()["title"] == "ReasoningResult"
        assert "ReasoningRequest" in str(llm.get_input_jsonschema())
        assert llm.get_name() == "ParallelReasoningLLM"
        assert "ParallelReasoningLLM" in (llm | RunnableLambda(str)).get_graph().draw_mermaid()
        assert "max_branches" in ParallelReasoningLLM.model_json_schema()["properties"]


class TestCallbacks:
    def test_start_and_end_with_tags_and_metadata(self) -> None:
        """One run with what the config says."""
        llm, _ = scripted_llm(STUDENTS)
        recorder = Recorder()
        config: Any = {"callbacks": [recorder], "tags": ["t"], "metadata": {"k": 1}}
        llm.invoke("Who?", config)
        assert recorder.seen == ["start", "end"]
        assert recorder.starts[0]["tags"] == ["t"]
        assert recorder.starts[0]["metadata"]["k"] == 1

    @pytest.mark.parametrize("call", ["invoke", "stream", "batch", "batch_as_completed"])
    def test_an_error_is_told(self, call: str) -> None:
        """A callback hears of the error that the caller gets."""
        llm, _ = scripted_llm(STUDENTS)
        recorder = Recorder()
        given: Any = [""] if "batch" in call else ""
        with pytest.raises(InvalidRequestError):
            list(getattr(llm, call)(given, {"callbacks": [recorder]}))
        assert recorder.seen == ["start", "error: InvalidRequestError"]

    def test_custom_events_follow_the_stages(self) -> None:
        """The plan, then each branch's beginning and end; while streaming, its text too."""
        llm, _ = scripted_llm(STUDENTS)
        recorder = Recorder()
        llm.invoke("Who?", {"callbacks": [recorder]})
        names = [name for name, _ in recorder.custom]
        assert names == ["plan", "branch_start", "branch_start", "branch_end", "branch_end"]
        assert recorder.custom[0][1] == {
            "block": 0,
            "preamble": "Let us see.",
            "titles": ["Ann", "Ben"],
        }
        assert recorder.custom[1][1] == {"block": 0, "index": 0, "title": "Ann"}
        data = recorder.custom[3][1]
        assert (data["title"], data["finish_reason"], data["error"]) == ("Ben", "stop", None)
        streaming = Recorder()
        list(llm.stream("Who?", {"callbacks": [streaming]}))
        told = [name for name, _ in streaming.custom if name != "branch_token"]
        assert told == names
        pieces = [data for name, data in streaming.custom if name == "branch_token"]
        assert "".join(data["delta"] for data in pieces if data["index"] == 1) == "GPA 2.4"
        assert pieces[0].keys() == {"block", "index", "title", "delta"}

    @pytest.mark.parametrize("call", ["batch", "batch_as_completed"])
    def test_batches_tell_the_same_events(self, call: str) -> None:
        """Each question's own, with its own run."""
        llm, _ = scripted_llm(STUDENTS)
        recorder = Recorder()
        list(getattr(llm, call)(["Who?", "Who?"], {"callbacks": [recorder]}))
        names = ["branch_end"] * 4 + ["branch_start"] * 4 + ["plan"] * 2
        assert sorted(name for name, _ in recorder.custom) == names
        assert sorted(recorder.seen) == ["end", "end", "start", "start"]


class TestSettings:
    def test_settings_of_one_call_are_for_that_call(self) -> None:
        """The next call is as the constructor said."""
        llm, _ = scripted_llm(STUDENTS)
        assert llm.invoke("Who?", max_branch_tokens=3).branches[0].finish_reason == "length"
        assert llm.invoke("Who?").branches[0].finish_reason == "stop"

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            (
                {"verbose": 5},
                "unknown setting 'verbose'; leave it out; allowed are mode, max_branches",
            ),
            ({"steps": ["a", "b"]}, "steps belong to the question"),
            ({"max_branch_tokens": -1}, "max_branch_tokens=-1: .*greater than or equal to 1"),
            ({"max_branches": 1}, "max_branches=1"),
            ({"temperature": -0.5}, "temperature=-0.5"),
            ({"temperature": float("nan")}, "temperature=nan"),
            ({"temperature": float("inf")}, "temperature=inf"),
            ({"top_p": 0}, "top_p=0"),
            ({"mode": "fast"}, "mode='fast'"),
            ({"stop": [""]}, "stop"),
            ({"max_plan_tokens": 64, "max_preamble_tokens": 4000}, "no room for two titles"),
        ],
    )
    def test_unknown_names_and_values_are_refused(
        self, settings: dict[str, Any], said: str
    ) -> None:
        """For one call as `InvalidRequestError`, and nothing has run."""
        llm, script = scripted_llm(STUDENTS)
        with pytest.raises(InvalidRequestError, match=said):
            llm.invoke("Who?", **settings)
        assert script.passes == []

    def test_one_stop_may_be_a_bare_text(self) -> None:
        """For a call, for the constructor and for a step."""
        llm, _ = scripted_llm(STUDENTS, stop="GPA")
        assert llm.stop == ("GPA",)
        one, listed = llm.invoke("Who?", stop="GPA"), llm.invoke("Who?", stop=["GPA"])
        assert without_clocks(one) == without_clocks(listed)
        assert Step(title="Ann", stop="GPA").stop == ("GPA",)
        with pytest.raises(InvalidRequestError, match="stop=5"):
            llm.invoke("Who?", stop=5)

    @pytest.mark.parametrize(
        "fields",
        [{"max_branch_tokens": 0}, {"max_slots": 0}, {"temprature": 1.0}, {"on_plan_failure": "x"}],
    )
    def test_the_constructor_refuses_them_too(self, fields: dict[str, Any]) -> None:
        """As pydantic does, before any model is loaded."""
        with pytest.raises(ValidationError):
            ParallelReasoningLLM(**fields)

    def test_every_setting_is_a_field(self) -> None:
        """What can be set for a call can be set for all calls."""
        assert set(ReasoningSettings.model_fields) <= set(ParallelReasoningLLM.model_fields)


class TestCopies:
    def test_a_configurable_field_keeps_the_given_model(self) -> None:
        """LangChain makes a new runnable for it; it must not load the shipped model instead."""
        llm, script = scripted_llm(STUDENTS)
        changing = llm.configurable_fields(max_branch_tokens=ConfigurableField(id="room"))
        config: Any = {"configurable": {"room": 3}}
        assert changing.invoke("Who?", config).branches[0].finish_reason == "length"
        assert changing.invoke("Who?").text == STUDENTS_TEXT
        assert len(script.passes) > 0
        assert changing.with_config(config).invoke("Who?").branches[0].usage.output_tokens == 3

    def test_loading_options_of_a_given_model_cannot_be_configured(self) -> None:
        """Its dtype is what it is; the error says what to do."""
        llm, _ = scripted_llm(STUDENTS)
        changing = llm.configurable_fields(dtype=ConfigurableField(id="dtype"))
        config: Any = {"configurable": {"dtype": "bfloat16"}}
        with pytest.raises(ModelLoadError, match="make another runnable"):
            changing.invoke("Who?", config)

    def test_copies_share_the_engine(self) -> None:
        """`model_copy` and `deepcopy` serve with the same model."""
        llm, _ = scripted_llm(STUDENTS)
        for other in (llm.model_copy(update={"max_blocks": 1}), copy.deepcopy(llm)):
            assert other.engine is llm.engine

    def test_a_runnable_by_name_can_be_pickled_and_described(self) -> None:
        """Fields travel, the loaded model does not."""
        llm = ParallelReasoningLLM(model="somewhere/some-model", max_branches=5)
        again = pickle.loads(pickle.dumps(llm))
        assert (again.model, again.max_branches) == ("somewhere/some-model", 5)
        described = dumpd(llm)
        assert described["id"][-1] == "ParallelReasoningLLM"
        assert "engines" not in llm.model_dump()

    def test_a_runnable_over_a_given_model_says_why_it_cannot_be_pickled(self) -> None:
        """It would come back with another model."""
        llm, _ = scripted_llm(STUDENTS)
        with pytest.raises(TypeError, match="make it with model="):
            pickle.dumps(llm)

    def test_results_are_plain_data(self) -> None:
        """JSON and pickle give an equal result back."""
        llm, _ = scripted_llm({**STUDENTS, "####Ann:": f" x{Script.NAN}"})
        result = llm.invoke("Who?")
        assert ReasoningResult.model_validate_json(result.model_dump_json()) == result
        assert pickle.loads(pickle.dumps(result)) == result
