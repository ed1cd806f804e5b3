"""An OpenAI-compatible HTTP server over `ChatParallelReasoning`; `langchain-pos serve` runs it.

    Guard            host, API key; counts requests by status     (server_guard.py)
      └─ create_app  /v1/chat/completions, /v1/models, /health, /metrics; / (server_page.py)
           └─ Answer reads the chat model's chunks, writes OpenAI's (server_answers.py)
    Gate             who is answered, who waits, who is refused   (server_limits.py)
      └─ FairQueue   whose turn it is                             (engine/turns.py)
    PosServer        uvicorn that drains when it is told to end

Requests share the engine's forward passes: each is a `ChatCall`, and one
thread drives for all.
Several replicas behind one door: server_ray.py.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from langchain_pos.chat_models.call import ChatCall
from langchain_pos.engine.scheduler.fair_queue import Caller
from langchain_pos.errors import InvalidRequestError, MissingExtraError
from langchain_pos.server.admission import Gate, ServerLimits, read_body, read_deadline
from langchain_pos.server.errors import ApiError, api_error
from langchain_pos.server.requests import ChatRequest
from langchain_pos.server.responses import AnswerWriter

try:
    import uvicorn
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    from langchain_pos.server.auth import Guard, is_loopback, told
    from langchain_pos.server.metrics import Metrics
    from langchain_pos.server.page import PAGE_PATHS, add_page
    from langchain_pos.server.service import Errand, HeldResponse, Served
except ImportError as error:
    raise MissingExtraError(
        f"a server needs {error.name}, which is not installed here; install it with "
        "`pip install 'langchain-pos[serve]'`"
    ) from error

if TYPE_CHECKING:
    from langchain_core.outputs import ChatGenerationChunk
    from starlette.types import Receive, Scope, Send

    from langchain_pos.chat_models.base import ChatParallelReasoning
    from langchain_pos.results.result import ReasoningChunk

ANSWERS = "/v1/chat/completions"


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
        told = {"id": self.name, "object": "model", "created": self.created}
        length = self.chat.engine.context_length
        return told | {"owned_by": "langchain-pos", "max_model_len": length}

    def answer(self, errand: Errand) -> Response:
        """Whole or streamed."""
        return Answer(self, errand)


class Answer(HeldResponse):
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
            async for piece, told in news:
                for _ in self._writer.write(piece, told):
                    pass
        await JSONResponse(self._writer.whole())(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._news()) as news:
            async for piece, told in news:
                if not self._started:  # what is refused before this gets a status of its own
                    await self._start(send)
                for chunk in self._writer.write(piece, told):
                    await _event(send, json.dumps(chunk).encode())
        for chunk in self._writer.close():
            await _event(send, json.dumps(chunk).encode())
        await _event(send, b"[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _news(
        self,
    ) -> AsyncGenerator[tuple[ReasoningChunk | None, list[ChatGenerationChunk]], None]:
        """What the chat model tells, from when there is a place for the request."""
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


async def _event(send: Send, data: bytes) -> None:
    body = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


def create_app(
    chat: ChatParallelReasoning,
    *,
    api_key: str | Sequence[str] | None = None,
    limits: ServerLimits | None = None,
    model_name: str | None = None,
    page: bool = True,
) -> FastAPI:
    """The server as an ASGI application. `app.state.service` is what its routes share.

    Args:
        chat: answers; its settings are the defaults and bounds of requests. The model is loaded
            here if it is not.
        api_key: asked for on every path but `/health` and the page's; of several, one: each is a
            caller of its own. None answers without one, and only requests addressed to a loopback
            name.
        limits: bounds.
        model_name: what clients call the model; by default the hub name, or the folder's.
        page: whether `/` is a page to ask on, which shows the branches while they are written.

    Raises:
        ModelLoadError, UnsupportedModelError: it cannot serve.
    """
    keys = keys_of(api_key)
    return app_of(Service(chat, model_name, limits or ServerLimits()), api_keys=keys, page=page)


def app_of(service: Served, *, api_keys: Sequence[str] = (), page: bool = True) -> FastAPI:
    """The application over whoever answers; see `create_app`."""
    app = FastAPI(openapi_url=None)
    app.state.service = service
    app.add_middleware(
        Guard,
        path=ANSWERS,
        requests=service.metrics.requests,
        api_keys=api_keys,
        public=PAGE_PATHS if page else frozenset(),
    )
    if page:
        add_page(app, wants_key=bool(api_keys))

    @app.exception_handler(Exception)
    async def _fault(_: Request, raised: Exception) -> Response:
        return told(api_error(raised))

    @app.exception_handler(ApiError)
    async def _refused(_: Request, raised: Exception) -> Response:
        return told(api_error(raised))

    @app.exception_handler(HTTPException)
    async def _no_route(request: Request, raised: Exception) -> Response:
        status = getattr(raised, "status_code", 404)
        return told(
            ApiError(
                status,
                f"{request.method} {request.url.path} is not possible; there are POST {ANSWERS}, "
                "GET /v1/models, /health and /metrics" + (", and a page at /" if page else ""),
                "not_found" if status == 404 else "method_not_allowed",
            )
        )

    @app.post(ANSWERS)
    async def _answer(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415, f"the content type is {kind!r}; send application/json", "unsupported_type"
            )
        seconds = read_deadline(request)
        body = await read_body(request, service.gate.limits)
        asked = ChatRequest.read(body)
        service.known(asked.model)
        caller = Caller(request.state.account, asked.on_behalf_of)
        return service.answer(Errand(asked, body, caller, seconds))

    @app.get("/v1/models")
    async def _models() -> dict[str, Any]:
        return {"object": "list", "data": [service.model()]}

    @app.get("/v1/models/{model:path}")
    async def _model(model: str) -> dict[str, Any]:
        service.known(model)
        return service.model()

    @app.get("/health")
    async def _health() -> Response:
        health = await service.health()
        return JSONResponse(health, status_code=200 if health["status"] == "ok" else 503)

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(await service.metrics_text(), media_type="text/plain; version=0.0.4")

    return app


class PosServer(uvicorn.Server):
    """uvicorn that, told to end, refuses new requests and finishes those under way.

    A second signal ends it at once.

    Attributes:
        model_name: what clients call the model.
        service: what its routes share.
    """

    def __init__(self, config: uvicorn.Config, service: Served) -> None:
        super().__init__(config)
        self.model_name = service.name
        self.service = service
        self._gate = service.gate
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain, or, if that is what it does already, end."""
        if self._gate.draining:
            super().handle_exit(sig, frame)
        self._gate.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it has ended."""
        if self._gate.draining and not self.should_exit:
            now = time.monotonic()
            if self._until is None:
                self._until = now + self._gate.limits.drain_seconds
            self.should_exit = self._gate.idle or now >= self._until
        if self.should_exit:
            self._gate.drain()
            self._gate.abort()
        return await super().on_tick(counter)


def make_server(
    chat: ChatParallelReasoning,
    *,
    host: str = "127.0.0.1",
    api_key: str | Sequence[str] | None = None,
    limits: ServerLimits | None = None,
    model_name: str | None = None,
    page: bool = True,
) -> PosServer:
    """A server that is ready to `run(sockets=[bind(host, port)])`.

    Args:
        chat: see `create_app`.
        host: address that it will listen on.
        api_key: wanted where `host` is not this machine's loopback.
        limits: see `create_app`.
        model_name: see `create_app`.
        page: see `create_app`.

    Raises:
        InvalidRequestError: others could reach the server, and there is no key.
    """
    keys = keys_of(api_key, host)
    service = Service(chat, model_name, limits or ServerLimits())
    return server_of(service, api_keys=keys, page=page)


def server_of(service: Served, *, api_keys: Sequence[str] = (), page: bool = True) -> PosServer:
    """The server over whoever answers; see `make_server`."""
    most = service.gate.limits.max_concurrency + service.gate.limits.max_queue
    config = uvicorn.Config(
        app_of(service, api_keys=api_keys, page=page),
        log_level="warning",
        limit_concurrency=4 * most + 64,  # connections, those that send slowly included
        timeout_graceful_shutdown=2,
        server_header=False,
        proxy_headers=False,  # an address that a client can make up would be a turn of its own
    )
    return PosServer(config, service)


def keys_of(api_key: str | Sequence[str] | None, host: str = "127.0.0.1") -> list[str]:
    """The keys of a server that may listen on `host` with them.

    Raises:
        InvalidRequestError: a key is blank, or others could reach the server and there is none.
    """
    keys = [api_key] if isinstance(api_key, str) else list(api_key or ())
    if api_key is not None and not (keys and all(key.strip() for key in keys)):
        raise InvalidRequestError("the API key is empty; give one, or none at all")
    if not keys and not is_loopback(host):
        raise InvalidRequestError(
            f"host={host!r} can be reached from elsewhere, and no API key is given; give one "
            "(--api-key, or LANGCHAIN_POS_API_KEY), or listen on 127.0.0.1"
        )
    return keys


def bind(host: str, port: int) -> socket.socket:
    """A socket to run a server on: `server.run(sockets=[bind(host, port)])`.

    Raises:
        InvalidRequestError: the address is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise InvalidRequestError(
            f"cannot listen on {host!r}, port {port} ({error}); give another --host or --port"
        ) from error
    return bound


def _served_name(chat: ChatParallelReasoning) -> str:
    name = chat._model_name(chat.model)
    return Path(name).name if Path(name).expanduser().is_dir() else name


__all__ = ["PosServer", "ServerLimits", "bind", "create_app", "make_server"]
