"""The body of `/metrics`, in Prometheus' text form; every server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

if TYPE_CHECKING:
    from langchain_core.messages import AIMessageChunk

    from langchain_pos.engine.engine import Engine
    from langchain_pos.server.admission import Gate

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class DoorMetrics:
    """What a server sees of its requests, whoever answers them.

    Args:
        gate: requests under way and waiting.
    """

    def __init__(self, gate: Gate) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "langchain_pos_requests",
            "Requests for an answer, by HTTP status; 499: the client left before then.",
            ["status"],
            registry=self.registry,
        )
        self.broken = Counter(
            "langchain_pos_broken_streams",
            "Streams that ended before the answer did: client (it left), error, or replica_lost.",
            ["reason"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "langchain_pos_request_seconds",
            "Seconds from a request to the end of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._gauge("requests_running", "Requests that are being answered.", lambda: gate.running)
        self._gauge("queue_length", "Requests that wait.", lambda: gate.waiting)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"langchain_pos_{name}", text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)


class Metrics(DoorMetrics):
    """The same, and what the engine does.

    Args:
        gate: requests under way and waiting.
        engine: slots, and what it is.
    """

    def __init__(self, gate: Gate, engine: Engine) -> None:
        super().__init__(gate)
        facts = engine.describe()
        del facts["model"]  # it may be a folder of this machine
        Info("langchain_pos_engine", "What answers.", registry=self.registry).info(facts)
        self._tokens = Counter(
            "langchain_pos_tokens", "Tokens of finished answers.", ["kind"], registry=self.registry
        )
        self._branches = Counter(
            "langchain_pos_branches", "Branches of finished answers.", registry=self.registry
        )
        self._gauge(
            "slots_in_use",
            "KV-cache slots that requests hold, and prompts kept for later ones.",
            lambda: engine.slots_in_use,
        )

    def answered(self, last: AIMessageChunk) -> None:
        """Count a finished answer."""
        if last.usage_metadata is not None:
            self._tokens.labels("prompt").inc(last.usage_metadata["input_tokens"])
            self._tokens.labels("completion").inc(last.usage_metadata["output_tokens"])
        blocks = last.response_metadata["reasoning"]["blocks"]
        self._branches.inc(sum(len(block["branches"]) for block in blocks))
