"""The server, asked by OpenAI's own client and by `ChatOpenAI`, over loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from langchain_pos import ReasoningResult
from langchain_pos.chat_models import ChatParallelReasoning
from tests.support.scripted import STUDENTS, Halt, without_clocks
from tests.support.scripted_chat import scripted_chat
from tests.support.server_requests import joined, whole
from tests.support.serving import MODEL, URL, Running, body, running
from tests.support.tool_calls import CALL, OTHER, qwen_chat

ASKED = "<|im_start|>assistant\n"
RULES = {
    **STUDENTS,
    "Hello?\n\nAnswer:\n": "one two three four",
    "Long?\n\nAnswer:\n": "…",
}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
NOW: Any = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
}
SEQUENTIAL = {"reasoning_mode": "sequential"}


class Verdict(BaseModel):
    """What is found."""

    fits: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server whose model knows the students."""
    chat, _ = scripted_chat(RULES)
    with running(chat) as found:
        yield found


@pytest.fixture(scope="module")
def tool_server() -> Iterator[Running]:
    """A server whose model, asked, calls two tools; behind a result it answers."""
    rules = {
        f"?<|im_end|>\n{ASKED}": f"Let me add. {CALL}\n{OTHER}",
        f"</tool_response><|im_end|>\n{ASKED}": "It is 7.",
        f"Fits?<|im_end|>\n{ASKED}": '{"fits": true}',
        f"}}<|im_end|>\n{ASKED}": '{"fits": true}',  # behind a schema that the model is told
    }
    chat, _ = qwen_chat(rules)
    with running(chat) as found:
        yield found


