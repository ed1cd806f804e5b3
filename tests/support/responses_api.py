"""Requests to `/v1/responses`, and a check that a stream keeps the order of the API's events."""

from __future__ import annotations

import json
from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support.serving import MODEL, Client

URL = "/v1/responses"
ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Add.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
    "strict": True,
}
SEQUENTIAL = {"reasoning_mode": "sequential"}
_EVENT: Any = TypeAdapter(ResponseStreamEvent)
_TEXTS = {"message": "output_text", "reasoning": "reasoning_summary_text"}
_PARTS = {"message": "content_part", "reasoning": "reasoning_summary_part"}
_FIELDS = {"message": "content", "reasoning": "summary"}


def respond(server: Client, question: Any = "Who?", **fields: Any) -> Any:
    """A response, by OpenAI's client; of a stream, all events."""
    with server.client() as client:
        found = client.responses.create(model=MODEL, input=question, **fields)
        return list(found) if fields.get("stream") else found


def events_of(server: Client, question: Any = "Who?", **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream as they came over the wire, each checked against OpenAI's own type."""
    asked = {"model": MODEL, "input": question, "stream": True, **fields}
    with server.http() as http:
        answer = http.post(URL, json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *written, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    events = []
    for each in written:
        head, data = each.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert head == f"event: {event['type']}"
        _EVENT.validate_python(event)
        events.append(event)
    return events


def checked(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The response that a stream ends with.

    Events are numbered; the response is created first and ends last; an item is added, grows and is
    done before the next one; what has been streamed is what is in it.
    """
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    created, in_progress, *rest, last = events
    assert created["type"] == "response.created"
    assert in_progress["type"] == "response.in_progress"
    assert created["response"]["status"] == "in_progress"
    assert not created["response"]["output"]
    response: dict[str, Any] = last["response"]
    assert last["type"] == f"response.{response['status']}"
    assert response["id"] == created["response"]["id"]
    for place, item in enumerate(response["output"]):
        assert rest[0]["output_index"] == place
        own = [event for event in rest if event["output_index"] == place]
        assert own == rest[: len(own)]
        rest = rest[len(own) :]
        _check_item(item, own)
    assert not rest
    return response


def _check_item(item: dict[str, Any], events: list[dict[str, Any]]) -> None:
    kinds = [event["type"].removeprefix("response.") for event in events]
    ids = {event.get("item_id") or event["item"]["id"] for event in events}
    assert ids == {item["id"]}
    assert (kinds[0], kinds[-1]) == ("output_item.added", "output_item.done")
    assert events[0]["item"]["status"] == "in_progress"
    assert events[-1]["item"] == item
    deltas = "".join(event.get("delta", "") for event in events)
    if item["type"] == "function_call":
        text = "function_call_arguments"
        assert kinds[1:-1] == [f"{text}.delta", f"{text}.done"]
        assert events[0]["item"]["arguments"] == ""
        assert deltas == events[-2]["arguments"] == item["arguments"]
        return
    text, part = _TEXTS[item["type"]], _PARTS[item["type"]]
    written = [f"{text}.delta"] * (len(events) - 5)
    assert kinds[1:-1] == [f"{part}.added", *written, f"{text}.done", f"{part}.done"]
    (own,) = item[_FIELDS[item["type"]]]
    assert deltas == events[-3]["text"] == own["text"]
    assert events[-2]["part"] == own


def contents(response: Any) -> list[tuple[str, str]]:
    """What each item says: its type, and its text or call."""
    output = response["output"] if isinstance(response, dict) else response.model_dump()["output"]
    return [(item["type"], _content(item)) for item in output]


def _content(item: dict[str, Any]) -> str:
    if item["type"] == "function_call":
        return f"{item['name']} {item['arguments']}"
    return "".join(part["text"] for part in item[_FIELDS[item["type"]]])
