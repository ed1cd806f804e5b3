"""Replicas, without Ray: what the front door forwards, and how options become a deployment."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import openai
import pytest

from langchain_pos import ChatParallelReasoning
from langchain_pos.errors import InvalidRequestError
from langchain_pos.server.admission import ServerLimits
from langchain_pos.server.replicas import RayOptions, ray_server
from langchain_pos.server.replicas.front import FrontMetrics
from langchain_pos.server.replicas.options import Sizes
from langchain_pos.server.replicas.replica import FAULTS, Replica, messages_of
from tests.support.replicas import fronted
from tests.support.scripted import STUDENTS, Halt
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import MODEL, URL, body, running

LONG = {**STUDENTS, "Long?\n\nAnswer:\n": "…"}
LIMITS = ServerLimits()


def plain(text: str) -> str:
    """An answer without what no two answers share: its id, clocks and times."""
    text = re.sub(r'"id": ?"chatcmpl-\w+"|"created": ?\d+', "", text)
    return re.sub(r'"timings": ?{[^}]*}|"(started|ended)": ?[\d.e-]+', "", text)


# ---------------------------------------------------------------------- the front door


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("question", ["Who?", "Hello?"])
def test_an_answer_through_the_front_is_the_single_servers(question: str, stream: bool) -> None:
    """Headers and bytes are the same, whole and streamed, in parallel and sequentially."""
    asked = body(question, stream=stream)
    with running(scripted_chat(STUDENTS)[0]) as server:
        alone = server.post(asked)
    with fronted(scripted_chat(STUDENTS)[0], []) as front:
        forwarded = front.post(asked)
    assert forwarded.status_code == alone.status_code == 200
    assert plain(forwarded.text) == plain(alone.text)
    changing = {"date", "content-length"}
    kept = [{k: v for k, v in r.headers.items() if k not in changing} for r in (alone, forwarded)]
    assert kept[0] == kept[1]


def test_what_is_wrong_reaches_no_replica() -> None:
    """Keys, bodies, fields and models are the front door's to refuse."""
    with fronted(scripted_chat(STUDENTS)[0], [], api_key="secret", max_body_bytes=1024) as front:
        right = {"Authorization": "Bearer secret"}
        assert front.post(body()).status_code == 401
        assert front.post(body(n=2), headers=right).status_code == 400
        assert front.post(body("x" * 2000), headers=right).status_code == 413
        assert front.post({**body(), "model": "other"}, headers=right).status_code == 404
        assert front.replicas.asked == 0
        assert front.ask().choices[0].message.content == "name: Ben"
        assert front.replicas.asked == 1


def test_what_a_replica_refuses_is_told_as_it_says() -> None:
    """Its bounds are checked where its settings are; that is no loss, and not tried again."""
    with fronted(scripted_chat(STUDENTS)[0], []) as front:
        with pytest.raises(openai.BadRequestError, match="max_branches"):
            front.ask(extra_body={"max_branches": 1000})
        assert front.replicas.asked == 1


def test_a_client_that_goes_ends_the_work_in_its_replica() -> None:
    """The slots are free, and the replica is not lost for that."""
    chat, script = scripted_chat(LONG)
    with fronted(chat, []) as front:
        halt = Halt(script, 20)
        asked = body("Long?", stream=True, max_tokens=1500, reasoning_mode="sequential")
        with front.http() as asking, asking.stream("POST", URL, json=asked) as answer:
            lines = answer.iter_lines()
            assert next(lines)
            halt.inside.wait()
        halt.go_on.set()
        while not front.replicas.closed:
            pass
        assert chat.engine.slots_in_use == 0
        assert front.metric("broken_streams_total", reason="client") == 1
        assert front.metric("retries_total") == 0