class TestAnswers:
    def test_an_answer_is_the_conclusion_with_the_result_beside_it(self, server: Running) -> None:
        """As the chat model itself says it; `reasoning` reads back as a `ReasoningResult`."""
        answer = server.ask()
        message = server.chat.invoke("Who?")
        assert answer.choices[0].message.content == message.text == "name: Ben"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model == MODEL
        told = ReasoningResult.model_validate(answer.reasoning)
        own = ReasoningResult.model_validate(message.response_metadata["reasoning"])
        assert without_clocks(told) == without_clocks(own)
        assert [branch.title for branch in told.branches] == ["Ann", "Ben"]
        usage = message.usage_metadata
        assert usage is not None
        assert answer.usage.prompt_tokens == usage["input_tokens"]
        assert answer.usage.completion_tokens == usage["output_tokens"]
        assert answer.usage.total_tokens == usage["total_tokens"]
        reasoning = usage["output_token_details"]["reasoning"]
        assert answer.usage.completion_tokens_details.reasoning_tokens == reasoning > 0
        assert server.at_rest()

    def test_a_stream_adds_up_to_the_answer(self, server: Running) -> None:
        """Text, finish reason, usage and result; the first chunk has the role."""
        chunks = list(server.ask(stream=True, stream_options={"include_usage": True}))
        answer = server.ask()
        assert joined(chunks) == whole(answer)
        assert joined(chunks)["thought"].startswith("Let us see.\n####Ann:")
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == []
        assert chunks[-1].usage == answer.usage
        assert all(chunk.usage is None for chunk in chunks[:-1])
        told = ReasoningResult.model_validate(chunks[-2].reasoning)
        assert without_clocks(told) == without_clocks(
            ReasoningResult.model_validate(answer.reasoning)
        )

    def test_without_being_asked_a_stream_has_no_usage(self, server: Running) -> None:
        """As OpenAI's."""
        assert all(chunk.usage is None for chunk in server.ask(stream=True))

    def test_branches_stream_beside_the_text(self, server: Running) -> None:
        """`reasoning_delta`: the skeleton, the titles, each branch's text and end; interleaved."""
        chunks = list(server.ask(stream=True))
        told = [chunk.reasoning_delta for chunk in chunks if hasattr(chunk, "reasoning_delta")]
        assert next(t["titles"] for t in told if "titles" in t) == ["Ann", "Ben"]
        skeleton = "".join(t["text"] for t in told if t["stage"] == "plan" and "text" in t)
        assert skeleton.startswith("Let us see.\n####Ann")
        of_branches = [t for t in told if t["stage"] == "expand"]
        assert [t["branch"] for t in of_branches[:4]] == [0, 1, 0, 1]
        texts = {"Ann": "", "Ben": ""}
        for each in of_branches:
            texts[each["title"]] += each.get("text", "")
        assert texts == {"Ann": "GPA 3.1, outside", "Ben": "GPA 2.4"}
        ends = {t["branch"]: t["finish_reason"] for t in of_branches if "finish_reason" in t}
        assert ends == {0: "stop", 1: "stop"}
        silent = [c for c in chunks if hasattr(c, "reasoning_delta")]
        assert all(c.choices[0].delta.content is None for c in silent)

    def test_the_wire_is_server_sent_events(self, server: Running) -> None:
        """Every event is `data: ` and JSON, the last one `[DONE]`."""
        answer = server.post(body("Hello?", stream=True, **SEQUENTIAL))
        assert answer.headers["content-type"].startswith("text/event-stream")
        *events, rest = answer.text.split("\n\n")
        assert rest == ""
        assert events[-1] == "data: [DONE]"
        assert {json.loads(event.removeprefix("data: "))["object"] for event in events[:-1]} == {
            "chat.completion.chunk"
        }

    async def test_the_async_client(self, server: Running) -> None:
        """Whole and streamed, at once."""
        async with server.async_client() as client:
            messages: Any = [{"role": "user", "content": "Who?"}]

            async def streamed() -> list[Any]:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=messages, stream=True
                )
                return [chunk async for chunk in stream]

            answer, chunks = await asyncio.gather(
                client.chat.completions.create(model=MODEL, messages=messages), streamed()
            )
        assert joined(chunks) == whole(answer)

    def test_options_reach_the_model(self, server: Running) -> None:
        """`stop`, `max_tokens` under both names, `reasoning_mode`."""
        extra = {"extra_body": SEQUENTIAL}
        assert whole(server.ask("Hello?", **extra))["text"] == "one two three four"
        assert whole(server.ask("Hello?", stop=" three", **extra))["text"] == "one two"
        assert whole(server.ask("Hello?", stop=["zzz", " two"], **extra))["text"] == "one"
        for name in ("max_tokens", "max_completion_tokens"):
            cut = server.ask("Hello?", **{name: 3}, **extra)
            assert cut.choices[0].finish_reason == "length"
            assert cut.usage.completion_tokens == 3
        assert server.ask("Hello?", **extra).reasoning["mode"] == "sequential"
        assert server.ask("Who?").reasoning["mode"] == "parallel"

    def test_steps_of_the_caller(self, server: Running) -> None:
        """Given as an extension, they are the branches."""
        answer = server.ask(extra_body={"steps": ["Ben", {"title": "Ann", "max_tokens": 2}]})
        branches = ReasoningResult.model_validate(answer.reasoning).branches
        assert [branch.title for branch in branches] == ["Ben", "Ann"]
        assert branches[1].usage.output_tokens == 2

    def test_a_seed_repeats_an_answer(self) -> None:
        """At a temperature; another seed writes something else."""
        from tests.support.scripted_chat import random_chat

        with running(random_chat()) as server:

            def text(seed: int) -> str:
                return str(
                    server.ask(
                        temperature=1.0, top_p=0.9, seed=seed, max_tokens=12, extra_body=SEQUENTIAL
                    )
                    .choices[0]
                    .message.content
                )

            assert text(7) == text(7) != text(8)

    def test_logprobs(self, server: Running) -> None:
        """In OpenAI's form: each token with its bytes and the likeliest others."""
        answer = server.ask("Hello?", logprobs=True, top_logprobs=2)
        tokens = answer.choices[0].logprobs.content
        assert "".join(token.token for token in tokens).startswith("one two three four")
        assert all(len(token.top_logprobs) == 2 for token in tokens)
        last = list(server.ask("Hello?", logprobs=True, top_logprobs=2, stream=True))[-1]
        assert [t.token for t in last.choices[0].logprobs.content] == [t.token for t in tokens]

    def test_models(self, server: Running) -> None:
        """The one that is served, listed and by its name."""
        with server.client() as client:
            (listed,) = client.models.list().data
            assert listed.id == client.models.retrieve(MODEL).id == MODEL
            with pytest.raises(openai.NotFoundError, match="'other' does not exist here"):
                client.models.retrieve("other")

    def test_many_requests_share_forward_passes(self) -> None:
        """Alone and in company the answers are the same; together they need fewer passes."""
        chat, script = scripted_chat(RULES)
        with running(chat, max_concurrency=8) as server:
            alone = whole(server.ask())
            passes = len(script.passes)

            scheduler = server.chat.engine.scheduler
            halt = Halt(script, passes)  # until all of them are there

            def ask(_: int) -> dict[str, Any]:
                return whole(server.ask())

            with ThreadPoolExecutor(8) as pool:
                answers = [pool.submit(ask, place) for place in range(8)]
                halt.inside.wait()
                while len(scheduler._live) + len(scheduler._incoming) < 8:
                    time.sleep(0.005)
                halt.go_on.set()
                assert [answer.result() for answer in answers] == [alone] * 8
            assert len(script.passes) - passes < 2 * passes
            assert max(len(fed) for fed in script.passes) == 16, "two branches of each"
            assert server.at_rest()


