"""`/v1/responses`: what is kept, what is refused, and who may ask, as for chat completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from langchain_pos.server.responses_api.store import ResponseStore
from tests.support.responses_api import ADD, URL, respond
from tests.support.scripted import STUDENTS, Halt
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import MODEL, Running, running

RULES = {**STUDENTS, "Hello?\n\nAnswer:\n": "one two", "Long?\n\nAnswer:\n": "…"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,"}
LOST: dict[str, Any] = {"previous_response_id": "resp_none"}
REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"temprature": 1}, "unknown_parameter", "temprature"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": [{"role": "judge", "content": "?"}]}, "invalid_value", "input"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_value", "input"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, "invalid_request", None),
    ({"input": [{"type": "function_call_output", "output": "7"}]}, "invalid_value", "input"),
    ({"input": "Who? " * 5000}, "context_length_exceeded", "input"),
    ({"temperature": "hot"}, "invalid_value", "temperature"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
    ({"max_output_tokens": 101}, "limit_exceeded", "max_output_tokens"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_value", "tools.0.type"),
    ({"tools": [{**ADD, "name": "no name"}]}, "invalid_value", "tools.0.name"),
    ({"tool_choice": {"type": "allowed_tools"}}, "unsupported_value", "tool_choice"),
    ({"text": {"verbosity": "low"}}, "unsupported_value", "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "invalid_request", None),
    ({"reasoning": {"effort": "high"}}, "unsupported_value", "reasoning.effort"),
    ({"background": True}, "unsupported_value", "background"),
    ({"truncation": "auto"}, "unsupported_value", "truncation"),
    ({"conversation": "conv_1"}, "unsupported_value", "conversation"),
    (LOST, "previous_response_not_found", "previous_response_id"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server whose model knows the students."""
    with running(scripted_chat(RULES)[0], max_tokens=100) as found:
        yield found


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
def test_what_cannot_be_had_is_refused_by_its_own_name(
    server: Running, fields: dict[str, Any], code: str, param: str | None
) -> None:
    """400 in OpenAI's form, streamed or not, with the field as this API calls it."""
    for stream in (False, True):
        with server.http() as http:
            asked = {"model": MODEL, "input": "Who?", "stream": stream, **fields}
            answer = http.post(URL, json=asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error
        assert answer.headers["x-should-retry"] == "false"
        assert "messages" not in error["message"]
    assert server.at_rest()


def test_what_changes_no_answer_is_accepted(server: Running) -> None:
    """Neutral values, and fields that are for OpenAI's own service."""
    neutral: dict[str, Any] = {
        "background": False,
        "truncation": "disabled",
        "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "user": "me",
        "service_tier": "auto",
    }
    assert respond(server, **neutral).output_text == "name: Ben"


def test_an_unknown_model_and_a_wrong_key() -> None:
    """As chat completions: 404, 401; and each request for an answer is counted."""
    with running(scripted_chat(RULES)[0], api_key="secret") as server:
        with server.client() as client, pytest.raises(openai.NotFoundError):
            client.responses.create(model="gpt-4o", input="Who?")
        with (
            server.client(api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.responses.create(model=MODEL, input="Who?")
        assert server.metric("requests_total", status="404") == 1
        assert server.metric("requests_total", status="401") == 1


class TestStore:
    def test_a_response_is_kept_until_it_is_deleted(self, server: Running) -> None:
        """`retrieve` gives what `create` gave; after `delete` it is gone."""
        response = respond(server)
        with server.client() as client:
            assert client.responses.retrieve(response.id) == response
            client.responses.delete(response.id)
            with pytest.raises(openai.NotFoundError):
                client.responses.retrieve(response.id)
            with pytest.raises(openai.NotFoundError):
                client.responses.delete(response.id)

    def test_what_must_not_be_stored_is_not(self, server: Running) -> None:
        """`store=False`, streamed or not."""
        events = respond(server, store=False, stream=True)
        for response in (respond(server, store=False), events[-1].response):
            assert response.store is False
            with server.client() as client, pytest.raises(openai.NotFoundError):
                client.responses.retrieve(response.id)

    def test_a_response_is_its_callers_alone(self) -> None:
        """Another key neither reads it, nor goes on from it, nor deletes it."""
        with running(scripted_chat(RULES)[0], api_key=["one", "two"]) as server:
            response = respond(server)
            with server.client(api_key="two") as other:
                with pytest.raises(openai.NotFoundError):
                    other.responses.retrieve(response.id)
                with pytest.raises(openai.NotFoundError):
                    other.responses.delete(response.id)
                with pytest.raises(openai.BadRequestError):
                    other.responses.create(
                        model=MODEL, input="Who?", previous_response_id=response.id
                    )
            with server.client() as client:
                assert client.responses.retrieve(response.id).id == response.id

    def test_a_response_too_large_to_keep_says_so(self) -> None:
        """Its `store` is false."""
        with running(scripted_chat(RULES)[0], max_stored_bytes=0) as server:
            assert respond(server).store is False

    def test_the_oldest_are_forgotten(self) -> None:
        """What was used last stays, and all of it stays within the bound."""
        store = ResponseStore(1000)
        for name in "abc":
            assert store.keep("me", {"id": name, "text": "x" * 400}, ())
            store.get("me", "a")
        assert [name for name in "abc" if store.get("me", name) is not None] == ["a", "c"]
        assert not store.keep("me", {"id": "d", "text": "x" * 1000}, ())
        assert store.forget("me", "a")
        assert not store.forget("me", "a")
        assert store.keep("me", {"id": "e", "text": "x" * 400}, ())
        assert store.get("me", "c") is not None


class TestUnderWay:
    def test_a_client_that_goes_cancels_its_response(self) -> None:
        """In the stream: the slots are free, and nothing is stored."""
        with running(scripted_chat(RULES, max_sequential_tokens=4000)[0]) as server:
            with server.client() as client:
                stream = client.responses.create(
                    model=MODEL,
                    input="Long?",
                    stream=True,
                    extra_body={"reasoning_mode": "sequential"},
                )
                for event in stream:
                    if event.type == "response.output_text.delta":
                        break
                stream.close()
            assert server.at_rest()
            assert server.metric("broken_streams_total", reason="client") == 1

    def test_a_full_queue(self) -> None:
        """503 with `Retry-After`, by the same gate that lets chat completions in."""
        chat, script = scripted_chat(RULES)
        with running(chat, max_concurrency=1, max_queue=0) as server:
            halt = Halt(script, 3)
            with server.client() as client:
                stream = client.responses.create(model=MODEL, input="Who?", stream=True)
                assert halt.inside.wait(60)
                with pytest.raises(openai.InternalServerError) as refused:
                    respond(server)
                halt.go_on.set()
                assert list(stream)[-1].type == "response.completed"
            assert refused.value.code == "queue_full"
            assert refused.value.response.headers["Retry-After"]

    def test_an_error_in_a_stream_is_raised(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By OpenAI's client, as in a chat completion's stream."""
        from langchain_pos.reasoning.expanding import Expander

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("broken")

        monkeypatch.setattr(Expander, "expand", fail)
        with running(scripted_chat(RULES)[0]) as server:
            with pytest.raises(openai.APIError, match="the server failed") as raised:
                respond(server, stream=True)
            assert raised.value.code == "internal_error"
            with pytest.raises(openai.InternalServerError):
                respond(server)
            assert server.at_rest()
