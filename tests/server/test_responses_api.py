"""`/v1/responses`, asked by OpenAI's own client: answers, events, tools, structured text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from langchain_pos import ReasoningResult
from langchain_pos.server.responses_api.events import ResponseWriter
from langchain_pos.server.responses_api.requests import ResponseRequest
from tests.support.native_list import LIST, NATIVE, WRITTEN
from tests.support.replicas import fronted
from tests.support.responses_api import ADD, SEQUENTIAL, checked, contents, events_of, respond
from tests.support.scripted import FURTHER, STUDENTS, without_clocks
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import MODEL, Running, running
from tests.support.tool_calls import CALL, qwen_chat

ASKED = "<|im_start|>assistant\n"
ANSWERS = {**STUDENTS, "Hello?\n\nAnswer:\n": "one two three four"}
STUDENTS_ITEMS = [
    ("reasoning", "Let us see.\n####Ann:......\n####Ben:......\n####%%%%"),
    ("reasoning", "Ann: GPA 3.1, outside"),
    ("reasoning", "Ben: GPA 2.4"),
    ("message", "name: Ben"),
]


class Verdict(BaseModel):
    """What is found."""

    fits: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server whose model knows the students."""
    with running(scripted_chat(ANSWERS)[0]) as found:
        yield found


@pytest.fixture(scope="module")
def tool_server() -> Iterator[Running]:
    """A server whose model, asked, calls a tool; behind a result it answers."""
    rules = {
        f"?<|im_end|>\n{ASKED}": f"Let me add. {CALL}",
        f"</tool_response><|im_end|>\n{ASKED}": "It is 7.",
        f"Fits?<|im_end|>\n{ASKED}": '{"fits": true}',
        f"}}<|im_end|>\n{ASKED}": '{"fits": true}',  # behind a schema that the model is given
    }
    with running(qwen_chat(rules)[0]) as found:
        yield found


class TestAnswers:
    def test_branches_are_reasoning_items_and_the_conclusion_is_the_message(
        self, server: Running
    ) -> None:
        """The response is OpenAI's own type, with usage, and the whole result beside it."""
        response = respond(server, instructions=None, metadata={"a": "b"})
        Response.model_validate(response.model_dump(mode="json"))
        assert contents(response) == STUDENTS_ITEMS
        assert (response.status, response.output_text) == ("completed", "name: Ben")
        assert (response.model, response.metadata) == (MODEL, {"a": "b"})
        same = server.ask()
        assert response.usage.input_tokens == same.usage.prompt_tokens
        assert response.usage.output_tokens == same.usage.completion_tokens
        thought = same.usage.completion_tokens_details.reasoning_tokens
        assert response.usage.output_tokens_details.reasoning_tokens == thought > 0
        result, own = (
            ReasoningResult.model_validate(each)
            for each in (response.reasoning_result, same.reasoning)
        )
        assert without_clocks(result) == without_clocks(own)
        assert server.at_rest()

    def test_a_stream_has_typed_events_in_order_and_ends_with_the_whole(
        self, server: Running
    ) -> None:
        """Numbered, item after item; the first branch live; the same response as without one."""
        events = events_of(server)
        response = checked(events)
        assert contents(response) == STUDENTS_ITEMS
        whole = respond(server).model_dump(mode="json", exclude_unset=True)
        changing = ("id", "created_at", "completed_at", "output", "reasoning_result")
        for each in (whole, response):
            for name in changing:
                del each[name]
        assert response == whole
        first = [event for event in events if event.get("output_index") == 1]
        assert len(first) > 6  # the first branch is passed on piece by piece

    def test_the_clients_own_stream_helper(self, server: Running) -> None:
        """`responses.stream` accumulates the events to the same output."""
        with server.client() as client, client.responses.stream(model=MODEL, input="Who?") as told:
            texts = [event.delta for event in told if event.type == "response.output_text.delta"]
            final = told.get_final_response()
        assert "".join(texts) == final.output_text == "name: Ben"
        assert contents(final) == STUDENTS_ITEMS

    async def test_the_async_client(self, server: Running) -> None:
        """As the other one."""
        async with server.async_client() as client:
            response = await client.responses.create(model=MODEL, input="Who?")
        assert contents(response) == STUDENTS_ITEMS

    def test_a_second_plan_comes_behind_the_text_before_it(self) -> None:
        """Its skeleton and branches stand between the two parts of the text."""
        with running(scripted_chat(FURTHER)[0]) as server:
            streamed, whole = checked(events_of(server)), respond(server)
        kinds = [kind for kind, _ in contents(streamed)]
        assert kinds == [*["reasoning"] * 3, "message", *["reasoning"] * 3, "message"]
        thoughts = [text for kind, text in contents(streamed) if kind == "reasoning"]
        assert thoughts[1:3] + thoughts[4:] == ["Ann: a", "Ben: b", "Rome: warm", "Oslo: cold"]
        said = "".join(text for kind, text in contents(streamed) if kind == "message")
        assert said == whole.output_text
        assert said.endswith("So Rome.")

    def test_a_list_in_native_form_is_the_message_alone(self) -> None:
        """Streamed and whole: its branches are the answer, and nothing stands twice."""
        with running(scripted_chat(LIST, **NATIVE)[0]) as server:
            assert contents(checked(events_of(server))) == [("message", WRITTEN)]
            assert contents(respond(server)) == [("message", WRITTEN)]

    def test_options_reach_the_model(self, server: Running) -> None:
        """A budget that cuts makes the response incomplete, and says why."""
        for response in (
            respond(server, "Hello?", max_output_tokens=3, extra_body=SEQUENTIAL),
            Response.model_validate(
                checked(events_of(server, "Hello?", max_output_tokens=3, **SEQUENTIAL))
            ),
        ):
            assert response.status == "incomplete"
            assert response.incomplete_details is not None
            assert response.incomplete_details.reason == "max_output_tokens"
            assert response.usage is not None
            assert response.usage.output_tokens == 3
            assert response.output[-1].status == "incomplete"
        given = respond(server, extra_body={"steps": ["Ben", "Ann"]})
        assert [text[:3] for _, text in contents(given)[:2]] == ["Ben", "Ann"]

    def test_log_probabilities(self, server: Running) -> None:
        """As part of the text, whole and streamed."""
        fields: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        (item,) = respond(server, "Hello?", **fields).output
        tokens = item.content[0].logprobs
        assert "".join(token.token for token in tokens).startswith("one two three four")
        assert all(len(token.top_logprobs) == 2 for token in tokens)
        (streamed,) = checked(events_of(server, "Hello?", **fields))["output"]
        assert len(streamed["content"][0]["logprobs"]) == len(tokens)

    @pytest.mark.parametrize("stream", [False, True])
    def test_replicas_answer_as_well(self, stream: bool) -> None:
        """The front door translates, so a replica that is lost is replaced as ever."""
        with fronted(scripted_chat(ANSWERS)[0], [0]) as front:
            found = checked(events_of(front)) if stream else respond(front)
            assert contents(found) == STUDENTS_ITEMS
            assert front.replicas.asked == 2
            response_id = found["id"] if stream else found.id
            with front.client() as client:
                assert client.responses.retrieve(response_id).output_text == "name: Ben"