class TestToolsAndForms:
    def test_tool_calls_whole_and_streamed(self, tool_server: Running) -> None:
        """Text, two calls with their arguments, and `tool_calls` as the finish reason."""
        answer = tool_server.ask("What is 3 + 4?", tools=[ADD, NOW])
        found = whole(answer)
        assert found["text"].strip() == "Let me add."
        assert [name for name, _ in found["calls"]] == ["add", "now"]
        assert json.loads(found["calls"][0][1]) == {"a": 3, "b": 4}
        assert found["finish_reason"] == "tool_calls"
        chunks = list(tool_server.ask("What is 3 + 4?", tools=[ADD, NOW], stream=True))
        assert joined(chunks) == found

    def test_tool_choice(self, tool_server: Running) -> None:
        """A named tool is called; with "none" there is no call."""
        named: Any = {"type": "function", "function": {"name": "now"}}
        calls = whole(tool_server.ask(tools=[ADD, NOW], tool_choice=named))["calls"]
        assert calls == [("now", "{}")]
        assert whole(tool_server.ask(tools=[ADD, NOW], tool_choice="required"))["calls"]
        assert not whole(tool_server.ask(tools=[ADD], tool_choice="none"))["calls"]

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("cut", [3, 12, 30])
    def test_a_cut_call_can_be_sent_back(self, stream: bool, cut: int) -> None:
        """It is text, and whatever the server wrote it takes as history."""
        chat, _ = qwen_chat({ASKED: CALL})
        most = len(chat.get_token_ids(CALL[:cut]))
        with running(chat) as server:
            form = joined if stream else whole
            answer = form(
                server.ask("?", tools=[ADD], tool_choice="required", max_tokens=most, stream=stream)
            )
            assert (answer["finish_reason"], answer["calls"]) == ("length", [])
            assert CALL.startswith(answer["text"])
            assert answer["text"]
            history = [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": answer["text"]},
                {"role": "user", "content": "Go on."},
            ]
            assert server.post(body(messages=history, max_tokens=2)).status_code == 200

    def test_a_tools_result_goes_back(self, tool_server: Running) -> None:
        """The second turn of an agent, with the first one's message as the client got it."""
        messages: Any = [{"role": "user", "content": "What is 3 + 4?"}]
        with tool_server.client() as client:
            first = client.chat.completions.create(model=MODEL, messages=messages, tools=[ADD, NOW])
            said = first.choices[0].message
            assert said.tool_calls
            messages += [said.model_dump()]
            messages += [
                {"role": "tool", "tool_call_id": call.id, "content": "7"}
                for call in said.tool_calls
            ]
            second = client.chat.completions.create(
                model=MODEL, messages=messages, tools=[ADD, NOW]
            )
        assert second.choices[0].message.content == "It is 7."

    def test_response_format(self, tool_server: Running) -> None:
        """A JSON schema, through the client's own parser; and any JSON object."""
        messages: Any = [{"role": "user", "content": "Fits?"}]
        with tool_server.client() as client:
            parsed = client.chat.completions.parse(
                model=MODEL, messages=messages, response_format=Verdict
            )
        assert parsed.choices[0].message.parsed == Verdict(fits=True)
        found = tool_server.ask("Fits?", response_format={"type": "json_object"})
        assert json.loads(found.choices[0].message.content) == {"fits": True}


