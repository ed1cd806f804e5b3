"""`ChatParallelReasoning` with a scripted model: what it says, streams, caches and cancels."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField

from langchain_pos import ChatParallelReasoning, InvalidRequestError
from tests.support.scripted import STUDENTS
from tests.support.scripted_chat import Recorder, said, scripted_chat

TWICE = {
    "Who?\n\nAnswer:\n": "First.\n####Ann:......\n####Ben:......\n####%%%%",
    "####Ann:": " one",
    "####Ben:": " two",
    "####Cem:": " three",
    "####Dan:": " four",
    "####%%%%\n": ["So far Ann.\n####Cem:......\n####Dan:......\n####%%%%", "All: Dan"],
}
"""Two rounds of steps."""


SKELETON = STUDENTS["Who?\n\nAnswer:\n"]


def total(chunks: list[Any]) -> Any:
    """The sum of a stream."""
    return sum(chunks[1:], start=chunks[0])


class TestParallel:
    def test_branches_are_reasoning_and_the_conclusion_is_the_text(self) -> None:
        """A plain question is answered in parallel; the parts are where readers look for them."""
        chat, _ = scripted_chat(STUDENTS)
        message = chat.invoke("Who?")
        assert message.content == message.text == "name: Ben"
        told = f"{SKELETON}\nAnn: GPA 3.1, outside\nBen: GPA 2.4\n"
        assert message.additional_kwargs == {"reasoning_content": told}
        assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]

    def test_metadata(self) -> None:
        """Usage, timings, passes and the whole result are there, as plain data."""
        chat, script = scripted_chat(STUDENTS)
        message = chat.invoke("Who?")
        usage, told = message.usage_metadata, message.response_metadata
        assert usage is not None
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        text = len(chat.get_token_ids("name: Ben"))
        assert usage["output_token_details"]["reasoning"] == usage["output_tokens"] - text
        assert told["model_provider"] == "langchain_pos"
        assert told["finish_reason"] == "stop"
        assert told["forward_passes"]["total"] == len(script.passes)
        assert told["timings"]["total"] > 0
        assert [b["title"] for b in told["reasoning"]["blocks"][0]["branches"]] == ["Ann", "Ben"]

    def test_cached_tokens_are_told(self) -> None:
        """What of the prompt was kept from an earlier call is in the usage."""
        from tests.support.scripted_chat import random_chat

        chat = random_chat(mode="sequential")
        question = "a b c " * 40
        told = []
        for _ in range(2):
            message = chat.invoke(question)
            assert message.usage_metadata is not None
            told.append(message.usage_metadata["input_token_details"]["cache_read"])
            result = message.response_metadata["reasoning"]
            assert told[-1] == result["cached_tokens"]
        assert told[0] == 0

    def test_content_blocks(self) -> None:
        """`output_version="v1"`: each branch is a reasoning block of its own."""
        chat, _ = scripted_chat(STUDENTS, output_version="v1")
        message = chat.invoke("Who?")
        assert message.content == [
            {"type": "reasoning", "reasoning": SKELETON},
            {"type": "reasoning", "reasoning": "Ann: GPA 3.1, outside"},
            {"type": "reasoning", "reasoning": "Ben: GPA 2.4"},
            {"type": "text", "text": "name: Ben"},
        ]
        assert message.response_metadata["output_version"] == "v1"

    @pytest.mark.parametrize("rules", [STUDENTS, TWICE], ids=["one round", "two rounds"])
    @pytest.mark.parametrize("version", [None, "v1"])
    @pytest.mark.parametrize("mode", ["auto", "sequential"])
    async def test_streams_sum_to_invoke(self, rules: Any, version: Any, mode: Any) -> None:
        """Sync and async, in both forms of content, with one and with two rounds of steps."""
        chat, script = scripted_chat(rules, output_version=version, mode=mode)
        whole = said(chat.invoke("Who?"))
        script.passes.clear()
        assert said(total(list(chat.stream("Who?")))) == whole
        assert said(total([chunk async for chunk in chat.astream("Who?")])) == whole
        assert said(await chat.ainvoke("Who?")) == whole

    def test_the_plan_streams_from_its_first_token(self) -> None:
        """As reasoning, before any branch; of a plan that is tried again, each attempt."""
        twice = "####Ann:......\n####Ann:......\n####%%%%"
        rules = {**STUDENTS, "Who?\n\nAnswer:\n": twice, ")\n\nAnswer:\n": SKELETON}
        chat, _ = scripted_chat(rules)
        pieces = [c.additional_kwargs.get("reasoning_content") for c in chat.stream("Who?")]
        assert pieces[0] == "####"
        assert len([piece for piece in pieces if piece]) > 12
        thought = "".join(piece or "" for piece in pieces)
        assert thought.startswith(f"{twice}\n{SKELETON}\nAnn: GPA")
        assert thought == chat.invoke("Who?").additional_kwargs["reasoning_content"]

    def test_two_rounds(self) -> None:
        """What is concluded between two rounds is text as well."""
        chat, _ = scripted_chat(TWICE, max_conclusion_tokens=96)
        assert chat.invoke("Who?").text == "So far Ann.\n\nAll: Dan"

    def test_branches_grow_side_by_side(self) -> None:
        """While streaming content blocks, pieces of one branch come between those of another."""
        chat, _ = scripted_chat(STUDENTS, output_version="v1")
        places = [
            block["index"]
            for chunk in chat.stream("Who?")
            for block in chunk.content
            if block["type"] == "reasoning"
        ]
        assert places != sorted(places)

    def test_given_steps(self) -> None:
        """`steps` skips stage 1."""
        chat, _ = scripted_chat(STUDENTS)
        message = chat.invoke("Who?", steps=["Ben", "Ann"])
        assert message.additional_kwargs["reasoning_content"].startswith("Ben: GPA 2.4\nAnn:")


class TestSequential:
    def test_mode_for_one_call(self) -> None:
        """Parallel reasoning is switched off per call, and nothing of it is left."""
        chat, _ = scripted_chat({"Who?\n\nAnswer:\n": "It is Ben."})
        message = chat.invoke("Who?", mode="sequential")
        assert message.content == "It is Ben."
        assert message.additional_kwargs == {}
        assert message.usage_metadata is not None
        assert message.usage_metadata["output_token_details"] == {"reasoning": 0}

    def test_stop(self) -> None:
        """A stop sequence of the call is taken in place of the model's own."""
        chat, _ = scripted_chat({"Who?\n\nAnswer:\n": "one two three"}, mode="sequential")
        assert chat.invoke("Who?", stop=["two"]).content == "one"
        stopped, _ = scripted_chat(
            {"Who?\n\nAnswer:\n": "one two three"}, mode="sequential", stop=["three"]
        )
        assert stopped.invoke("Who?").content == "one two"
        assert stopped.invoke("Who?", stop=["two"]).content == "one"
        assert stopped.invoke("Who?", stop="two").content == "one"  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="stop=5"):
            chat.invoke("Who?", stop=5)  # type: ignore[arg-type]

    def test_max_tokens(self) -> None:
        """The text is cut there, and the finish reason says so."""
        chat, _ = scripted_chat({"Who?\n\nAnswer:\n": "x" * 40}, mode="sequential")
        message = chat.invoke("Who?", max_tokens=5)
        assert message.response_metadata["finish_reason"] == "length"
        assert message.usage_metadata is not None
        assert message.usage_metadata["output_tokens"] == 5

    def test_logprobs(self) -> None:
        """In OpenAI's form: each token of the answer, and its alternatives, the likeliest first."""
        chat, _ = scripted_chat({"Who?\n\nAnswer:\n": "Ben"})
        message = chat.invoke("Who?", logprobs=True, top_logprobs=2)
        content = message.response_metadata["logprobs"]["content"]
        assert "".join(token["token"] for token in content) == "Ben"
        for token in content:
            first, second = token["top_logprobs"]
            assert first["token"] == token["token"]
            assert first["logprob"] == token["logprob"] > second["logprob"]
            assert -0.1 < token["logprob"] <= 0
            assert bytes(token["bytes"]).decode() == token["token"]

    def test_logprobs_are_those_of_the_plain_model(self) -> None:
        """Drafts, temperature and streams do not change what a token's probability was."""
        from tests.support.scripted_chat import random_chat

        chat = random_chat(mode="sequential", seed=3, temperature=0.7)
        plain = chat.invoke("a b a b a b", logprobs=True, drafts=False)
        told = plain.response_metadata["logprobs"]["content"]
        assert len(told) == plain.usage_metadata["output_tokens"]  # type: ignore[index]
        streamed = total(list(chat.stream("a b a b a b", logprobs=True)))
        for one, other in zip(told, streamed.response_metadata["logprobs"]["content"], strict=True):
            assert one["token"] == other["token"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-4)

    def test_same_seed_same_answer(self) -> None:
        """A seed for a call decides it; another one gives another answer."""
        from tests.support.scripted_chat import random_chat

        chat = random_chat(mode="sequential", temperature=1.0)
        first = chat.invoke("a", seed=1).content
        assert chat.invoke("a", seed=1).content == first
        assert chat.invoke("a", seed=2).content != first


