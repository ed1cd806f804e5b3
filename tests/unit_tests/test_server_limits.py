"""The gate: places, the queue, and what becomes of them when somebody goes."""

from __future__ import annotations

import asyncio

import pytest

from langchain_pos.server_errors import ApiError
from langchain_pos.server_limits import Gate, ServerLimits


class Guests:
    """Tasks that take a place each and keep it until they may go."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.inside: list[int] = []
        self.leave: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def come(self, *numbers: int) -> None:
        for number in numbers:
            self.leave[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._visit(number))
        await settle()

    async def _visit(self, number: int) -> None:
        async with self.gate.place():
            self.inside.append(number)
            await self.leave[number].wait()
        self.inside.remove(number)


async def settle() -> None:
    """Let every task go on until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_places_are_given_in_the_order_of_asking() -> None:
    """Two at once, the others one after another, and none is lost."""
    guests = Guests(gate := Gate(ServerLimits(max_concurrency=2)))
    await guests.come(1, 2, 3, 4)
    assert guests.inside == [1, 2]
    assert (gate.running, gate.waiting) == (2, 2)
    guests.leave[2].set()
    await settle()
    assert guests.inside == [1, 3]
    for event in guests.leave.values():
        event.set()
    await settle()
    assert (gate.running, gate.waiting) == (0, 0)


async def test_who_leaves_the_queue_takes_no_place() -> None:
    """Cancelled while waiting, also in the moment when the place is given."""
    guests = Guests(gate := Gate(ServerLimits(max_concurrency=1)))
    await guests.come(1, 2, 3, 4)
    guests.tasks[2].cancel()
    await settle()
    assert gate.waiting == 2
    guests.tasks[1].cancel()  # gives its place to 3 …
    await asyncio.sleep(0)
    guests.tasks[3].cancel()  # … which is cancelled before it has run
    await settle()
    assert guests.inside[-1] == 4
    guests.leave[4].set()
    await settle()
    assert (gate.running, gate.waiting) == (0, 0)


async def test_a_full_queue_and_draining_refuse() -> None:
    """503 with seconds to wait; those inside stay."""
    guests = Guests(gate := Gate(ServerLimits(max_concurrency=1, max_queue=1)))
    await guests.come(1, 2)
    for code in ("queue_full", "shutting_down"):
        with pytest.raises(ApiError) as caught:
            async with gate.place():
                pass
        assert (caught.value.status, caught.value.code) == (503, code)
        assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
        gate.drain()
    assert guests.inside == [1]
    guests.leave[1].set()
    guests.leave[2].set()
    await settle()
    assert gate.running == 0
