"""The server as a process: made, bound to a socket, and drained before it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from langchain_pos.errors import InvalidRequestError
from langchain_pos.server.admission import ServerLimits
from langchain_pos.server.app import app_of
from langchain_pos.server.auth import keys_of
from langchain_pos.server.service import Served, Service

if TYPE_CHECKING:
    from langchain_pos.chat_models.base import ChatParallelReasoning


class PosServer(uvicorn.Server):
    """uvicorn that, asked to end, refuses new requests and finishes those under way.

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
        api_key: needed where `host` is not this machine's loopback.
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