class TestMessages:
    @pytest.mark.parametrize(
        ("messages", "wrong"),
        [
            ([], "nothing"),
            ([HumanMessage("a"), AIMessage("b")], "assistant"),
            ([SystemMessage("a")], "system"),
            ([HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])], "image_url"),
        ],
    )
    def test_refused(self, messages: Any, wrong: str) -> None:
        """What cannot be answered is refused with what was given."""
        chat, script = scripted_chat(STUDENTS)
        with pytest.raises(InvalidRequestError, match=wrong):
            chat.invoke(messages)
        assert not script.passes

    @pytest.mark.parametrize(
        ("kwargs", "wrong"),
        [
            ({"mode": "both"}, "mode"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_retries": -1}, "max_retries"),
            ({"top_logprobs": 99}, "20"),
            ({"logprobs": True, "mode": "parallel"}, "sequential"),
            ({"nonsense": 1}, "nonsense"),
            ({"tool_choice": "any"}, "bind_tools"),
            ({"conclude": False}, "ParallelReasoningLLM"),
            ({"response_format": {"type": "xml"}}, "response_format"),
        ],
    )
    def test_wrong_settings(self, kwargs: Any, wrong: str) -> None:
        """A setting of a call that is not possible is refused with what is."""
        chat, _ = scripted_chat(STUDENTS)
        with pytest.raises(InvalidRequestError, match=wrong):
            chat.invoke("Who?", **kwargs)

    def test_token_counts_are_the_models(self) -> None:
        """Counted with the template that is used to ask."""
        chat, _ = scripted_chat(STUDENTS)
        message = chat.invoke("Who?", mode="sequential")
        assert message.usage_metadata is not None
        counted = chat.get_num_tokens_from_messages([HumanMessage("Who?")])
        assert counted == message.usage_metadata["input_tokens"]
        assert chat.get_num_tokens("Ann") == len(chat.get_token_ids("Ann"))


class TestCallbacksAndCache:
    def test_tokens_are_told_while_streaming(self) -> None:
        """Once each, whether the caller streams or a handler asks for it."""
        chat, _ = scripted_chat({"Who?\n\nAnswer:\n": "one two"}, mode="sequential")
        recorder = Recorder()
        list(chat.stream("Who?", {"callbacks": [recorder]}))
        assert "".join(recorder.tokens) == "one two"
        streaming, _ = scripted_chat(
            {"Who?\n\nAnswer:\n": "one two"}, mode="sequential", streaming=True
        )
        recorder = Recorder()
        streaming.invoke("Who?", {"callbacks": [recorder]})
        assert "".join(recorder.tokens) == "one two"

    def test_usage_callback_counts_right(self) -> None:
        """LangChain's own handler finds the figures, also over a batch."""
        chat, _ = scripted_chat(STUDENTS)
        handler = UsageMetadataCallbackHandler()
        messages = chat.batch(["Who?", "Who?"], {"callbacks": [handler]})
        (counted,) = handler.usage_metadata.values()
        assert counted["output_tokens"] == sum(
            message.usage_metadata["output_tokens"]  # type: ignore[index]
            for message in messages
        )

    def test_cache(self) -> None:
        """The same call costs nothing; any setting that matters is another call."""
        chat, script = scripted_chat(STUDENTS, cache=InMemoryCache())
        first = chat.invoke("Who?")
        script.passes.clear()
        assert chat.invoke("Who?").content == first.content
        assert not script.passes
        for change in (
            {"mode": "sequential"},
            {"temperature": 0.5},
            {"max_tokens": 9},
            {"stop": ["x"]},
            {"seed": 1},
        ):
            script.passes.clear()
            chat.invoke("Who?", **change)  # type: ignore[arg-type]
            assert script.passes, change

    @pytest.mark.parametrize(
        "change",
        [
            {"model": "other"},
            {"dtype": "float32"},
            {"revision": "v2"},
            {"mode": "sequential"},
            {"visibility": "titles"},
            {"max_tokens": 7},
            {"temperature": 1.0},
            {"seed": 4},
            {"stop": ("x",)},
            {"output_version": "v1"},
            {"model_kwargs": {"a": 1}},
        ],
    )
    def test_cache_key(self, change: dict[str, Any]) -> None:
        """Every field that an answer depends on is in the key; nothing of the run is."""
        chat = ChatParallelReasoning()
        assert chat._get_llm_string() == ChatParallelReasoning()._get_llm_string()
        assert ChatParallelReasoning(**change)._get_llm_string() != chat._get_llm_string()

    def test_two_loaded_models_have_two_keys(self) -> None:
        """Weights in memory have no name that would tell them apart."""
        one, _ = scripted_chat({})
        other, _ = scripted_chat({})
        assert one._get_llm_string() != other._get_llm_string()

    def test_rate_limiter(self) -> None:
        """The base class's limiter is asked before each answer."""
        asked = []

        class Limiter(InMemoryRateLimiter):
            def acquire(self, *, blocking: bool = True) -> bool:
                asked.append(blocking)
                return True

        chat, _ = scripted_chat(STUDENTS, rate_limiter=Limiter())
        chat.batch(["Who?", "Who?"])
        assert len(asked) == 2


class TestRunnable:
    def test_chain(self) -> None:
        """`prompt | chat | parser`, whole and streamed."""
        chat, _ = scripted_chat(STUDENTS)
        chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat | StrOutputParser()
        assert chain.invoke({"q": "Who?"}) == "name: Ben"
        assert "".join(chain.stream({"q": "Who?"})) == "name: Ben"

    async def test_events(self) -> None:
        """`astream_events` sees the start, the stream and the end."""
        chat, _ = scripted_chat(STUDENTS)
        events = [event async for event in chat.astream_events("Who?", version="v2")]
        kinds = [event["event"] for event in events]
        assert kinds[0] == "on_chat_model_start"
        assert "on_chat_model_stream" in kinds
        assert kinds[-1] == "on_chat_model_end"
        streamed = [e["data"]["chunk"] for e in events if e["event"] == "on_chat_model_stream"]
        assert all(isinstance(chunk, AIMessageChunk) for chunk in streamed)
        assert "".join(chunk.text for chunk in streamed) == "name: Ben"

    def test_fallbacks_and_retry(self) -> None:
        """An error of ours lets the next model answer."""
        broken, _ = scripted_chat({"Who?\n\nAnswer:\n": "\0"}, mode="sequential")
        whole, _ = scripted_chat(STUDENTS)
        assert broken.with_fallbacks([whole]).invoke("Who?").text == "name: Ben"
        assert whole.with_retry().invoke("Who?").text == "name: Ben"

    def test_configurable_fields(self) -> None:
        """Copies for a call share the loaded model."""
        chat, _ = scripted_chat({"Who?\n\nAnswer:\n": "one two"}, mode="sequential")
        cut = chat.configurable_fields(max_tokens=ConfigurableField(id="max_tokens"))
        message = cut.invoke("Who?", {"configurable": {"max_tokens": 1}})
        assert message.response_metadata["finish_reason"] == "length"

    def test_disable_streaming(self) -> None:
        """The base class's switch is heeded."""
        chat, _ = scripted_chat(STUDENTS, disable_streaming=True)
        assert len(list(chat.stream("Who?"))) == 1

    def test_pickle(self) -> None:
        """A model by name can be pickled; one that is loaded cannot, and says why."""
        chat = ChatParallelReasoning(temperature=0.5)
        assert pickle.loads(pickle.dumps(chat)).temperature == 0.5
        loaded, _ = scripted_chat({})
        with pytest.raises(TypeError, match="each process loads its own"):
            pickle.dumps(loaded)

    def test_profile(self) -> None:
        """What it can do is told without loading the model."""
        profile = ChatParallelReasoning().profile
        assert profile is not None
        assert profile["max_input_tokens"] == 8192
        assert profile["tool_calling"]
        assert not profile["image_inputs"]
        loaded, _ = scripted_chat({}, positions=4096)
        assert loaded.profile is not None
        assert loaded.profile["max_input_tokens"] == 4096
