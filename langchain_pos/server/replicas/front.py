"""The front door before replicas: what it forwards, what it tries again, what it must report.

    client ── Guard, limits, queue ── Forwarded ──┬── replica 0: the same app, a model of its own
              (the server's own)                  └── replica 1 …

A replica may die at any moment. As long as nothing of an answer has been sent, another one can
write it as well, and the client never knows. Behind the first byte that is over: the stream ends
with an error event whose code is `replica_lost`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from langchain_pos.server.admission import Gate, ServerLimits
from langchain_pos.server.errors import ERROR_EVENT, REPLICA_LOST, ApiError, logger
from langchain_pos.server.metrics import DoorMetrics
from langchain_pos.server.service import Errand, HeldResponse, Served

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.responses import Response
    from starlette.types import Message, Receive, Scope, Send


ATTEMPTS = 3
"""Replicas that one request may be given to. A request that kills each of them is not let loose on
the rest."""
_OF_REPLICAS = ("langchain_pos_tokens", "langchain_pos_branches", "langchain_pos_slots_in_use")


class ReplicaLostError(Exception):
    """The replica that worked on a request has died, or cannot be reached."""


class Replicas(Protocol):
    """The replicas, as the front door needs them."""

    def answer(self, body: bytes) -> AsyncGenerator[list[Message], None]:
        """What one of them answers, as ASGI messages; closing it cancels what is left to do.

        Raises:
            ReplicaLostError: it has died.
        """
        ...

    async def running(self) -> int:
        """How many take requests."""
        ...

    async def metrics(self) -> Mapping[str, str]:
        """What each of them counts, as Prometheus reads it, by its name."""
        ...


class FrontMetrics(DoorMetrics):
    """What the front door sees, and what the replicas count, each with its label `replica`."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate)
        self.retries = Counter(
            "langchain_pos_retries",
            "Requests given to another replica because theirs was lost.",
            registry=self.registry,
        )
        self.replicas = Gauge(
            "langchain_pos_replicas", "Replicas that take requests.", registry=self.registry
        )

    def text_with(self, replicas: Mapping[str, str]) -> bytes:
        """All of it; `replicas` as `Replicas.metrics` gives it."""
        found = CollectorRegistry()
        found.register(_Labelled(replicas))
        return self.text() + generate_latest(found)


class _Labelled(Collector):
    """The engine's metrics of several replicas as one family each."""

    def __init__(self, replicas: Mapping[str, str]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._replicas.items():
            for family in text_string_to_metric_families(text):
                if family.name not in _OF_REPLICAS:
                    continue
                merged = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        labels = {**sample.labels, "replica": replica}
                        merged.add_sample(sample.name, labels, sample.value)
        return families.values()


class Front(Served):
    """What the routes share where replicas answer.

    Args:
        replicas: they answer.
        model: as a replica lists it; its `id` is the name.
        limits: of each replica; the queue, the bytes and the seconds are the front door's.
        most: replicas that there may be. As many requests as they can answer are handed on;
            those that no replica takes yet are what autoscaling goes by.
    """

    def __init__(
        self, replicas: Replicas, model: dict[str, Any], limits: ServerLimits, *, most: int
    ) -> None:
        places = limits.max_concurrency * most
        gate = Gate(limits.model_copy(update={"max_concurrency": places}))
        self.metrics: FrontMetrics
        super().__init__(model["id"], gate, FrontMetrics(gate))
        self.replicas = replicas
        self._model = model

    def model(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        return self._model

    def answer(self, errand: Errand) -> Response:
        """Of whichever replica has a place."""
        return Forwarded(self, errand)

    async def health(self) -> dict[str, Any]:
        """Fine while one replica is."""
        running = await self.replicas.running()
        status = "draining" if self.gate.draining else "ok" if running else "no_replica"
        return {"status": status, "replicas": running}

    async def metrics_text(self) -> bytes:
        """The front door's metrics and those of the replicas that answer in time."""
        self.metrics.replicas.set(await self.replicas.running())
        return self.metrics.text_with(await self.replicas.metrics())


class Forwarded(HeldResponse):
    """The answer of a replica, byte for byte."""

    def __init__(self, front: Front, errand: Errand) -> None:
        super().__init__(front, errand)
        self._front = front
        self._began = time.monotonic()
        self._good = True  # as far as it has come

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._front.gate.place(self._errand.caller):
            try:
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(self._may_retry),
                    stop=stop_after_attempt(ATTEMPTS),
                    wait=wait_random_exponential(multiplier=0.1, max=2),
                    before_sleep=self._note,
                    reraise=True,
                ):
                    with attempt:
                        await self._forward(send)
            except ReplicaLostError as error:
                raise self._lost() from error

    async def _forward(self, send: Send) -> None:
        async with aclosing(self._front.replicas.answer(self._errand.body)) as batches:
            async for messages in batches:
                for message in messages:
                    await self._pass_on(message, send)
                if self._ended:
                    return  # what happens to the replica now does not concern the client

    async def _pass_on(self, message: Message, send: Send) -> None:
        metrics = self._front.metrics
        self._started = True  # from here on, nobody else can write this answer
        if message["type"] == "http.response.start":
            self._good = message["status"] == 200
        else:
            if message.get("body", b"").startswith(ERROR_EVENT):
                self._good = False
                metrics.broken.labels("error").inc()
            if not message.get("more_body"):
                self._ended = True
                if self._good:
                    metrics.seconds.observe(time.monotonic() - self._began)
        await send(message)

    def _may_retry(self, error: BaseException) -> bool:
        return isinstance(error, ReplicaLostError) and not self._started

    def _note(self, state: RetryCallState) -> None:
        self._front.metrics.retries.inc()
        logger.warning("a replica was lost; attempt %d at its request", state.attempt_number + 1)

    def _lost(self) -> ApiError:
        if self._started:
            return ApiError(
                503,
                "the replica that was writing this answer has been lost; ask again",
                REPLICA_LOST,
            )
        return ApiError(
            503,
            f"{ATTEMPTS} replicas in a row were lost with this request; it may be what kills them "
            "(the server's log says more): ask for less, or give the replicas more memory",
            REPLICA_LOST,
        )
