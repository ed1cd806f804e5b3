"""What `test_faults.py` tries of requests that are refused; see `fault_rows.py`."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.fault_rows import RULES, raw, row, served
from tests.support.scripted_chat import scripted_chat
from tests.support.server_requests import Outcome, seen
from tests.support.serving import URL, body, running


@row("invalid-json")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    json = {"Content-Type": "application/json"}
    bodies = [
        b"",
        b'{"model": "\\ud800"}',
        b"{",
        b"{'model': 1}",
        b"\xff\xfe",
        b'{"a":' * 100_000,
        b"[" * 100_000,
    ]
    with served() as (server, _):
        return [raw(server.post(content=each, headers=json)) for each in bodies]


@row("wrong-type")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    listed = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "[3]"}}
    wrong: list[dict[str, Any]] = [
        {"temperature": "hot"},
        {"temperature": -1},
        {"messages": "Who?"},
        {"messages": []},
        {"messages": [{"role": "judge", "content": "Who?"}]},
        {"messages": [{"role": "tool", "content": "7"}]},
        {"max_tokens": 1.5},
        {"max_tokens": 0},
        {"stream": "yes"},
        {"stop": [""]},
        {"top_logprobs": 2},
        {"tools": [{"type": "function", "function": {"name": "no name"}}]},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"stream_options": {"include_usage": True}},
        {"reasoning_mode": "fast"},
        {"tool_choice": {}},
        {"steps": ["a", "b"], "reasoning_mode": "sequential"},
        {"steps": ["a", "b"], "response_format": {"type": "json_object"}},
        {"messages": [{"role": "assistant", "tool_calls": [listed]}]},
        {"add_generation_prompt": False},
    ]
    with served() as (server, _):
        return [seen(server, body(**each) if each else {}) for each in wrong]


@row("missing-field")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        return [seen(server, {"model": "scripted"}), seen(server, {})]


@row("unknown-field")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        answer = server.post(body(temprature=0.5))
        assert "did you mean 'temperature'" in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == "temprature"
        return [raw(answer), seen(server, body(quite_unknown=1))]


@row("unsupported-field")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    neutral = {"n": 1, "presence_penalty": 0.0, "logit_bias": {}, "modalities": ["text"]}
    wrong: list[dict[str, Any]] = [
        {"n": 2},
        {"logit_bias": {"50256": -100}},
        {"frequency_penalty": 0.5},
        {"modalities": ["text", "audio"]},
        {"reasoning_effort": "high"},
    ]
    with served() as (server, _):
        harmless = {"user": "me", "metadata": {"a": "b"}, "store": False, "verbosity": None}
        assert server.post(body(**neutral, **harmless)).status_code == 200
        return [seen(server, body(**each)) for each in wrong]


@row("not-text")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with served() as (server, _):
        messages = [{"role": "user", "content": [{"type": "text", "text": "Who?"}, image]}]
        return [seen(server, body(messages=messages))]


@row("bad-schema")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    broken = {"type": "object", "properties": {"a": {"$ref": "#/$defs/Nothing"}}}
    form = {"type": "json_schema", "json_schema": {"name": "broken", "schema": broken}}
    tool = {"type": "function", "function": {"name": "add"}}
    with served() as (server, _):
        return [
            seen(server, body(response_format=form)),
            seen(server, body(response_format={"type": "xml"})),
            seen(server, body(tools=[tool], tool_choice="subtract")),
            seen(server, body(tool_choice="required")),
        ]


@row("too-many-tokens")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served(max_tokens=100) as (server, _):
        return [
            seen(server, body(max_tokens=101)),
            seen(server, body(max_completion_tokens=101)),
            seen(server, body(max_branch_tokens=10_000)),
            seen(server, body(steps=[{"title": "a", "max_tokens": 10_000}, "b"])),
        ]


@row("thousand-branches")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        titles = [f"step {number}" for number in range(1000)]
        return [seen(server, body(steps=titles)), seen(server, body(max_branches=1000))]


@row("long-prompt")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        return [seen(server, body("Who? " * 5000)), seen(server, body("x" * 20_000, stream=True))]


@row("out-of-slots")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        pool = server.chat.engine.forward.forest.pool
        most, pool.max_slots = pool.max_slots, 16
        found = [seen(server, body()), seen(server, body(stream=True))]
        pool.max_slots = most
        return found


@row("wrong-key")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    chat, script = scripted_chat(RULES)
    with running(chat, api_key="sécret") as server, server.http() as asking:
        assert asking.get("/health").status_code == 200
        for path in ("/metrics", "/v1/models", "/nowhere"):
            assert asking.get(path).status_code == 401
        given: list[dict[str, Any]] = [
            {},
            {"Authorization": "Bearer sécre".encode()},
            {"Authorization": "Basic sécret".encode()},
            {"Authorization": b"Bearer \xff"},
            {"api-key": "sécret".encode()},
        ]
        found = [raw(server.post(body(), headers=each)) for each in given]
        right = {"Authorization": "Bearer sécret".encode()}
        assert not script.passes
        assert server.post(body(), headers={**right, "Host": "example.org"}).status_code == 200
        return found


@row("wrong-host")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        for good in ("localhost:1", "127.0.0.1", "[::1]:80"):
            assert server.post(body(), headers={"Host": good}).status_code == 200
        hosts = ("evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "10.0.0.1")
        return [raw(server.post(body(), headers={"Host": host})) for host in hosts]


@row("unknown-model")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        return [seen(server, {**body(), "model": "gpt-4o"})]


@row("unknown-path")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _), server.http() as asking:
        assert asking.get(URL).status_code == 405
        return [raw(asking.post("/v1/completions", json=body())), raw(asking.get("/docs"))]


@row("slow-body")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served(body_seconds=0.05) as (server, _):
        asked = http.client.HTTPConnection(server.url.removeprefix("http://"))
        asked.putrequest("POST", URL)
        asked.putheader("Content-Type", "application/json")
        asked.putheader("Content-Length", "100")
        asked.endheaders(b"{")  # and no more
        answer = asked.getresponse()
        found = httpx.Response(
            answer.status, content=answer.read(), request=httpx.Request("POST", server.url)
        )
        asked.close()
        return [raw(found)]


@row("huge-body")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    def chunked() -> Iterator[bytes]:  # without Content-Length
        for _ in range(160):
            yield b"x" * 65536

    json = {"Content-Type": "application/json"}
    with served() as (server, script):
        found = [seen(server, body("x" * 10_000_000))]
        found += [raw(server.post(content=chunked(), headers=json))]
        assert not script.passes
        return found


@row("wrong-content-type")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, script):
        found = [
            raw(server.post(content=b"{}", headers={"Content-Type": kind}))
            for kind in ("text/plain", "application/x-www-form-urlencoded")
        ]
        assert not script.passes
        return [*found, raw(server.post(content=b"{}"))]
