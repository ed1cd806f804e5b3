"""The gate: places, the queue, and what becomes of them when somebody goes."""

from __future__ import annotations

import asyncio

import pytest

from langchain_pos.engine.scheduler.fair_queue import Caller
from langchain_pos.server.admission import Gate, ServerLimits
from langchain_pos.server.errors import ApiError


class Guests:
    """Tasks that take a place each and keep it until they may go."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.inside: list[int] = []
        self.leave: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def come(self, *numbers: int, account: str = "one") -> None:
        for number in numbers:
            self.leave[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._visit(number, Caller(account)))
        await settle()

    async def go(self, *numbers: int) -> None:
        for number in numbers:
            self.leave[number].set()
            await settle()

    async def _visit(self, number: int, caller: Caller) -> None:
        async with self.gate.place(caller):
            self.inside.append(number)
            await self.leave[number].wait()
        self.inside.remove(number)


async def settle() -> None:
    """Let every task go on until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_caller_gets_places_in_the_order_of_asking() -> None:
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
            async with gate.place(Caller("one")):
                pass
        assert (caught.value.status, caught.value.code) == (503, code)
        assert 1 <= int(caught.value.headers["Retry-After"]) <= 60
        gate.drain()
    assert guests.inside == [1]
    guests.leave[1].set()
    guests.leave[2].set()
    await settle()
    assert gate.running == 0


async def test_callers_that_wait_take_turns() -> None:
    """One request beside fifty of another caller is next but one."""
    guests = Guests(gate := Gate(ServerLimits(max_concurrency=1)))
    await guests.come(0, *range(1, 51), account="many")
    await guests.come(99, account="few")
    await guests.go(0, 1)
    assert guests.inside == [99]
    await guests.go(99, *range(2, 51))
    assert (gate.running, gate.waiting) == (0, 0)


async def test_who_fills_the_queue_makes_room_for_others() -> None:
    """The newest request of the caller that has most gets the 503, and nobody else."""
    guests = Guests(gate := Gate(ServerLimits(max_concurrency=1, max_queue=4)))
    await guests.come(0, 1, 2, 3, 4, account="many")
    await guests.come(10, 11, 12, account="few")
    refused = {number for number, task in guests.tasks.items() if task.done()}
    assert refused == {4, 3, 12}
    for number in refused:
        error = guests.tasks[number].exception()
        assert isinstance(error, ApiError)
        assert (error.status, error.code) == (503, "queue_full")
    assert gate.waiting == 4
    await guests.go(0, 1, 10, 2, 11)
    assert (gate.running, gate.waiting) == (0, 0)


async def test_who_is_pushed_out_and_goes_takes_no_place() -> None:
    """Also where its client goes in the moment in which another one takes its place."""
    guests = Guests(gate := Gate(ServerLimits(max_concurrency=1, max_queue=2)))
    await guests.come(0, 1, 2, account="many")
    guests.tasks[2].cancel()  # it has not noticed yet when the other one comes
    await guests.come(10, account="few")
    guests.tasks[1].cancel()
    await settle()
    assert gate.waiting == 1
    await guests.go(0, 10)
    assert (gate.running, gate.waiting) == (0, 0)


async def test_retry_after_follows_how_long_places_are_taken() -> None:
    """Nothing is known at first; then so many seconds as the queue takes to be answered."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    guests = Guests(gate := Gate(ServerLimits(max_concurrency=2, max_queue=9)))
    assert gate.retry_after == 1
    loop.time = lambda: now  # type: ignore[method-assign]
    await guests.come(1, 2)
    now += 10
    await guests.go(1, 2)
    assert gate.retry_after == 5  # a place every five seconds
    await guests.come(3, 4, 5, 6, 7)
    assert gate.retry_after == 20
    await guests.go(3, 4, 5, 6, 7)


@pytest.mark.parametrize(("asked", "told"), [(0.01, "X-Request-Timeout"), (9.0, "request-seconds")])
async def test_the_shorter_time_counts(asked: float, told: str) -> None:
    """A client's own deadline can only shorten the server's; the error says which one it was."""
    gate = Gate(ServerLimits(request_seconds=0.02))
    never, connected = asyncio.Event(), asyncio.Event()
    with pytest.raises(ApiError, match=told) as caught:
        await gate.while_connected(connected.wait, never.wait(), asked)  # type: ignore[arg-type]
    assert (caught.value.status, caught.value.code) == (504, "timeout")
    assert gate.idle
