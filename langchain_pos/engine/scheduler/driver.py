"""The one thread that drives an engine.

Callers never compute: numerical libraries keep state per thread (a team of workers, buffers for
matrix products, kernels for known shapes), so alternating threads would be slow. The thread starts
when there is work, ends when there has been none for a while, and holds no engine while idle.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from langchain_pos.engine.cpu.openmp import give_back_workers

_PAUSE, _IDLE = 0.2, 10.0
"""Seconds without work after which its OpenMP workers end, and after which the thread ends."""
_LAST_PASS = 30.0
"""Seconds that the process waits at exit for the current pass."""


class Work(Protocol):
    """The thread's work; see `Scheduler`."""

    def step(self) -> None:
        """Do part of it."""

    def has_work(self) -> bool:
        """Whether more is left. Called under `Driver.changed`."""

    def fail(self, error: BaseException) -> None:
        """A step has raised `error`: abandon all remaining work."""

    def forked(self) -> None:
        """Clean up in a forked process, in which the thread and its step do not exist."""


class Driver:
    """A daemon thread that steps as long as there is work.

    Args:
        device: of the model; becomes the thread's CUDA device.

    Attributes:
        changed: guards the thread's queue; never held during a step.
    """

    def __init__(self, device: torch.device) -> None:
        self.changed = threading.Condition()
        self._device = device
        self._work: Work | None = None
        self._stepping = False
        self._holds = 0
        self._thread: threading.Thread | None = None
        _drivers.add(self)

    def wake(self, work: Work) -> None:
        """Queue `work`. The caller holds `changed`."""
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="langchain-pos-engine", daemon=True)
            thread.start()
            self._thread = thread
        self._work = work
        self.changed.notify_all()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which no step runs. Not for use by the work itself."""
        with self.changed:
            self._holds += 1
            self.changed.wait_for(lambda: not self._stepping)
        try:
            yield
        finally:
            with self.changed:
                self._holds -= 1
                if self._work is not None:
                    self.wake(self._work)

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            while (work := self._next()) is not None:
                try:
                    work.step()
                except BaseException as error:  # noqa: BLE001  no caller waits for this thread
                    work.fail(error)
                with self.changed:
                    self._stepping = False
                    if not work.has_work():
                        self._work = None
                    self.changed.notify_all()
                del work  # an idle thread holds no engine
        except BaseException as error:
            with self.changed:
                left, self._work, self._thread = self._work, None, None
                self._stepping = False
                self.changed.notify_all()
            if left is not None:
                left.fail(error)
            raise

    def _next(self) -> Work | None:
        """The work to step next; None after a long time without any."""
        with self.changed:
            if self._is_due(_PAUSE):
                return self._begin()
        give_back_workers()
        with self.changed:
            if self._is_due(_IDLE):
                return self._begin()
            self._thread = None
            return None

    def _is_due(self, seconds: float) -> bool:
        return self.changed.wait_for(
            lambda: self._work is not None and self._holds == 0, timeout=seconds
        )

    def _begin(self) -> Work | None:
        self._stepping = True
        return self._work

    def _forked(self) -> None:
        self.changed = threading.Condition()  # the parent's lock may have been held
        self._thread, self._stepping = None, False
        if self._work is not None:
            self._work.forked()


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in list(_drivers):
        driver._forked()


def _at_exit() -> None:
    """Keep the interpreter alive while a thread computes: the process would abort."""
    for driver in list(_drivers):
        with driver.changed:
            driver._holds += 1
            driver.changed.wait_for(lambda d=driver: not d._stepping, _LAST_PASS)  # type: ignore[misc]


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
