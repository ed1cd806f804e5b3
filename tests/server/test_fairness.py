"""Who is a caller of its own: an API key or an address, and never a name that a client made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.scripted import STUDENTS, Halt
from tests.support.scripted_chat import scripted_chat
from tests.support.server_requests import InThread, until
from tests.support.serving import body, running


def who_waits(
    requests: Sequence[tuple[dict[str, Any], dict[str, str]]], keys: list[str] | None = None
) -> dict[str, dict[str, int]]:
    """Requests in the queue by caller and user, of bodies' fields and headers."""
    chat, script = scripted_chat(STUDENTS)
    with running(chat, api_key=keys, max_concurrency=1) as server:
        halt = Halt(script, 1)
        threads = [InThread(server, body())]
        halt.inside.wait()
        gate = server.service.gate
        for place, (fields, headers) in enumerate(requests):
            threads.append(InThread(server, body(**fields), headers))
            until(lambda: gate.waiting > place)  # noqa: B023
        found = {
            account: {user: len(items) for user, items in users.items()}
            for account, users in gate._waiting._accounts.items()
        }
        halt.go_on.set()
        assert {thread.outcome()[0] for thread in threads} == {200}
        assert server.at_rest()
    return found


def test_each_key_is_a_caller() -> None:
    """Users belong to their key: the same name under another one is somebody else."""
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    found = who_waits(
        [({}, one), ({"user": "me"}, two), ({"user": "me"}, one), ({}, two), ({}, two)],
        keys=["one", "two"],
    )
    assert found == {"key 0": {"": 1, "me": 1}, "key 1": {"me": 1, "": 2}}


def test_without_keys_an_address_is_a_caller() -> None:
    """Whatever address a header tells; only strings name a user."""
    found = who_waits(
        [
            ({}, {"X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1"}),
            ({"safety_identifier": "a", "user": "b"}, {}),
            ({"user": "b"}, {"X-Real-IP": "10.0.0.2"}),
            ({"user": 7}, {}),
        ]
    )
    assert found == {"127.0.0.1": {"": 2, "a": 1, "b": 1}}
