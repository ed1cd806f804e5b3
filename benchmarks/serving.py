"""What the server's benchmarks share: the command as a process, a client, mixed questions."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchmarks.report import data_folder
from training.students import paper_problem, students

MODEL = "served"
ANSWERS = "/v1/chat/completions"
_COMMAND = "from langchain_pos.cli.main import main; main()"
_NAME = re.compile(r"student named (.+?) is \d")


# ------------------------------------------------------------------------- the server


class Server:
    """`langchain-pos serve` in a process of its own, on a free port of this machine.

    Args:
        options: of the command.

    Attributes:
        url: where it listens.
    """

    def __init__(self, options: Sequence[str]) -> None:
        named = ("serve", "--port", "0", "--served-model-name", MODEL)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *named, *options], stderr=subprocess.PIPE, text=True
        )
        self._said: deque[str] = deque(maxlen=50)
        self.url = self._wait()
        threading.Thread(target=self._listen, daemon=True).start()

    def _wait(self) -> str:
        if self._process.stderr is None:
            raise RuntimeError("the server's stderr is no pipe")
        for line in self._process.stderr:
            self._said.append(line)
            if found := re.search(r"(http://\S+)/v1 serves", line):
                return found[1]
        raise SystemExit(f"the server ended with {self._process.wait()}:\n{''.join(self._said)}")

    def _listen(self) -> None:
        """Take what it says, so that it never waits for a reader."""
        for line in self._process.stderr or ():
            self._said.append(line)

    @property
    def said(self) -> str:
        """The last lines that it has written on stderr."""
        return "".join(self._said)

    @property
    def rss(self) -> float | None:
        """Its resident memory in MiB; None where the system has no /proc."""
        statm = Path(f"/proc/{self._process.pid}/statm")
        if not statm.is_file():
            return None
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def metrics(self) -> dict[str, float]:
        """What `/metrics` tells, without the prefix; with a label, as `name{value}`."""
        found = {}
        for sample in self._samples():
            labels = f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""
            found[sample.name.removeprefix("langchain_pos_") + labels] = sample.value
        return found

    def engine(self) -> dict[str, str]:
        """What the server says of its engine."""
        return next(s.labels for s in self._samples() if s.name == "langchain_pos_engine_info")

    def _samples(self) -> list[Sample]:
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        return [s for family in text_string_to_metric_families(text) for s in family.samples]

    def at_rest(self, seconds: float = 30) -> bool:
        """Whether nobody waits and no slot is held, within so many seconds."""
        until = time.monotonic() + seconds
        while True:
            told = self.metrics()
            if not told["requests_running"] + told["queue_length"] + told["slots_in_use"]:
                return True
            if time.monotonic() > until:
                return False
            time.sleep(0.05)

    def end(self, seconds: float = 60) -> int | None:
        """SIGTERM; its exit code, None if it does not end in so many seconds."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None and self.end(10) is None:
            self._process.kill()
            self._process.wait()


# ------------------------------------------------------------------------- the client


@dataclass
class Reply:
    """What a client got.

    Attributes:
        status: of HTTP; that of the error where a stream ended with one.
        code: of the error.
        content: the answer's text.
        finish_reason: the answer's.
        reasoning: the whole result.
        seconds: until all of it was there.
        first: seconds until the first text of any stage; None where it was not streamed.
        whole: whether a stream came to its end.
    """

    status: int = 0
    code: str | None = None
    content: str = ""
    finish_reason: str | None = None
    reasoning: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    first: float | None = None
    whole: bool = True

    @property
    def answered(self) -> bool:
        """Whether there is an answer, to its end."""
        return self.status == 200 and self.whole and self.finish_reason in ("stop", "length")

    @property
    def tokens(self) -> int:
        """Tokens written in all stages."""
        return int(self.reasoning.get("usage", {}).get("output_tokens", 0))

    def said(self) -> dict[str, Any]:
        """What must be the same whenever this is asked: every text, and how it ended."""
        told = {name: self.reasoning.get(name) for name in ("mode", "fallback_reason")}
        blocks = [
            [block["plan"]["preamble"]]
            + [[b["title"], b["text"], b["finish_reason"]] for b in block["branches"]]
            for block in self.reasoning.get("blocks", ())
        ]
        ended = {"content": self.content, "finish_reason": self.finish_reason}
        return {**told, **ended, "tokens": self.tokens, "blocks": blocks}


