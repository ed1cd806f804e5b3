"""Who answers a request, and a response that lasts as long as its client."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from langchain_pos.chat_models.call import ChatCall
from langchain_pos.errors import InvalidRequestError
from langchain_pos.model_source import shipped_model
from langchain_pos.server.admission import ClientGone, Gate, ServerLimits
from langchain_pos.server.errors import ApiError, api_error, logger
from langchain_pos.server.metrics import Metrics
from langchain_pos.server.responses import AnswerWriter

if TYPE_CHECKING:
    from langchain_core.outputs import ChatGenerationChunk
    from starlette.types import Receive, Scope, Send

    from langchain_pos.chat_models.base import ChatParallelReasoning
    from langchain_pos.engine.scheduler.fair_queue import Caller
    from langchain_pos.results.result import ReasoningChunk
    from langchain_pos.server.metrics import DoorMetrics
    from langchain_pos.server.requests import ChatRequest


@dataclass(frozen=True)
class Errand:
    """A request as the routes hand it on.

    Attributes:
        asked: the body, read.
        body: as it came.
        caller: whose turn it takes in the queue.
        seconds: that the client gives it; None leaves it to the server.
    """

    asked: ChatRequest
    body: bytes
    caller: Caller
    seconds: float | None = None


class Served(ABC):
    """What the routes share; who answers is for the subclasses to say.

    Attributes:
        name: of the model.
        gate: who may go on.
        metrics: what `/metrics` shows.
    """

    def __init__(self, name: str, gate: Gate, metrics: DoorMetrics) -> None:
        self.name = name
        self.gate = gate
        self.metrics = metrics

    @abstractmethod
    def model(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""

    @abstractmethod
    def answer(self, errand: Errand) -> Response:
        """The response to a request."""

    async def health(self) -> dict[str, Any]:
        """The body of `/health`; anything but the status "ok" comes with 503."""
        return {"status": "draining" if self.gate.draining else "ok"}

    async def metrics_text(self) -> bytes:
        """The body of `/metrics`, as Prometheus reads it."""
        return self.metrics.text()

    def known(self, model: str) -> None:
        """Refuse any other model.

        Raises:
            ApiError: 404.
        """
        if model != self.name:
            raise ApiError(
                404,
                f"the model {model!r} does not exist here; this server has {self.name!r}",
                "model_not_found",
                param="model",
            )


class HeldResponse(Response, ABC):
    """A response that is worked on while its client, its time and the server last."""

    def __init__(self, served: Served, errand: Errand) -> None:
        super().__init__()
        self._served = served
        self._errand = errand
        self._started = False
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; an error that comes before anything is sent is raised, a later one sent."""
        gate, metrics = self._served.gate, self._served.metrics
        try:
            work = self._work(scope, receive, send)
            await gate.while_connected(receive, work, self._errand.seconds)
        except ClientGone:
            if self._ended:  # it closed its connection at the last byte
                return
            if self._started:
                metrics.broken.labels("client").inc()
            else:
                metrics.requests.labels("499").inc()
        except Exception as raised:
            error = self._error(raised)
            if not self._started:
                raise error from raised
            metrics.broken.labels(error.broken).inc()
            await _end_stream(send, error)

    @abstractmethod
    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; sets `_started` before anything is sent.

        And `_ended` before the last byte, if there is still something to do after it.
        """

    def _error(self, raised: Exception) -> ApiError:
        return api_error(raised, retry_after=self._served.gate.retry_after)


class Service(Served):
    """The chat model answers, in this process."""

    def __init__(self, chat: ChatParallelReasoning, name: str | None, limits: ServerLimits) -> None:
        if chat.remote is not None:
            raise InvalidRequestError(
                "the chat model's engine is a server itself; let clients ask that one, or serve a "
                "local model"
            )
        gate = Gate(limits)
        self.metrics: Metrics
        super().__init__(name or _served_name(chat), gate, Metrics(gate, chat.engine))
        self.chat = chat
        self.created = int(time.time())

    def model(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        entry = {"id": self.name, "object": "model", "created": self.created}
        length = self.chat.engine.context_length
        entry |= {"owned_by": "langchain-pos", "max_model_len": length}
        return entry | ({"demonstration": True} if _is_shipped(self.chat) else {})

    def answer(self, errand: Errand) -> Response:
        """Whole or streamed."""
        return ChatResponse(self, errand)


class ChatResponse(HeldResponse):
    """The response to one request, whole or as server-sent events."""

    def __init__(self, service: Service, errand: Errand) -> None:
        super().__init__(service, errand)
        asked = errand.asked
        self._service = service
        self._asked = asked
        self._options = asked.call_options(service.chat, service.gate.limits)
        self._messages = asked.to_messages()
        options = asked.stream_options
        self._writer = AnswerWriter(
            asked.model, include_usage=bool(options and options.include_usage)
        )
        self._call: ChatCall | None = None

    def _error(self, raised: Exception) -> ApiError:
        queued = self._call is not None and self._call.queued
        return api_error(raised, queued=queued, retry_after=self._service.gate.retry_after)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asked.stream:
            await self._stream(send)
        else:
            await self._whole(scope, receive, send)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._news()) as news:
            async for piece, written in news:
                for _ in self._writer.write(piece, written):
                    pass
        await JSONResponse(self._writer.whole())(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._news()) as news:
            async for piece, written in news:
                if not self._started:  # what is refused before this gets a status of its own
                    await self._start(send)
                for chunk in self._writer.write(piece, written):
                    await _event(send, json.dumps(chunk).encode())
        for chunk in self._writer.close():
            await _event(send, json.dumps(chunk).encode())
        await _event(send, b"[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _news(
        self,
    ) -> AsyncGenerator[tuple[ReasoningChunk | None, list[ChatGenerationChunk]], None]:
        """What the chat model writes, from when there is a place for the request."""
        asked, gate = self._asked, self._service.gate
        began = time.monotonic()
        async with gate.place(self._errand.caller):
            self._call = await asyncio.to_thread(
                ChatCall,
                self._service.chat,
                self._messages,
                asked.stops,
                self._options,
                deltas=bool(asked.stream),
            )
            async with aclosing(self._call.anews()) as news:
                async for each in news:
                    yield each
        self._service.metrics.seconds.observe(time.monotonic() - began)
        if self._writer.last is not None:
            self._service.metrics.answered(self._writer.last)

    async def _start(self, send: Send) -> None:
        self._started = True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


def _served_name(chat: ChatParallelReasoning) -> str:
    name = chat._model_name(chat.model)
    return Path(name).name if Path(name).expanduser().exists() else name


def _is_shipped(chat: ChatParallelReasoning) -> bool:
    return chat.engines.identity is None and chat.model in (None, shipped_model())


async def _event(send: Send, data: bytes) -> None:
    body = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _end_stream(send: Send, error: ApiError) -> None:
    """Send the error in the stream; a client that does not read is left alone."""
    try:
        async with asyncio.timeout(1):
            await send({"type": "http.response.body", "body": error.event, "more_body": False})
    except TimeoutError:
        logger.warning("a client did not read the end of its stream")
