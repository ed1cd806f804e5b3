"""What a server allows: bodies, requests at once, requests that wait, seconds; and draining.

Who waits is taken in turn (`FairQueue`), not in order of coming: one caller
with many requests delays another one's by a single request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from langchain_pos.engine.scheduler.fair_queue import Caller, FairQueue
from langchain_pos.server.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive

T = TypeVar("T")
DEADLINE = "X-Request-Timeout"
"""Header of our own in which a client says how many seconds its answer may take. What OpenAI's
clients say of their own patience (`x-stainless-read-timeout`) is not looked at: they send it
unasked, and one that gives up closes its connection, which ends its request as well."""
DISCARDED_BODIES = 16
"""A body that is too large is read on, and thrown away, up to this many times the limit: a client
that is still writing would not see the answer if the connection were closed at once."""


class ServerLimits(BaseModel):
    """Bounds of a server, each with the status that a client gets beyond it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_concurrency: int = Field(default=16, ge=1)
    """Requests answered at once; they share forward passes. Further ones wait."""
    max_queue: int = Field(default=64, ge=0)
    """Requests that wait at most; further ones get 503 with `Retry-After`, or the newest one of the
    caller that has most of them does."""
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024)
    """Bytes of a body, counted while it is read; 413."""
    max_tokens: int = Field(default=4096, ge=1)
    """Tokens of an answer's text that a request may ask for; 400."""
    body_seconds: float = Field(default=30, gt=0)
    """For sending a body; 408."""
    max_stored_bytes: int = Field(default=64 * 2**20, ge=0)
    """Of answers that are kept for a `previous_response_id`; beyond it the oldest are forgotten."""
    request_seconds: float = Field(default=600, gt=0)
    """From the request to the end of its answer, waiting included; 504. A request may ask for
    less."""
    drain_seconds: float = Field(default=30, ge=0)
    """For answers under way when the server is asked to end; then they get 503."""


class ClientGone(Exception):
    """The client closed its connection; nobody is left to answer."""


class Gate:
    """Who may go on, who waits, who is refused; on one event loop.

    Attributes:
        limits: its bounds.
        running: requests that are being answered.
        draining: no request is let in any more.
    """

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        self.running = 0
        self.draining = False
        self._aborted = False
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._seconds: float | None = None  # that a place is taken for, a moving mean

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._tasks

    @property
    def retry_after(self) -> int:
        """Seconds in which as many places should come free as requests wait, from 1 to 60.

        While all places are taken, one comes free every `_seconds / max_concurrency` (Little's
        law), whatever the answers are like.
        """
        turns = (self.waiting + 1) / self.limits.max_concurrency
        return min(max(math.ceil((self._seconds or 1.0) * turns), 1), 60)

    @asynccontextmanager
    async def place(self, caller: Caller) -> AsyncGenerator[None, None]:
        """A place among those that are answered; callers that wait for one take turns.

        Args:
            caller: who asks.

        Raises:
            ApiError: the server is ending, or the queue is full.
        """
        if self.draining:
            raise self._ending()
        if self.running < self.limits.max_concurrency:
            self.running += 1
        else:
            await self._wait(caller)
        began = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            seconds = asyncio.get_running_loop().time() - began
            known = seconds if self._seconds is None else self._seconds
            self._seconds = known + 0.1 * (seconds - known)
            self._leave()

    async def _wait(self, caller: Caller) -> None:
        if self.waiting >= self.limits.max_queue:
            newest = self._waiting.make_room(caller)
            if newest is None:
                raise self._full()
            if not newest.done():  # its client may have gone at the same moment
                newest.set_exception(self._full())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(caller, turn)
        try:
            await turn
        except asyncio.CancelledError:
            waited = self._waiting.remove(caller, turn)
            if not waited and not turn.cancelled() and turn.exception() is None:
                self._leave()  # the place was given at the same moment
            raise

    def _leave(self) -> None:
        """Give the place to whose turn it is."""
        while (turn := self._waiting.take()) is not None:
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _full(self) -> ApiError:
        return ApiError(
            503,
            f"{self.running} requests are being answered and {self.waiting} wait, which is all "
            "that this server allows, and no other caller has more of them; try again later",
            "queue_full",
            retry_after=self.retry_after,
        )

    async def while_connected(
        self, receive: Receive, work: Coroutine[Any, Any, T], seconds: float | None = None
    ) -> T:
        """Do the work until it is done, its client has gone, or its time is over.

        Returns only when the work has ended, so that whatever it held is free.

        Args:
            receive: says when the client has gone.
            work: what to do.
            seconds: that the client gives it, at most the server's own; see `read_deadline`.

        Raises:
            ClientGone: the client has closed the connection.
            ApiError: the time is over, or the server ends.
        """
        task = asyncio.create_task(self._in_time(work, seconds))
        gone = asyncio.create_task(_disconnected(receive))
        self._tasks.add(task)
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            if task.cancelled() and self._aborted:  # before it had begun
                raise self._ending()
            return task.result()
        finally:
            gone.cancel()
            task.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)
            work.close()
            self._tasks.discard(task)

    async def _in_time(self, work: Coroutine[Any, Any, T], seconds: float | None) -> T:
        try:
            async with asyncio.timeout(min(seconds or math.inf, self.limits.request_seconds)):
                return await work
        except TimeoutError as error:
            raise self.over_time(seconds) from error
        except asyncio.CancelledError:
            if self._aborted:
                raise self._ending() from None
            raise

    def over_time(self, seconds: float | None = None) -> ApiError:
        """For an answer that took too long.

        Args:
            seconds: that its client gave it.
        """
        remedy = "raise the server's --request-seconds"
        most = self.limits.request_seconds
        if seconds is not None and seconds < most:
            most, remedy = seconds, f"a longer {DEADLINE}"
        return ApiError(
            504,
            f"the answer was not complete after {most:g} seconds; ask for fewer tokens, or "
            f"{remedy}",
            "timeout",
        )

    def drain(self) -> None:
        """Let no further request in."""
        self.draining = True

    def abort(self) -> None:
        """End what is still under way; its clients get 503."""
        self._aborted = True
        for task in self._tasks:
            task.cancel()

    def _ending(self) -> ApiError:
        return ApiError(
            503,
            "the server is shutting down; ask another one, or again when it is back",
            "shutting_down",
            retry_after=max(round(self.limits.drain_seconds), 1),
        )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def read_deadline(request: Request) -> float | None:
    """Seconds that the client gives its answer, None if it does not say.

    Raises:
        ApiError: no number of seconds.
    """
    given = request.headers.get(DEADLINE)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ApiError(
            400,
            f"{DEADLINE}: {given[:80]!r} is not a number of seconds above 0; give one such as "
            "30, or leave it out",
            "invalid_value",
            param=DEADLINE,
        )
    return seconds


async def read_body(request: Request, limits: ServerLimits) -> bytes:
    """The body, counted while it is read, whatever its header says.

    Raises:
        ApiError: not declared as JSON, too large, or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"the content type is {kind!r}; send application/json", "unsupported_type"
        )
    most = limits.max_body_bytes
    body, count = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                count += len(piece)
                if count <= most:
                    body += piece
                elif count > DISCARDED_BODIES * most:
                    break
    except TimeoutError as error:
        raise ApiError(
            408, f"the body was not complete after {limits.body_seconds:g} seconds", "slow_body"
        ) from error
    if count > most:
        raise ApiError(
            413,
            f"the body is larger than {most} bytes; send a shorter history, or raise the server's "
            "--max-body-bytes",
            "body_too_large",
        )
    return bytes(body)
