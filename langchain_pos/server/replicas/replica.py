"""What runs in a replica: the server's own app, asked by method calls instead of a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Any

from langchain_pos.server.admission import ServerLimits
from langchain_pos.server.app import ANSWERS, create_app
from langchain_pos.server.errors import ERROR_EVENT, logger

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope

    from langchain_pos.chat_models.base import ChatParallelReasoning
    from langchain_pos.server.service import Service

FAULTS = 3
"""Answers in a row that end in a fault of ours, until a replica counts as broken."""


class Replica:
    """One model serving the app of `create_app`.

    Args:
        chat: answers; loaded here.
        limits: see `create_app`.
        model_name: see `create_app`.

    Raises:
        ModelLoadError, UnsupportedModelError: it cannot serve.
    """

    def __init__(
        self, chat: ChatParallelReasoning, limits: ServerLimits, model_name: str | None
    ) -> None:
        self._app = create_app(chat, limits=limits, model_name=model_name, page=False)
        self._service: Service = self._app.state.service
        self._life: AsyncExitStack | None = None
        self._faults = 0

    def model(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        return self._service.model()

    async def metrics(self) -> str:
        """The body of `/metrics` of a single server."""
        return (await self._service.metrics_text()).decode()

    def check_health(self) -> None:
        """Called every few seconds; a replica that raises here is replaced.

        Raises:
            RuntimeError: nothing but faults lately, as after an error of the device that stays.
        """
        if self._faults >= FAULTS:
            raise RuntimeError(f"the last {self._faults} answers ended in a fault; see the log")

    async def answer(self, body: bytes) -> AsyncGenerator[list[Message], None]:
        """The app's messages for a request, as many at a time as there are.

        The status comes together with the first bytes, so that an answer that is not streamed is
        one batch: it is lost whole, or not at all.
        """
        if self._life is None:
            self._life = AsyncExitStack()
            await self._life.enter_async_context(self._app.router.lifespan_context(self._app))
        async with aclosing(messages_of(self._app, body)) as batches:
            async for messages in batches:
                self._look(messages)
                yield messages

    def _look(self, messages: list[Message]) -> None:
        """Count faults in a row."""
        last = messages[-1]
        status = next((m["status"] for m in messages if "status" in m), 200)
        ending = last.get("body", b"")
        if status == 500 or ending.startswith(ERROR_EVENT):
            error = json.loads(ending.removeprefix(b"data: "))["error"]
            self._faults += error["code"] == "internal_error"
        elif status == 200 and not last.get("more_body"):
            self._faults = 0


async def messages_of(app: ASGIApp, body: bytes) -> AsyncGenerator[list[Message], None]:
    """What an app sends for a request for an answer; closing it is the client's going away."""
    # Who may ask was decided at the front door; here the request comes from this machine.
    headers = [
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": ANSWERS,
        "raw_path": ANSWERS.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
    }
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()
    answered = False

    async def receive() -> Message:
        if request:
            return request.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal answered
        answered = True
        sent.put_nowait(message)

    async def run() -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:
            if not answered:
                raise
            logger.debug("the app has answered with this error", exc_info=error)
        finally:
            sent.put_nowait(None)

    work = asyncio.create_task(run())
    try:
        held: list[Message] = []
        while (message := await sent.get()) is not None:
            held.append(message)
            if sent.empty() and message["type"] == "http.response.body":
                yield held
                held = []
        if held:
            yield held
        await work
    finally:
        gone.set()
        await asyncio.wait({work})  # until what the request held is free
