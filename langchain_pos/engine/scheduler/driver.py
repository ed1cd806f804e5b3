"""One thread that drives the engine for all who wait together.

A thread that has driven keeps what numerical libraries set up in it: a team of workers, buffers
for matrix products, kernels made for shapes that it has seen. So callers do not drive in turn: one
who waits alone drives himself; several threads, and tasks of event loops, sleep while this thread
drives. It starts when it is needed, and ends when it has not been for a while.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from langchain_pos.engine.cpu.openmp import give_back_workers

_PAUSE, _IDLE = 0.2, 10.0
"""Seconds without work after which its workers go, and after which the thread ends."""
_LOOK = 1.0  # seconds; some systems let no signal through to a thread that waits without an end

Until = Callable[[], bool]
"""Whether a sleeper has what he waits for; looked at between forward passes."""
Drive = Callable[[Until], None]
"""Runs the engine until its argument is true."""


@dataclass(eq=False)
class _Sleeper:
    """Who waits: a thread."""

    until: Until
    drive: Drive
    error: BaseException | None = None
    told: threading.Event = field(default_factory=threading.Event)

    def wake(self, error: BaseException | None = None) -> None:
        self.error = error
        self.told.set()


@dataclass(eq=False)
class _SleepingTask:
    """Who waits: a task of an event loop."""

    until: Until
    drive: Drive
    loop: asyncio.AbstractEventLoop
    told: asyncio.Future[None]

    def wake(self, error: BaseException | None = None) -> None:
        with suppress(RuntimeError):  # its loop has been closed; nobody waits there any more
            self.loop.call_soon_threadsafe(self._tell, error)

    def _tell(self, error: BaseException | None) -> None:
        if self.told.done():  # cancelled
            return
        if error is None:
            self.told.set_result(None)
        else:
            self.told.set_exception(error)


class Driver:
    """The thread, and who sleeps while it drives.

    It knows the engine through its sleepers only, so that an idle thread holds no model.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asleep: list[_Sleeper | _SleepingTask] = []
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether it drives, or is about to."""
        return bool(self._asleep)

    def sleep(self, until: Until, drive: Drive) -> None:
        """Let the thread drive until `until()`."""
        sleeper = _Sleeper(until, drive)
        try:
            self._add(sleeper)
            while not sleeper.told.wait(_LOOK):
                continue
        finally:
            self._forget(sleeper)
        if sleeper.error is not None:
            raise sleeper.error

    async def asleep(self, until: Until, drive: Drive) -> None:
        """As `sleep`, for a task."""
        loop = asyncio.get_running_loop()
        sleeper = _SleepingTask(until, drive, loop, loop.create_future())
        self._add(sleeper)
        try:
            await sleeper.told
        finally:
            self._forget(sleeper)

    def _add(self, sleeper: _Sleeper | _SleepingTask) -> None:
        give_back_workers()  # of the thread that now leaves the work to another
        with self._changed:
            self._asleep.append(sleeper)
            if self._thread is None or not self._thread.is_alive():  # a fork has no threads
                self._thread = threading.Thread(
                    target=self._run, name="langchain-pos-engine", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def _forget(self, sleeper: _Sleeper | _SleepingTask) -> None:
        with self._changed, suppress(ValueError):
            self._asleep.remove(sleeper)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._asleep, _PAUSE):
                    give_back_workers()
                    if not self._changed.wait_for(lambda: self._asleep, _IDLE):
                        self._thread = None
                        return
                first = self._asleep[0]
            try:
                first.drive(self._anybody)
            except BaseException as error:  # noqa: BLE001  as if the first of them had driven
                self._forget(first)
                first.wake(error)
            del first
            self._wake()

    def _anybody(self) -> bool:
        """Whether somebody has what he waits for, or nobody waits any more."""
        asleep = list(self._asleep)
        return not asleep or any(map(_is_due, asleep))

    def _wake(self) -> None:
        for sleeper in list(self._asleep):
            error = None
            try:
                if not sleeper.until():
                    continue
            except BaseException as raised:  # noqa: BLE001  it is his; the others' thread goes on
                error = raised
            self._forget(sleeper)
            sleeper.wake(error)


def _is_due(sleeper: _Sleeper | _SleepingTask) -> bool:
    """Whether he must be woken; also where the question itself fails, which he is told then."""
    try:
        return sleeper.until()
    except BaseException:  # noqa: BLE001  `_wake` asks again
        return True