def test_a_complete_answer_is_no_broken_stream() -> None:
    """The client may close its connection at the last byte."""
    with fronted(scripted_chat(STUDENTS)[0], []) as front:
        for stream in (False, True):
            headers = {"Connection": "close"}
            assert front.post(body(stream=stream), headers=headers).status_code == 200
        assert front.metric("requests_total", status="200") == 2
        assert front.metric("broken_streams_total", reason="client") == 0


def test_requests_beyond_all_places_and_the_queue_are_refused() -> None:
    """Two replicas with one place each: two are answered, one waits, the fourth gets 503."""
    chat, script = scripted_chat(STUDENTS)

    async def ask(url: str) -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as asking:
            three = [asyncio.create_task(asking.post(URL, json=body())) for _ in range(3)]
            while front.front.gate.waiting < 1:
                await asyncio.sleep(0.005)
            refused = await asking.post(URL, json=body())
            halt.go_on.set()
            return [refused.status_code, *[(await each).status_code for each in three]]

    with fronted(chat, [], max_concurrency=1, max_queue=1) as front:
        halt = Halt(script, 2)
        assert asyncio.run(ask(front.url)) == [503, 200, 200, 200]


def test_metrics_have_one_family_for_all_replicas() -> None:
    """Each sample with its replica; what the front door counts itself is not counted twice."""
    with fronted(scripted_chat(STUDENTS)[0], []) as front, front.http() as asking:
        front.ask()
        text = asking.get("/metrics").text
        assert asking.get("/health").json() == {"status": "ok", "replicas": 2}
    assert text.count("# TYPE langchain_pos_tokens_total counter") == 1
    assert 'langchain_pos_branches_total{replica="one"} 2.0' in text
    assert 'langchain_pos_branches_total{replica="two"} 2.0' in text
    assert "langchain_pos_replicas 2.0" in text
    families = re.findall(r"# TYPE (\S+)", text)
    assert len(families) == len(set(families))


def test_no_replica_tells_metrics() -> None:
    """The front door's own are told all the same."""
    with fronted(scripted_chat(STUDENTS)[0], []) as front:
        assert isinstance(front.front.metrics, FrontMetrics)
        assert front.front.metrics.text_with({}) == front.front.metrics.text()


# ------------------------------------------------------------------------- a replica


async def batches(app: Any, **fields: Any) -> list[list[Any]]:
    """What an app sends for a request."""
    return [each async for each in messages_of(app, json.dumps(body(**fields)).encode())]


async def test_an_answer_that_is_not_streamed_is_one_batch() -> None:
    """So that it cannot be lost by halves; a stream comes in several, the status with the first."""
    replica = Replica(scripted_chat(STUDENTS)[0], LIMITS, MODEL)
    (whole,) = [each async for each in replica.answer(json.dumps(body()).encode())]
    assert [message["type"] for message in whole] == ["http.response.start", "http.response.body"]
    streamed = [e async for e in replica.answer(json.dumps(body(stream=True)).encode())]
    assert [message["type"] for message in streamed[0]][:2] == [
        "http.response.start",
        "http.response.body",
    ]
    assert len(streamed) > 1


async def test_faults_in_a_row_make_a_replica_ill() -> None:
    """Answers in between make it well; refusals count for nothing."""
    chat, script = scripted_chat(STUDENTS)
    replica = Replica(chat, LIMITS, MODEL)

    async def ask(**fields: Any) -> None:
        async for _ in replica.answer(json.dumps(body(**fields)).encode()):
            pass

    def broken() -> None:
        raise ZeroDivisionError("the device is gone")

    for _ in range(2):
        script.before = broken
        for number in range(FAULTS):
            replica.check_health()
            await ask(stream=bool(number % 2), reasoning_mode="sequential")
            await ask(max_branches=1000)
        with pytest.raises(RuntimeError, match="in a fault"):
            replica.check_health()
        script.before = lambda: None
        await ask()
        replica.check_health()


