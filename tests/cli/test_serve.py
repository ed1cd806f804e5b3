"""`langchain-pos serve` as a process: what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from typing import Any

import httpx
import pytest
from openai import OpenAI
from typer.testing import CliRunner

from langchain_pos import demo_question
from langchain_pos.cli.main import app
from langchain_pos.errors import InvalidRequestError
from langchain_pos.server import create_app, make_server
from langchain_pos.server.auth import is_loopback
from langchain_pos.server.errors import ApiError
from tests.support.scripted_chat import scripted_chat
from tests.support.serving import started

RUNNER = CliRunner()


def test_sigterm_under_load_finishes_what_is_under_way() -> None:
    """Accepted streams are whole, the process ends with 0, and nobody listens any more."""
    process, url = started("--served-model-name", "shipped", "--drain-seconds", "120")
    streams: list[list[Any]] = [[], []]
    begun = [threading.Event() for _ in streams]

    def ask(place: int) -> None:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            chunks = client.chat.completions.create(
                model="shipped",
                messages=[{"role": "user", "content": demo_question()}],
                stream=True,
            )
            for chunk in chunks:
                streams[place].append(chunk)
                begun[place].set()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(streams))]
    for thread in threads:
        thread.start()
    for event in begun:
        event.wait()
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    for chunks in streams:
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert len(chunks[-1].reasoning["blocks"][0]["branches"]) == 10
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_another_host_wants_an_api_key(host: str) -> None:
    """Before the model is loaded: exit code 2, and the way out in one line."""
    done = RUNNER.invoke(app, ["serve", "--host", host], env={"LANGCHAIN_POS_API_KEY": None})
    assert done.exit_code == 2
    assert "LANGCHAIN_POS_API_KEY" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_options_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key, which the help does not show, and all others; the command line overrides them."""
    seen: list[Any] = []

    def stop(_: Any, **given: Any) -> None:
        seen.append(given)
        raise InvalidRequestError("far enough")

    monkeypatch.setattr("langchain_pos.server.process.make_server", stop)
    env = {"LANGCHAIN_POS_API_KEY": "secret", "LANGCHAIN_POS_HOST": "0.0.0.0"}
    done = RUNNER.invoke(app, ["serve", "--max-queue", "3"], env=env)
    assert done.exit_code == 2
    assert seen[0]["api_key"] == ["secret"]
    assert seen[0]["host"] == "0.0.0.0"
    assert seen[0]["limits"].max_queue == 3
    env |= {"LANGCHAIN_POS_MAX_QUEUE": "4", "LANGCHAIN_POS_PAGE": "0", "LANGCHAIN_POS_SEED": "7"}
    RUNNER.invoke(app, ["serve", "--max-tokens", "5"], env=env)
    RUNNER.invoke(app, ["serve", "--max-queue", "6", "--page"], env=env)
    assert [asked["limits"].max_queue for asked in seen] == [3, 4, 6]
    assert [asked["page"] for asked in seen] == [True, False, True]
    assert "secret" not in RUNNER.invoke(app, ["serve", "--help"], env=env).output


@pytest.mark.parametrize(
    ("options", "environment", "keys"),
    [
        ([], None, None),
        ([], "one, two", ["one", "two"]),
        (["--api-key", "one,two"], "three", ["one", "two"]),
        ([], " ", [""]),
        ([], "one,", ["one", ""]),
    ],
)
def test_there_may_be_several_keys(
    options: list[str],
    environment: str | None,
    keys: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With commas between, in option and environment; a blank one is left to be refused."""
    seen: list[Any] = []
    monkeypatch.setattr(
        "langchain_pos.server.process.make_server", lambda _, **given: seen.append(given)
    )
    RUNNER.invoke(app, ["serve", *options], env={"LANGCHAIN_POS_API_KEY": environment})
    assert seen[0]["api_key"] == keys


@pytest.mark.parametrize("ray", [False, True])
def test_a_device_map_reaches_the_loader(ray: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without replicas, it is among what `from_pretrained` is given."""
    seen: list[Any] = []

    def stop(chat: Any, **given: Any) -> None:
        seen.append((chat._load_options(), given.get("options")))
        raise InvalidRequestError("far enough")

    monkeypatch.setattr("langchain_pos.server.process.make_server", stop)
    monkeypatch.setattr("langchain_pos.server.replicas.launch.ray_server", stop)
    scaling = ["--ray", "--max-replicas", "3", "--gpus-per-replica", "2"] if ray else []
    assert RUNNER.invoke(app, ["serve", "--device-map", "auto", *scaling]).exit_code == 2
    ((options, asked),) = seen
    assert options["device_map"] == "auto"
    if ray:
        assert (asked.max_replicas, asked.gpus_per_replica) == (3, 2)


def test_a_key_opens_other_hosts_and_an_empty_one_is_none() -> None:
    """`make_server` takes any address with a key; blanks are no key."""
    chat, _ = scripted_chat({})
    for good in ("secret", ["secret", "other"]):
        assert make_server(chat, host="0.0.0.0", api_key=good).model_name
    bad: list[Any] = [" ", "", [], ["secret", " "]]
    for each in bad:
        with pytest.raises(InvalidRequestError, match="empty"):
            create_app(chat, api_key=each)
    with pytest.raises(InvalidRequestError, match="can be reached"):
        make_server(chat, host="0.0.0.0", api_key=None)


async def test_a_second_signal_ends_the_server_without_waiting() -> None:
    """The first one drains, as long as something is under way."""
    chat, _ = scripted_chat({})
    server = make_server(chat)
    never = asyncio.Event()
    receive = asyncio.Event().wait
    under_way = asyncio.create_task(
        server.service.gate.while_connected(receive, never.wait())  # type: ignore[arg-type]
    )
    await asyncio.sleep(0)
    server.handle_exit(signal.SIGTERM, None)
    assert not await server.on_tick(1)
    server.handle_exit(signal.SIGTERM, None)
    assert await server.on_tick(2)
    with pytest.raises(ApiError, match="shutting down"):
        await under_way


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, own: bool) -> None:
    """Names and addresses that only this machine can mean."""
    assert is_loopback(host) is own


def test_the_error_body_is_json() -> None:
    """With every field that OpenAI's has."""
    error = ApiError(400, "wrong", "invalid_value", param="n")
    fields = json.loads(error.event.removeprefix(b"data: "))["error"]
    assert fields == {
        "message": "wrong",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }
