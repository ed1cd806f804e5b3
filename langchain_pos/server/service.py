"""What the server's parts share: who answers, and a response that lasts as long as its client."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from langchain_pos.server.admission import ClientGone
from langchain_pos.server.errors import ApiError, api_error, logger

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from langchain_pos.engine.scheduler.fair_queue import Caller
    from langchain_pos.server.admission import Gate
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
        metrics: what `/metrics` tells.
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
        """What `/health` tells; anything but the status "ok" comes with 503."""
        return {"status": "draining" if self.gate.draining else "ok"}

    async def metrics_text(self) -> bytes:
        """What `/metrics` tells, as Prometheus reads it."""
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


class HeldResponse(Response):
    """A response that is worked on while its client, its time and the server last."""

    def __init__(self, served: Served, errand: Errand) -> None:
        super().__init__()
        self._served = served
        self._errand = errand
        self._started = False
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; an error that comes before anything is sent is raised, a later one told."""
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

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; sets `_started` before anything is sent.

        And `_ended` before the last byte, if there is still something to do behind it.
        """
        raise NotImplementedError

    def _error(self, raised: Exception) -> ApiError:
        return api_error(raised, retry_after=self._served.gate.retry_after)


async def _end_stream(send: Send, error: ApiError) -> None:
    """Tell the error in the stream; a client that does not read is left alone."""
    try:
        async with asyncio.timeout(1):
            await send({"type": "http.response.body", "body": error.event, "more_body": False})
    except TimeoutError:
        logger.warning("a client did not read the end of its stream")