async def ask(
    client: httpx.AsyncClient,
    body: dict[str, Any],
    *,
    headers: dict[str, str] | None = None,
    leave_after: int | None = None,
) -> Reply:
    """Ask, and read the answer to its end.

    Args:
        client: with the server's address.
        body: a request.
        headers: further ones.
        leave_after: events of the stream after which the connection is closed.
    """
    reply, began = Reply(), time.perf_counter()
    async with client.stream("POST", ANSWERS, json=body, headers=headers) as response:
        reply.status = response.status_code
        if body.get("stream") and response.status_code == 200:
            reply.whole = False
            count = 0
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    _read_event(reply, line.removeprefix("data: "), began)
                    count += 1
                if count == leave_after:
                    break
        else:
            _read_whole(reply, json.loads(await response.aread()))
    reply.seconds = time.perf_counter() - began
    return reply


def _read_event(reply: Reply, data: str, began: float) -> None:
    if data == "[DONE]":
        reply.whole = True
        return
    event = json.loads(data)
    if "error" in event:
        reply.status, reply.code = 0, event["error"]["code"]
        return
    delta = event["choices"][0]["delta"] if event["choices"] else {}
    news = event.get("reasoning_delta") or {}
    if reply.first is None and (delta.get("content") or news.get("text")):
        reply.first = time.perf_counter() - began
    reply.content += delta.get("content") or ""
    if "reasoning" in event:
        reply.reasoning = event["reasoning"]
        reply.finish_reason = event["choices"][0]["finish_reason"]


def _read_whole(reply: Reply, answer: dict[str, Any]) -> None:
    if "error" in answer:
        reply.code = answer["error"]["code"]
        return
    choice = answer["choices"][0]
    reply.content = choice["message"]["content"] or ""
    reply.finish_reason = choice["finish_reason"]
    reply.reasoning = answer["reasoning"]


# ---------------------------------------------------------------------- the questions


@dataclass(frozen=True)
class Question:
    """A request and what kind it is of."""

    kind: str
    body: dict[str, Any]


MIX = {"ten": 5, "thirty": 2, "sequential": 3, "own steps": 3, "short": 4, "short sequential": 3}
"""Of twenty requests, so many of each kind. Half of all are streamed."""


class Questions:
    """Questions about students: the paper's where they are at hand, else generated ones.

    Args:
        given: folder with the paper's tasks; None looks for it where `data_folder` does.
        seed: of the mix and of what is generated.

    Attributes:
        source: where those of ten and of thirty students come from.
    """

    def __init__(self, given: Path | None = None, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._tasks = {count: self._read(given, count) for count in (10, 30)}
        self.source = {
            str(count): f"retrieval_{count}.jsonl" if rows else "training.students"
            for count, rows in self._tasks.items()
        }
        self._asked = dict.fromkeys(self._tasks, 0)

    @staticmethod
    def _read(given: Path | None, count: int) -> list[str]:
        try:
            path = data_folder(given) / f"retrieval_{count}.jsonl"
        except SystemExit:
            if given is not None:
                raise
            return []
        if not path.is_file():
            return []
        return [json.loads(line)["prompt"] for line in path.read_text("utf-8").splitlines()]

    def mixed(self, count: int) -> list[Question]:
        """So many questions of all kinds, shuffled: every twenty hold the same kinds."""
        found: list[Question] = []
        while len(found) < count:
            kinds = [kind for kind, times in MIX.items() for _ in range(times)]
            self._rng.shuffle(kinds)
            found += [self.one(kind) for kind in kinds]
        return found[:count]

    def one(self, kind: str) -> Question:
        """A question of a kind of `MIX`; the paper's come one after another."""
        fields: dict[str, Any] = {}
        if kind.startswith("short"):
            text = self._short()
        else:
            text = self._students(30 if kind == "thirty" else 10)
        if kind == "own steps":
            fields["steps"] = list(dict.fromkeys(_NAME.findall(text)))
        if kind.endswith("sequential"):
            fields["reasoning_mode"] = "sequential"
        if kind == "short sequential":
            fields["max_tokens"] = self._rng.choice([16, 64, 256])
        if self._rng.random() < 0.5:
            fields["stream"] = True
        messages = [{"role": "user", "content": text}]
        return Question(kind, {"model": MODEL, "messages": messages, **fields})

    def _students(self, count: int) -> str:
        place = self._asked[count]
        self._asked[count] += 1
        if rows := self._tasks[count]:
            return rows[place % len(rows)]
        problem, _ = paper_problem(self._rng, count)
        return problem.head + "".join(problem.records) + problem.questions[0].text

    def _short(self) -> str:
        problem = students(self._rng, self._rng.randint(2, 5), "tiny", 1, held_out=True)
        return problem.head + "".join(problem.records) + problem.questions[0].text


# -------------------------------------------------------------------------- the figures


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that `share` of all do not exceed. NaN of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line that fits `(x, y)` points best, by least squares; 0 of fewer than two."""
    if len(points) < 2 or all(a[0] == b[0] for a, b in pairwise(points)):
        return 0.0
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    covariance = sum((a - x) * (b - y) for a, b in points)
    return covariance / sum((a - x) ** 2 for a, _ in points)
