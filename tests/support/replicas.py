"""Replicas without Ray: the real app in this process, which dies when a test wants it to."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_pos import ChatParallelReasoning
from langchain_pos.server.admission import ServerLimits
from langchain_pos.server.errors import ApiError
from langchain_pos.server.process import server_of
from langchain_pos.server.replicas.front import Front, ReplicaLostError
from langchain_pos.server.replicas.replica import Replica
from tests.support.serving import MODEL, Client, listening

if TYPE_CHECKING:
    from starlette.types import Message


class MortalReplicas:
    """One replica that is lost in some of its answers.

    Args:
        chat: answers.
        losses: for each answer in turn: 0, lost before anything has come; 1, behind the first
            piece. Those that follow are answered.
    """

    def __init__(self, chat: ChatParallelReasoning, losses: list[int]) -> None:
        self.replica = Replica(chat, ServerLimits(), MODEL)
        self.losses = list(losses)
        self.asked = 0
        self.closed = 0
        self.count = 2
        self.startable = True

    async def answer(self, body: bytes) -> AsyncGenerator[list[Message], None]:
        self.asked += 1
        if not self.startable:
            raise ApiError(503, "there is no replica", "no_replica", retry_after=1)
        loss = self.losses.pop(0) if self.losses else None
        if loss == 0:
            raise ReplicaLostError("killed")
        try:
            async with aclosing(self.replica.answer(body)) as batches:
                async for messages in batches:
                    if loss == 1:
                        yield messages[:2]  # the status and one piece
                        raise ReplicaLostError("killed")
                    yield messages
        finally:
            self.closed += 1

    async def running(self) -> int:
        return self.count

    async def metrics(self) -> Mapping[str, str]:
        text = await self.replica.metrics()
        return {"one": text, "two": text}


@dataclass
class Fronted(Client):
    """A front door that runs."""

    front: Front
    replicas: MortalReplicas

    def metric(self, name: str, **labels: str) -> float:
        """A value of the front door's own; 0 where it has none yet."""
        value = self.front.metrics.registry.get_sample_value(f"langchain_pos_{name}", labels)
        return value or 0.0


@contextmanager
def fronted(
    chat: ChatParallelReasoning, losses: list[int], *, api_key: str | None = None, **limits: Any
) -> Iterator[Fronted]:
    """A front door before replicas while inside; then nothing is held."""
    replicas = MortalReplicas(chat, losses)
    front = Front(replicas, replicas.replica.model(), ServerLimits(**limits), most=2)
    with listening(server_of(front, api_keys=[api_key] if api_key else [])) as url:
        yield Fronted(url, api_key or "none", front, replicas)
        while not front.gate.idle or chat.engine.slots_in_use:
            time.sleep(0.005)
    assert front.gate.running == front.gate.waiting == 0
