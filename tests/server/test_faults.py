"""Every row of the table "What a client sees" in `docs/server.md`, tried on a real server."""

from __future__ import annotations

import http.client
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from langchain_pos import demo_question
from langchain_pos.errors import OutOfSlotsError
from langchain_pos.reasoning.concluding import Concluder
from langchain_pos.reasoning.expanding import Expander
from langchain_pos.reasoning.planning import Planner
from langchain_pos.server.admission import ServerLimits
from tests.support.replicas import fronted
from tests.support.scripted import STUDENTS, Halt, Script
from tests.support.scripted_chat import scripted_chat
from tests.support.server_requests import InThread, Outcome, outcome, seen, until
from tests.support.serving import URL, Running, body, running, started

RULES = {
    **STUDENTS,
    "Long?\n\nAnswer:\n": "…",
    "Nothing?\n\nAnswer:\n": "",
}
PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
SEQUENTIAL = {"reasoning_mode": "sequential"}
LONG = {"max_tokens": 1500, **SEQUENTIAL}
"""The answer to "Long?" goes on and on; a test ends it."""

Row = Callable[[pytest.MonkeyPatch], list[Outcome]]
ROWS: dict[str, Row] = {}


def table() -> dict[str, list[str]]:
    """The cells of each row behind its name."""
    lines = PAGE.split("## What a client sees")[1].splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


TABLE = table()


def row(name: str) -> Callable[[Row], Row]:
    """Register what a row says."""

    def add(tried: Row) -> Row:
        ROWS[name] = tried
        return tried

    return add


@pytest.mark.parametrize("name", TABLE)
def test_a_row_says_what_a_client_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status, code and exception; what the row tries must leave nothing behind (`served`)."""
    assert name in ROWS, f"docs/server.md has a row {name!r} that nothing tests"
    _, status, code, raised = TABLE[name]
    outcomes = ROWS[name](monkeypatch)
    codes = set(re.findall(r"`(\w+)`", code))
    assert {outcome[0] for outcome in outcomes} == {0 if status == "none" else int(status)}
    assert {outcome[1] for outcome in outcomes} == (codes or {None})
    for _, _, kind in outcomes:
        assert (kind is None) == ("`" not in raised)
        if kind is not None:
            assert raised.strip("`") in {each.__name__ for each in kind.__mro__}


def test_every_test_has_its_row() -> None:
    """What is tested is in the table."""
    assert set(ROWS) == set(TABLE)


# ------------------------------------------------------------------------- helpers


@contextmanager
def served(*, positions: int = 4096, **limits: Any) -> Iterator[tuple[Running, Script]]:
    """A server; when the block ends nothing is held, and a question is answered as ever."""
    chat, script = scripted_chat(RULES, positions=positions)
    with running(chat, **limits) as server:
        yield server, script
        script.before = lambda: None
        assert server.at_rest()
        if not server.service.gate.draining:
            assert server.ask().choices[0].message.content == "name: Ben"
            assert server.at_rest()


def raw(answer: httpx.Response) -> Outcome:
    """Of a bare answer, through the exception that OpenAI's client makes of it."""
    error = openai.OpenAI(api_key="none")._make_status_error_from_response(answer)  # type: ignore[arg-type]
    return outcome(error)


# ------------------------------------------------------------------ what is refused


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
        forest = server.chat.engine.forward.forest
        most, forest.max_slots = forest.max_slots, 16
        found = [seen(server, body()), seen(server, body(stream=True))]
        forest.max_slots = most
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


# ------------------------------------------------------------------- what goes wrong


STAGES = [(Planner, "plan"), (Expander, "expand"), (Concluder, "conclude")]


