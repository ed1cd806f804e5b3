"""Requests to a server that runs, and what its client sees of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from tests.support.serving import URL, Client, Running

Outcome = tuple[int, str | None, type[Exception] | None]
"""What the client saw: status, code, and the exception of OpenAI's client."""


def outcome(error: openai.APIError) -> Outcome:
    """Of an exception of OpenAI's client; the message must say something."""
    assert len(error.message) > 20
    return getattr(error, "status_code", 200), error.code, type(error)


def seen(server: Client, given: dict[str, Any], headers: dict[str, str] | None = None) -> Outcome:
    """What OpenAI's client makes of a body, whatever it holds."""
    with server.client(default_headers=headers) as client:
        try:
            client.post(URL.removeprefix("/v1"), body=given, cast_to=object)
        except openai.APIStatusError as error:
            return outcome(error)
    return 200, None, None


def joined(chunks: list[Any]) -> dict[str, Any]:
    """The sum of a stream's chunks in the form of a whole choice."""
    text, thought, calls = "", "", []
    last: Any = None
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thought += getattr(choice.delta, "reasoning_content", "")
            calls += choice.delta.tool_calls or []
            last = choice if choice.finish_reason else last
    assert [call.index for call in calls] == list(range(len(calls)))
    return {
        "text": text,
        "thought": thought,
        "calls": [(call.function.name, call.function.arguments) for call in calls],
        "finish_reason": last.finish_reason,
    }


def whole(answer: ChatCompletion) -> dict[str, Any]:
    """A whole answer in the same form."""
    (choice,) = answer.choices
    calls = choice.message.tool_calls or []
    return {
        "text": choice.message.content or "",
        "thought": getattr(choice.message, "reasoning_content", ""),
        "calls": [(call.function.name, call.function.arguments) for call in calls],  # type: ignore[union-attr]
        "finish_reason": choice.finish_reason,
    }


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    while not condition():
        time.sleep(0.005)


class InThread:
    """A request under way; `outcome` waits for what its client sees."""

    def __init__(
        self, server: Running, given: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        self._found: list[Outcome] = []
        work = lambda: self._found.append(seen(server, given, headers))  # noqa: E731
        self._thread = threading.Thread(target=work)
        self._thread.start()

    def outcome(self) -> Outcome:
        self._thread.join()
        return self._found[0]
