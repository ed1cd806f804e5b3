"""Two replicas of the shipped model on Ray Serve: the command itself, asked by OpenAI's client."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import psutil
import pytest

from langchain_pos import ChatParallelReasoning, demo_question
from tests.support.serving import MODEL, URL, Client, body, running

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
grpc = pytest.importorskip("grpc")
pytestmark = pytest.mark.slow

COMMAND = "from langchain_pos.cli.main import main; main()"
KEY = "a-secret"
QUESTIONS = [demo_question(), demo_question().replace("highest", "lowest")]


@dataclass
class Cluster(Client):
    """`langchain-pos serve --ray`, and what it started."""

    process: subprocess.Popen[str]

    def replicas(self) -> list[psutil.Process]:
        """The replicas' processes."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [each for each in found if "ray::ServeReplica" in name(each)]

    def get(self, path: str) -> httpx.Response:
        with self.http() as asking:
            return asking.get(path, headers={"Authorization": f"Bearer {self.key}"})

    def metric(self, wanted: str) -> list[float]:
        """The values of all samples of a metric, one a replica where they have it."""
        lines = self.get("/metrics").text.splitlines()
        found = [line.split() for line in lines if line.startswith(f"langchain_pos_{wanted}")]
        return [float(value) for _, value in found]

    def whole(self) -> bool:
        """Both replicas take requests, and nothing is held."""
        health = self.get("/health").json()
        slots = self.metric("slots_in_use")
        return health == {"status": "ok", "replicas": 2} and slots == [0.0, 0.0]


def name(process: psutil.Process) -> str:
    """A process' own title; empty when it has gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def until(there: Callable[[], bool]) -> None:
    """Wait for it."""
    while not there():
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two replicas; when the tests are over, nothing of Ray is left."""
    folder = tempfile.mkdtemp(prefix="ray")  # short: Ray has sockets in it
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", COMMAND, "serve", "--ray", "--replicas", "2", "--port", "0"),
            *("--served-model-name", MODEL, "--max-concurrency", "8", "--dtype", "float32"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "LANGCHAIN_POS_API_KEY": KEY,
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": folder,
        },
    )
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"(http://\S+)/v1 serves", line):
            break
    else:
        raise AssertionError(f"it ended with {process.wait()}: {''.join(said)}")
    reader = threading.Thread(target=process.stderr.read)  # so that the pipe never fills
    reader.start()
    started = psutil.Process(process.pid).children(recursive=True)
    try:
        yield Cluster(found[1], KEY, process)
    finally:
        started += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        ended = process.wait()
        _, left = psutil.wait_procs(started, timeout=30)
        for each in left:
            each.kill()
        reader.join()
        shutil.rmtree(folder, ignore_errors=True)
    assert ended == 0
    assert not left


def ask(cluster: Client, question: str, **fields: Any) -> dict[str, Any]:
    """A whole answer by OpenAI's client, without ids, clocks and pass counts."""
    with cluster.client() as client:
        messages: Any = [{"role": "user", "content": question}]
        found = client.chat.completions.create(model=MODEL, messages=messages, **fields)
    return said(found.model_dump())


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """What an answer says."""
    blocks = [
        {branch["title"]: branch["text"] for branch in block["branches"]}
        for block in answer["reasoning"]["blocks"]
    ]
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else None
    return {"text": text, "blocks": blocks, "reason": choice["finish_reason"]}


def stream(
    cluster: Client, question: str, begun: Callable[[], object] = lambda: None
) -> tuple[str, dict[str, Any]]:
    """A streamed answer: its text, and what its last chunk says; calls `begun` at the first."""
    texts: list[str] = []
    with cluster.client() as client:
        messages: Any = [{"role": "user", "content": question}]
        for place, chunk in enumerate(
            client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        ):
            if place == 0:
                begun()
            texts.append(chunk.choices[0].delta.content or "")
    return "".join(texts), said(chunk.model_dump())


def test_answers_are_those_of_one_server(cluster: Cluster) -> None:
    """Whole and streamed, greedy, in float32: text, branches and finish reason are the same."""
    with running(ChatParallelReasoning(dtype="float32")) as single:
        alone = [ask(single, question) for question in QUESTIONS]
    for question, expected in zip(QUESTIONS, alone, strict=True):
        assert len(expected["blocks"][0]) == 10
        assert ask(cluster, question) == expected
        text, last = stream(cluster, question)
        assert text == expected["text"]
        assert last["blocks"] == expected["blocks"]