class TestChatOpenAI:
    @staticmethod
    def model(server: Running, **fields: Any) -> ChatOpenAI:
        """LangChain's model for OpenAI, asking our server."""
        return ChatOpenAI(
            base_url=f"{server.url}/v1",
            api_key=SecretStr("none"),
            model=MODEL,
            max_retries=0,
            **fields,
        )

    async def test_invoke_and_stream(self, server: Running) -> None:
        """Sync and async; streams sum to the answer, with the usage."""
        chat = self.model(server, stream_usage=True)
        message = chat.invoke("Who?")
        assert message.text == "name: Ben"
        chunks = list(chat.stream("Who?"))
        assert "".join(chunk.text for chunk in chunks) == message.text
        total = sum(chunks[1:], start=chunks[0])
        assert total.usage_metadata == message.usage_metadata
        assert (await chat.ainvoke([HumanMessage("Who?")])).text == message.text
        assert "".join([chunk.text async for chunk in chat.astream("Who?")]) == message.text

    def test_tools_and_structured_output(self, tool_server: Running) -> None:
        """`bind_tools` and `with_structured_output` work as with OpenAI's models."""
        chat = self.model(tool_server)
        calls = chat.bind_tools([ADD]).invoke("What is 3 + 4?").tool_calls
        assert (calls[0]["name"], calls[0]["args"]) == ("add", {"a": 3, "b": 4})
        assert chat.with_structured_output(Verdict).invoke("Fits?") == Verdict(fits=True)


class TestAround:
    def test_health_and_metrics(self, server: Running) -> None:
        """Requests by status, tokens, branches, places and slots."""
        before = server.metric("requests_total", status="200"), server.metric("branches_total")
        answer = server.ask()
        assert server.post(body(n=2)).status_code == 400
        with server.http() as http:
            assert http.get("/health").json() == {"status": "ok"}
            text = http.get("/metrics").text
        assert server.metric("requests_total", status="200") == before[0] + 1
        assert server.metric("branches_total") == before[1] + 2
        assert server.metric("requests_total", status="400") >= 1
        assert server.metric("tokens_total", kind="completion") >= answer.usage.completion_tokens
        for name in ("queue_length", "requests_running", "slots_in_use"):
            assert f"langchain_pos_{name} 0.0" in text
        assert "langchain_pos_request_seconds_bucket" in text

    def test_the_shipped_model_answers(self) -> None:
        """The students' question over HTTP, as the chat model answers it alone."""
        from langchain_pos import demo_question

        chat = ChatParallelReasoning()
        with running(chat) as server:
            answer = server.ask(demo_question())
            assert answer.choices[0].message.content == chat.invoke(demo_question()).text
            assert len(ReasoningResult.model_validate(answer.reasoning).branches) == 10


def test_urls_are_openais() -> None:
    """The path that every client of OpenAI's asks."""
    assert URL == "/v1/chat/completions"