class TestToolsAndForms:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_call_and_its_output(self, tool_server: Running, stream: bool) -> None:
        """Both ways to go on: by the id of the response, and by sending everything again."""
        asked = "What is 3 + 4?"
        if stream:
            first = checked(events_of(tool_server, asked, tools=[ADD]))
        else:
            first = respond(tool_server, asked, tools=[ADD]).model_dump(mode="json")
        said, called = contents(first)
        assert said[0] == "message"
        assert said[1].startswith("Let me add.")
        assert called[0] == "function_call"
        assert json.loads(called[1].removeprefix("add ")) == {"a": 3, "b": 4}
        call = first["output"][1]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "7"}
        by_id = respond(tool_server, [output], tools=[ADD], previous_response_id=first["id"])
        question = {"role": "user", "content": asked}
        again = respond(tool_server, [question, *first["output"], output], tools=[ADD])
        assert by_id.output_text == again.output_text == "It is 7."
        assert by_id.usage.input_tokens == again.usage.input_tokens

    def test_tool_choice(self, tool_server: Running) -> None:
        """A named tool is called; with "none" there is no call."""
        named: Any = {"type": "function", "name": "add"}
        (called,) = contents(respond(tool_server, "a + b?", tools=[ADD], tool_choice=named))
        assert called[0] == "function_call"
        assert called[1].startswith("add {")
        refused = respond(tool_server, "a + b?", tools=[ADD], tool_choice="none")
        assert "function_call" not in dict(contents(refused))

    def test_structured_text(self, tool_server: Running) -> None:
        """A schema through `parse` and `stream`, and any JSON object."""
        with tool_server.client() as client:
            parsed = client.responses.parse(model=MODEL, input="Fits?", text_format=Verdict)
            assert parsed.output_parsed == Verdict(fits=True)
            with client.responses.stream(
                model=MODEL, input="Fits?", text_format=Verdict
            ) as streamed:
                assert streamed.get_final_response().output_parsed == Verdict(fits=True)
        loose = respond(tool_server, "Fits?", text={"format": {"type": "json_object"}})
        assert json.loads(loose.output_text) == {"fits": True}

    def test_instructions_are_of_this_turn_alone(self) -> None:
        """They come first, and a next response does not inherit them."""
        rules = {
            f"Be brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n{ASKED}": "Yo.",
            f"<|im_start|>user\nMore<|im_end|>\n{ASKED}": "Well.",
        }
        chat, script = qwen_chat(rules, mode="sequential")
        with running(chat) as server:
            first = respond(server, "Hi", instructions="Be brief.")
            assert first.output_text == "Yo."
            parts: Any = [{"type": "input_text", "text": "More"}]
            more: Any = [{"type": "message", "role": "user", "content": parts}]
            second = respond(server, more, previous_response_id=first.id)
        assert (second.output_text, second.previous_response_id) == ("Well.", first.id)
        read = script.passes[-1][0].seen
        assert "Yo." in read
        assert "Be brief." not in read


def test_an_error_in_the_stream_ends_the_response() -> None:
    """An `error` event, which OpenAI's clients raise, then the failed response."""
    writer = ResponseWriter(ResponseRequest(model=MODEL, input="Who?"))
    error = {"message": "gone", "type": "server_error", "param": None, "code": "internal_error"}
    raised, failed = [list(writer.begin()), list(writer.fail(error))][1]
    assert (raised["type"], raised["code"], raised["error"]) == ("error", "internal_error", error)
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", 3)
    assert failed["response"]["error"] == {"code": "internal_error", "message": "gone"}