def breaking(kind: type, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stage raise behind its first forward pass."""
    original = getattr(kind, stage)

    def broken(*given: Any) -> Any:
        steps = original(*given)
        yield next(steps)
        steps.close()
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(kind, stage, broken)


@row("stage-raises")
def _(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    found = []
    with served() as (server, script):
        for kind, stage in STAGES:
            script.passes.clear()
            halt = Halt(script, 3)
            beside = InThread(server, body("Hello?", **SEQUENTIAL))
            halt.inside.wait()
            with monkeypatch.context() as patched:  # the other one comes through no such stage
                breaking(kind, stage, patched)
                failing = InThread(server, body())
                until(lambda: server.service.gate.running == 2)
                halt.go_on.set()
                found.append(failing.outcome())
                answer = server.post(body())
                assert "secret" not in answer.text
                found.append(raw(answer))
            assert beside.outcome()[0] == 200
            assert server.at_rest()
        return found


@row("no-text")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        answer = server.post(body("Nothing?", **SEQUENTIAL))
        assert answer.json()["reasoning"]["finish_reason"] == "error"
        assert answer.headers["x-should-retry"] == "false"
        return [raw(answer)]


@row("full-queue")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served(max_concurrency=1, max_queue=1) as (server, script):
        halt = Halt(script, 2)
        first = InThread(server, body())
        halt.inside.wait()
        second = InThread(server, body())
        until(lambda: server.service.gate.waiting == 1)
        assert server.metric("queue_length") == 1
        assert server.metric("slots_in_use") > 0
        answer = server.post(body())
        assert int(answer.headers["Retry-After"]) >= 1
        halt.go_on.set()
        assert first.outcome()[0] == second.outcome()[0] == 200
        return [raw(answer)]


@row("pushed-out")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served(max_concurrency=1, max_queue=2) as (server, script):
        halt = Halt(script, 2)
        waiting = []
        for count in range(3):
            waiting.append(InThread(server, body(user="many")))
            until(lambda: server.service.gate.running + server.service.gate.waiting > count)  # noqa: B023
        halt.inside.wait()
        other = InThread(server, body(user="few"))
        pushed_out = waiting.pop()
        found = [pushed_out.outcome()]
        halt.go_on.set()
        assert {each.outcome()[0] for each in (*waiting, other)} == {200}
        return found


@row("out-of-memory")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, script):

        def full() -> None:
            if len(script.passes) == 10:
                raise OutOfSlotsError("no slot is left for what the request holds")

        script.before = full
        answer = server.post(body())
        assert int(answer.headers["Retry-After"]) >= 1
        return [raw(answer)]


@row("too-slow")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, _):
        gate = server.service.gate
        gate.limits = ServerLimits(request_seconds=0.2)
        found = [seen(server, body("Long?", **LONG))]
        gate.limits = ServerLimits()
        return found


@row("own-deadline")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    soon = {"X-Request-Timeout": "0.2"}
    with served(max_concurrency=1) as (server, script):
        answer = server.post(body("Long?", **LONG), headers=soon)
        assert "X-Request-Timeout" in answer.json()["error"]["message"]
        assert server.at_rest()
        with server.http() as asking:  # in a stream it is an event
            told = asking.post(URL, json=body("Long?", stream=True, **LONG), headers=soon).text
        assert '"code": "timeout"' in told.splitlines()[-2]
        assert server.at_rest()

        halt = Halt(script, len(script.passes) + 2)  # waiting counts
        first = InThread(server, body())
        halt.inside.wait()
        late = server.post(body(), headers=soon)
        assert server.service.gate.waiting == 0
        halt.go_on.set()
        assert first.outcome()[0] == 200
        generous = {"X-Request-Timeout": "1e6"}
        assert server.post(body(), headers=generous).status_code == 200
        return [raw(answer), raw(late)]


@row("bad-deadline")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, script):
        wrong = ("soon", "0", "-1", "nan", "inf", "", "1,5")
        found = [server.post(body(), headers={"X-Request-Timeout": each}) for each in wrong]
        assert not script.passes
        return [raw(answer) for answer in found]


@row("stream-breaks")
def _(monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    found = []
    with served() as (server, _):
        for count, (kind, stage) in enumerate(STAGES[1:], 1):
            with monkeypatch.context() as patched:
                breaking(kind, stage, patched)
                with pytest.raises(openai.APIError, match="log says how") as caught:
                    server.ask(stream=True)
            assert server.metric("broken_streams_total", reason="error") == count
            assert server.at_rest()
            found.append(outcome(caught.value))
        return found


@row("client-vanishes")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served(max_concurrency=1) as (server, script):
        live = server.chat.engine.scheduler._live
        gate = server.service.gate

        # In a stream, while a pass is under way.
        halt = Halt(script, 30)
        with server.http() as asking:
            given = body("Long?", stream=True, **LONG)
            with asking.stream("POST", URL, json=given) as answer:
                lines = answer.iter_lines()  # dropped, it would close the connection
                assert next(lines)
                halt.inside.wait()
        until(lambda: live[0].cancelled)
        assert server.chat.engine.slots_in_use > 0
        halt.go_on.set()
        assert server.at_rest()
        assert len(script.passes) == 31, "that pass was its last"
        assert server.metric("broken_streams_total", reason="client") == 1

        # Before there is an answer: one that is decoded, and one in the queue.
        script.passes.clear()
        halt = Halt(script, 2)
        with server.http() as first, server.http() as second:
            for asking in (first, second):
                asking.timeout = httpx.Timeout(0.5)
                with pytest.raises(httpx.ReadTimeout):
                    asking.post(URL, json=body("Long?", **LONG))
                halt.inside.wait()
        until(lambda: live[0].cancelled and gate.waiting == 0)
        halt.go_on.set()
        assert server.at_rest()
        assert len(script.passes) == 3
        assert server.metric("requests_total", status="499") == 2
        return [(0, None, None)]


# -------------------------------------------------------------------- shutting down


@row("shutting-down")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served() as (server, script):
        halt = Halt(script, 2)
        under_way = InThread(server, body())
        halt.inside.wait()
        server.server.handle_exit(15, None)
        answer = server.post(body())
        assert int(answer.headers["Retry-After"]) >= 1
        with server.http() as asking:
            assert asking.get("/health").status_code == 503
        halt.go_on.set()
        assert under_way.outcome()[0] == 200
        return [raw(answer)]


@row("drain-over")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with served(drain_seconds=0.2) as (server, script):
        under_way = InThread(server, body("Long?", **LONG))
        until(lambda: len(script.passes) > 3)
        server.server.handle_exit(15, None)
        return [under_way.outcome()]


@row("sigterm")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    process, url = started(
        *("--served-model-name", "shipped", "--max-concurrency", "2", "--drain-seconds", "120")
    )
    asked = {**body(demo_question()), "model": "shipped"}
    answers: list[httpx.Response] = []
    work = lambda: answers.append(httpx.post(url + URL, json=asked, timeout=None))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(5)]
    with httpx.Client(base_url=url, timeout=60) as asking:
        for thread in threads:
            thread.start()
        until(lambda: "queue_length 3.0" in asking.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        until(lambda: asking.get("/health").status_code == 503)
        late = asking.post(URL, json=asked)
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    return [raw(late)]


# ------------------------------------------------------- replicas (`--ray`) that are lost


@row("replica-retried")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with fronted(scripted_chat(RULES)[0], [0, 0]) as front:
        found = [seen(front, body())]
        assert front.replicas.asked == 3
        assert front.metric("retries_total") == 2
        return found


@row("replica-lost")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with fronted(scripted_chat(RULES)[0], [1]) as front:
        with pytest.raises(openai.APIError, match="ask again") as caught:
            front.ask(stream=True)
        assert front.replicas.asked == 1, "a part of it had been sent"
        assert front.metric("broken_streams_total", reason="replica_lost") == 1
        return [outcome(caught.value)]


@row("replicas-lost")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with fronted(scripted_chat(RULES)[0], [0] * 6) as front:
        answer = front.post(body())
        assert answer.headers["x-should-retry"] == "false"
        assert front.replicas.asked == 3
        return [raw(answer), seen(front, body(stream=True))]


@row("no-replica")
def _(_: pytest.MonkeyPatch) -> list[Outcome]:
    with fronted(scripted_chat(RULES)[0], []) as front, front.http() as asking:
        front.replicas.count = 0
        health = asking.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "no_replica")
        front.replicas.startable = False
        answer = front.post(body())
        assert int(answer.headers["Retry-After"]) >= 1
        return [raw(answer)]
