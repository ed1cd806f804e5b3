"""The engine's thread and its process: forks, a process that ends, and OpenMP's workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FORKED = """
import os
from tests.support.scheduling import generating
from tests.support.tiny import ids, submit, tiny_engine

engine = tiny_engine()
alone = engine.generate(ids(9), max_new_tokens=20).token_ids
with engine.scheduler.paused():
    request = submit(engine, generating(engine, ids(9), 20))
    child = os.fork()
    if child == 0:
        assert request.done and "forked" in str(request.error), request.error
        assert engine.scheduler._driver._thread is None
if child == 0:
    assert engine.generate(ids(9), max_new_tokens=20).token_ids == alone
    assert engine.slots_in_use == 0
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert request.wait().token_ids == alone
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_fork_has_a_thread_of_its_own() -> None:
    """The child's requests are its own; what the parent has under way goes on there."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


UNDER_WAY = """
import time
from tests.support.scheduling import generating
from tests.support.tiny import ids, submit, tiny_engine

engine = tiny_engine(settings={"max_position_embeddings": 65536})
request = submit(engine, generating(engine, ids(9), 60_000), 60_100)
while request.passes < 3:
    time.sleep(0.001)
"""


def test_a_process_may_end_while_a_request_is_under_way() -> None:
    """The pass is finished and the thread is left running; nothing aborts."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", UNDER_WAY],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, "")


COUNTED = """
import os, threading, torch
from langchain_pos.engine.cpu.openmp import give_back_workers

torch.set_num_threads(4)
def threads():
    return len(os.listdir("/proc/self/task"))
def work():
    before = threads()
    torch.ones(4_000_000).exp()
    during = threads()
    give_back_workers()
    print(during - before, threads() - before)
    give_back_workers()
    torch.ones(4_000_000).exp()
    print(threads() - before)
worker = threading.Thread(target=work)
worker.start()
worker.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_a_thread_gives_its_workers_back() -> None:
    """They are gone, and come back with the next work; where PyTorch runs on GNU's OpenMP."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True
    )
    came, left, again = map(int, done.stdout.split())
    if "libgomp" not in _loaded_libraries():
        pytest.skip("PyTorch runs on another library than GNU's OpenMP")
    assert came == 3
    assert left == 0
    assert again == 3


def _loaded_libraries() -> str:
    return Path("/proc/self/maps").read_text("utf-8")
