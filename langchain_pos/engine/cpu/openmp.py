"""The worker threads that OpenMP keeps for each thread that has computed.

GNU's OpenMP lets workers wait for work in a busy loop, which makes the many small operations of a
forward pass fast. It does so only while the process has no more workers and masters, over all
threads, than processors; otherwise they sleep after each operation and must be woken for the next.
A thread that has computed keeps its workers, so the next thread that computes is slow: a pass of
the shipped model takes about twice as long. Hence a thread releases its workers before another
computes.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

_SOFT = 1  # omp_pause_soft, of OpenMP 5.0: keeps the program's settings


def give_back_workers() -> None:
    """End the workers of the calling thread; they come back when it computes again.

    Takes a fraction of a millisecond, or no time if it has none. No effect if PyTorch uses another
    library: those have no such limit.
    """
    for pause in _pauses():
        pause(_SOFT)


def team() -> int | None:
    """Address of `GOMP_parallel`, which runs a C function in PyTorch's own threads.

    A library of our own would bring a second team, which would take turns with the first.

    Returns:
        None if this process has no OpenMP library that is known here.
    """
    for library in _libraries():
        if hasattr(library, "GOMP_parallel"):  # GNU's; LLVM's and Intel's understand it, too
            return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
    return None


@cache
def _pauses() -> tuple[Callable[[int], int], ...]:
    """`omp_pause_resource_all` of each GNU OpenMP library in this process."""
    # OpenMP before 5.0 has no pause.
    return tuple(
        library.omp_pause_resource_all
        for library in _libraries()
        if "libgomp" in Path(library._name).name and hasattr(library, "omp_pause_resource_all")
    )


def _libraries() -> list[ctypes.CDLL]:
    """The OpenMP libraries in this process, PyTorch's own before others'."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return []
    paths = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines()}
    names = [path for path in paths if re.match(r"lib(gomp|omp|iomp5)\b", Path(path).name)]
    found = []
    for path in sorted(names, key=lambda path: ("/torch" not in path, path)):
        with suppress(OSError):  # a file replaced in the meantime cannot be found
            found.append(ctypes.CDLL(path))
    return found
