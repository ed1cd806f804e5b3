"""What `test_faults.py` tries of answers that fail, a server that ends and lost replicas."""

from __future__ import annotations

import signal
import threading
import types
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
from tests.support.fault_rows import LONG, RULES, SEQUENTIAL, raw, row, served
from tests.support.replicas import fronted
from tests.support.scripted import Halt
from tests.support.scripted_chat import scripted_chat
from tests.support.server_requests import InThread, Outcome, outcome, seen, until
from tests.support.serving import URL, body, started

STAGES = [(Planner, "plan"), (Expander, "expand"), (Concluder, "conclude")]


def breaking(kind: type, stage: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a stage raise after its first forward pass; returns where it has done so, and grows."""
    original = getattr(kind, stage)
    raised: list[str] = []

    @types.coroutine
    def broken(*given: Any, **named: Any) -> Any:
        steps = original(*given, **named)
        yield steps.send(None)
        steps.close()
        raised.append(stage)
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(kind, stage, broken)
    return raised


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
                raised = breaking(kind, stage, patched)
                failing = InThread(server, body())
                until(lambda: server.service.gate.running == 2)
                halt.go_on.set()
                found.append(failing.outcome())
                answer = server.post(body())
                assert "secret" not in answer.text
                found.append(raw(answer))
                assert raised == [stage] * 2
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
                raised = breaking(kind, stage, patched)
                with pytest.raises(openai.APIError, match="log says how") as caught:
                    server.ask(stream=True)
                assert raised == [stage]
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