async def test_an_app_that_fails_without_a_word_is_an_error() -> None:
    """One that has told its error is not."""

    async def mute(*_: Any) -> None:
        raise ZeroDivisionError("nothing was sent")

    async def loud(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"sorry"})
        raise ZeroDivisionError("it was told")

    with pytest.raises(ZeroDivisionError):
        await batches(mute)
    (told,) = await batches(loud)
    assert told[-1]["body"] == b"sorry"


# -------------------------------------------------------------------------- options

CPUS = {"CPU": 8.0}
GPUS = {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("options", "resources", "sizes"),
    [
        ({}, CPUS, Sizes(1, 1, 0, 8)),
        ({"replicas": 3}, CPUS, Sizes(3, 3, 0, 2)),
        ({"replicas": 3}, {"CPU": 2.0}, Sizes(3, 3, 0, 0.6666)),
        ({"replicas": 2, "cpus_per_replica": 0.5}, CPUS, Sizes(2, 2, 0, 0.5)),
        ({}, GPUS, Sizes(4, 4, 1, 8)),
        ({"gpus_per_replica": 2}, GPUS, Sizes(2, 2, 2, 16)),
        ({"gpus_per_replica": 0.5}, GPUS, Sizes(8, 8, 0.5, 4)),
        ({"gpus_per_replica": 0, "replicas": 2}, GPUS, Sizes(2, 2, 0, 16)),
        ({"min_replicas": 2}, GPUS, Sizes(2, 4, 1, 8)),
        ({"max_replicas": 3}, GPUS, Sizes(1, 3, 1, 10)),
        ({"min_replicas": 2}, CPUS, Sizes(2, 2, 0, 4)),
    ],
)
def test_what_options_come_to(
    options: dict[str, Any], resources: dict[str, float], sizes: Sizes
) -> None:
    """One replica a GPU unless told otherwise; the cores are shared."""
    assert Sizes.of(RayOptions(**options), resources, own=True) == sizes


def test_a_cluster_of_others_may_grow() -> None:
    """More replicas than it has GPUs are refused on this machine alone."""
    many = RayOptions(replicas=9)
    with pytest.raises(InvalidRequestError, match="this machine has 4"):
        Sizes.of(many, GPUS, own=True)
    assert Sizes.of(many, GPUS, own=False) == Sizes(9, 9, 1, 1)


def test_a_deployment_is_one_that_ray_takes() -> None:
    """Fixed, or following the load; requests of a replica are the limit of the server."""
    serve = pytest.importorskip("ray.serve")
    limits = ServerLimits(max_concurrency=8, request_seconds=77)
    for options in (RayOptions(replicas=2), RayOptions(max_replicas=3, upscale_seconds=1)):
        sizes = Sizes.of(options, GPUS, own=True)
        told = serve.deployment(Replica, **sizes.deployment(options, limits))
        assert told.max_ongoing_requests == 8
        assert told.max_queued_requests == -1, "the front door has the queue"
    scaling = sizes.deployment(options, limits)["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 3)
    assert scaling["target_ongoing_requests"] == 6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"replicas": 2, "max_replicas": 3}, "one or the other"),
        ({"min_replicas": 3, "max_replicas": 2}, "more than max_replicas=2"),
        ({"replicas": 0}, "replicas=0"),
    ],
)
def test_options_that_contradict_each_other(fields: dict[str, Any], said: str) -> None:
    """In one line, with what was given."""
    with pytest.raises(InvalidRequestError, match=said):
        RayOptions.of(**fields)


def test_replicas_load_their_own_model() -> None:
    """A chat model over a loaded one is refused before Ray starts; so is an open host."""
    with pytest.raises(InvalidRequestError, match="model=…"), ray_server(scripted_chat({})[0]):
        pass
    with (
        pytest.raises(InvalidRequestError, match="LANGCHAIN_POS_API_KEY"),
        ray_server(ChatParallelReasoning(), host="0.0.0.0"),
    ):
        pass