def test_load_spreads(cluster: Cluster) -> None:
    """Of eight requests at once each replica answers some."""
    assert len({each.pid for each in cluster.replicas()}) == 2
    before = cluster.metric("branches_total")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(cluster, QUESTIONS[0]), range(8)))
    assert all(answer == answers[0] for answer in answers)
    written = [a - b for a, b in zip(cluster.metric("branches_total"), before, strict=True)]
    assert min(written) > 0
    assert sum(written) == 80


def test_the_key_and_the_model(cluster: Cluster) -> None:
    """As at the single server; `/health` needs no key."""
    with httpx.Client(base_url=cluster.url) as asking:
        assert asking.get("/v1/models").status_code == 401
        assert asking.get("/health").status_code == 200
        answer = asking.post(URL, json=body(), headers={"Authorization": "Bearer other"})
        assert answer.json()["error"]["code"] == "invalid_api_key"
    with cluster.client() as client:
        (listed,) = client.models.list()
        assert (listed.id, listed.owned_by) == (MODEL, "langchain-pos")
        with pytest.raises(openai.BadRequestError, match="max_branches=99"):
            client.post(URL.removeprefix("/v1"), body=body(max_branches=99), cast_to=dict[str, Any])


def test_a_client_that_goes_frees_the_replicas_slots(cluster: Cluster) -> None:
    """In the middle of a stream."""
    headers = {"Authorization": f"Bearer {KEY}"}
    asked = body(demo_question(), stream=True)
    with (
        cluster.http() as asking,
        asking.stream("POST", URL, json=asked, headers=headers) as answer,
    ):
        lines = answer.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["model"] == MODEL
    until(lambda: cluster.metric("slots_in_use") == [0.0, 0.0])
    until(lambda: cluster.metric('broken_streams_total{reason="client"}') == [1.0])
    assert cluster.metric("retries_total") == [0.0]


def test_a_killed_replica_loses_no_request_that_has_not_begun(cluster: Cluster) -> None:
    """All that it worked on is answered by the other one; then there are two again."""
    expected = ask(cluster, QUESTIONS[0])
    (victim, survivor) = cluster.replicas()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, cluster, QUESTIONS[0]) for _ in range(8)]
        until(lambda: len([s for s in cluster.metric("slots_in_use") if s]) == 2)
        victim.kill()
        assert [each.result() for each in asked] == [expected] * 8
    assert cluster.metric("retries_total")[0] >= 1
    until(cluster.whole)
    now = {each.pid for each in cluster.replicas()}
    assert survivor.pid in now
    assert len(now - {victim.pid}) == 2
    assert ask(cluster, QUESTIONS[0]) == expected


def test_a_killed_replica_ends_its_streams_by_name(cluster: Cluster) -> None:
    """Those that had begun there end with `replica_lost`, the others go on; a metric counts."""
    until(cluster.whole)
    expected = stream(cluster, QUESTIONS[0])
    begun = threading.Barrier(7)

    def follow() -> Any:
        try:
            return stream(cluster, QUESTIONS[0], begun.wait)
        except openai.APIError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(follow) for _ in range(6)]
        begun.wait()  # the clients read no further before all have begun
        cluster.replicas()[0].kill()
        found = [each.result() for each in asked]
    lost = [each for each in found if isinstance(each, openai.APIError)]
    assert {(each.code, type(each)) for each in lost} == {("replica_lost", openai.APIError)}
    assert all("ask again" in each.message for each in lost)
    assert [each for each in found if each not in lost] == [expected] * (6 - len(lost))
    assert 0 < len(lost) < 6
    assert cluster.metric('broken_streams_total{reason="replica_lost"}') == [len(lost)]
    until(cluster.whole)
    assert stream(cluster, QUESTIONS[0]) == expected


def test_nobody_without_the_token_reaches_ray(cluster: Cluster) -> None:
    """All ports are on loopback, but for one that Ray gives each replica, and that asks for it."""
    front = psutil.Process(cluster.process.pid)
    listening = [
        (process.pid, connection.laddr)
        for process in [front, *front.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    loopback = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    open_ones = [(pid, address) for pid, address in listening if address.ip not in loopback]
    replicas = {each.pid for each in cluster.replicas()}
    assert {pid for pid, _ in open_ones} <= replicas
    assert len(open_ones) <= len(replicas) < len(listening)
    for _, address in open_ones:
        with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=60)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
