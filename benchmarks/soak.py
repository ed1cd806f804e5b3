"""Mixed load for a long time: `python -m benchmarks.soak --minutes 60`.

`langchain-pos serve` runs in a process of its own; this one asks it over loopback, as several users
whose requests come in phases: steadily, in bursts that are more than the queue holds, and not at
all. Among the requests are clients that vanish in a stream or before there is an answer, answers
with a deadline, and invalid bodies. It ends with 1 when one of these does not hold:

- every request has one of the outcomes that its kind may have, and no stream just breaks off;
- in every pause, and at the end, no slot is held, nobody waits and nothing runs;
- memory is flat: the median of the last quarter is at most `--growth` above the second quarter's;
- the server lives until it is told to end, and then ends with 0.

How often an answer differs from the first one to the same question is told as well: in company sums
come in another order, so that a near-tie may fall differently.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import options, parse, publish
from benchmarks.serving import MODEL, Question, Questions, Reply, Server, ask, percentile, slope

KINDS = {"whole": 70, "vanishes": 12, "deadline": 8, "invalid": 10}
"""Of a hundred requests, so many of each kind."""
FULL = "503 queue_full"
EXPECTED = {
    "whole": {"200", FULL},
    "vanishes": {"gone", "200", FULL},
    "deadline": {"200", "504 timeout", FULL},
}
"""What may come of a request, by its kind; invalid ones bring their own."""
USERS = ("Ann", "Ben", "Cleo", "Dai")

_ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "Who?"}]}
INVALID: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "400 missing_required_parameter"),
    ({**_ASKED, "temperature": "hot"}, "400 invalid_value"),
    ({**_ASKED, "messages": []}, "400 invalid_value"),
    ({**_ASKED, "temprature": 1}, "400 unknown_parameter"),
    ({**_ASKED, "n": 2}, "400 unsupported_value"),
    ({**_ASKED, "max_branches": 1000}, "400 limit_exceeded"),
    ({**_ASKED, "steps": [f"step {n}" for n in range(1000)]}, "400 invalid_request"),
    ({**_ASKED, "model": "another"}, "404 model_not_found"),
    ({**_ASKED, "user": "x" * 3 * 2**20}, "413 body_too_large"),
)
"""Bodies that are refused, and how. What is found out last may meet a full queue instead."""


class Soak:
    """The load, and what came of it.

    Args:
        server: who is asked.
        questions: a pool; they are asked again and again.
        seed: of everything that is drawn.
        at_once: requests that the server answers at once.
        queue: requests that may wait.

    Attributes:
        outcomes: of each kind of request, how often.
        unexpected: outcomes that may not be, with the request's kind.
        rss: seconds since the beginning, and the server's memory in MiB.
        rested: for each pause, whether nothing was held in it.
        seconds: of whole answers.
        firsts: of streams, until the first text.
        most_slots: seen in use.
        differing: answers unlike the first one to the same question.
    """

    def __init__(
        self,
        server: Server,
        questions: Sequence[Question],
        seed: int,
        *,
        at_once: int,
        queue: int,
    ) -> None:
        self._server = server
        self._questions = questions
        self._at_once = at_once
        self._queue = queue
        self._crowds = sorted({1, at_once // 2, at_once})
        self._ways = {
            "whole": self._whole,
            "vanishes": self._vanishes,
            "deadline": self._deadline,
            "invalid": self._invalid,
        }
        self._rng = random.Random(seed)
        self._began = time.monotonic()
        self._first_said: dict[int, dict[str, Any]] = {}
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.unexpected: list[dict[str, str]] = []
        self.rss: list[tuple[float, float]] = []
        self.most_slots = 0.0
        self.rested: list[bool] = []
        self.seconds: list[float] = []
        self.firsts: list[float] = []
        self.differing = 0

    async def run(self, seconds: float, phase: float) -> None:
        """Load for so many seconds, in phases of about `phase` seconds."""
        until = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        watching = asyncio.create_task(self._watch())
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=None, limits=limits
        ) as client:
            while time.monotonic() < until:
                await self._steadily(client, self._rng.choice(self._crowds), phase)
                await self._burst(client)
                await self._pause()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    async def _steadily(self, client: httpx.AsyncClient, at_once: int, seconds: float) -> None:
        until = time.monotonic() + seconds

        async def work() -> None:
            while time.monotonic() < until:
                await self._one(client)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(work())

    async def _burst(self, client: httpx.AsyncClient) -> None:
        """More than are answered and may wait."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._at_once + self._queue + 8):
                tasks.create_task(self._one(client))

    async def _pause(self) -> None:
        self.rested.append(await asyncio.to_thread(self._server.at_rest))

    async def _watch(self) -> None:
        while True:
            if (rss := self._server.rss) is not None:
                self.rss.append((time.monotonic() - self._began, rss))
            told = await asyncio.to_thread(self._server.metrics)
            self.most_slots = max(self.most_slots, told["slots_in_use"])
            await asyncio.sleep(2)

    # ------------------------------------------------------------------ one request

    async def _one(self, client: httpx.AsyncClient) -> None:
        kind = self._rng.choices(list(KINDS), list(KINDS.values()))[0]
        try:
            outcome, expected = await self._ways[kind](client)
        except httpx.HTTPError as error:
            outcome, expected = type(error).__name__, set()
        self.outcomes[kind][outcome] += 1
        if outcome not in expected:
            self.unexpected.append({"kind": kind, "outcome": outcome})

    def _body(self) -> tuple[int, dict[str, Any]]:
        place = self._rng.randrange(len(self._questions))
        return place, {**self._questions[place].body, "user": self._rng.choice(USERS)}

    async def _whole(self, client: httpx.AsyncClient) -> tuple[str, set[str]]:
        place, body = self._body()
        reply = await ask(client, body)
        if reply.answered:
            self.seconds.append(reply.seconds)
            if reply.first is not None:
                self.firsts.append(reply.first)
            self.differing += reply.said() != self._first_said.setdefault(place, reply.said())
        return _outcome(reply), EXPECTED["whole"]

    async def _deadline(self, client: httpx.AsyncClient) -> tuple[str, set[str]]:
        _, body = self._body()
        seconds = self._rng.choice([0.01, 0.1, 1.0, 5.0])
        reply = await ask(client, body, headers={"X-Request-Timeout": str(seconds)})
        return _outcome(reply), EXPECTED["deadline"]

    async def _vanishes(self, client: httpx.AsyncClient) -> tuple[str, set[str]]:
        _, body = self._body()
        body["stream"] = self._rng.random() < 0.7
        expired = False
        try:
            if body["stream"]:
                reply = await ask(client, body, leave_after=self._rng.randint(1, 40))
            else:
                async with asyncio.timeout(self._rng.uniform(0.01, 3)) as limit:
                    reply = await ask(client, body)
                expired = (
                    limit.expired()
                )  # while it connected, which httpx calls an error of its own
        except TimeoutError:
            return "gone", EXPECTED["vanishes"]
        left = expired or (reply.status == 200 and not reply.whole)
        return "gone" if left else _outcome(reply), EXPECTED["vanishes"]

    async def _invalid(self, client: httpx.AsyncClient) -> tuple[str, set[str]]:
        body, expected = self._rng.choice(INVALID)
        return _outcome(await ask(client, body)), {expected, FULL}


def _outcome(reply: Reply) -> str:
    """The status and code, alike in a stream and before one."""
    if reply.code is not None:
        status = {"timeout": 504}.get(reply.code, reply.status)
        return f"{status or 'in the stream:'} {reply.code}"
    if reply.status == 200 and not reply.answered:
        return "a stream that breaks off" if not reply.whole else f"{reply.finish_reason}"
    return str(reply.status)


def main(argv: Sequence[str] | None = None) -> None:
    """Load, report, and end with 1 if something does not hold."""
    parser = options(__doc__, model="the shipped model")
    parser.add_argument("--minutes", type=float, default=60, help="(%(default)s)")
    parser.add_argument("--at-once", type=int, default=16, help="answered (%(default)s)")
    parser.add_argument("--queue", type=int, default=32, help="that may wait (%(default)s)")
    parser.add_argument("--pool", type=int, default=60, help="different questions (%(default)s)")
    parser.add_argument("--phase", type=float, default=30, help="seconds of a phase (%(default)s)")
    parser.add_argument("--growth", type=float, default=0.1, help="of memory (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the load (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder with the paper's tasks")
    args = parse(parser, argv, tiny=False)
    questions = Questions(args.data, args.seed)
    if args.quick:  # too short to tell whether memory is flat
        args.minutes, args.phase, args.growth = 0.05, 1.0, 1.0
        args.at_once, args.queue = 4, 6
        asked = [questions.one(kind) for kind in ("short", "short sequential") * 2]
    else:
        asked = questions.mixed(args.pool)

    told = ["--device", args.device, "--dtype", args.dtype]
    told += ["--max-concurrency", str(args.at_once), "--max-queue", str(args.queue)]
    if args.model != "the shipped model":
        told += ["--model", args.model]
    with Server(told) as server:
        soak = Soak(server, asked, args.seed, at_once=args.at_once, queue=args.queue)
        asyncio.run(soak.run(60 * args.minutes, args.phase))
        rested = server.at_rest()
        counts, engine = server.metrics(), server.engine()
        code = server.end()

    statuses = {name: value for name, value in counts.items() if name.startswith("requests_total")}
    growth = grown(soak.rss)
    broken = [
        what
        for what, holds in {
            f"unexpected outcomes: {soak.unexpected[:5]}": not soak.unexpected,
            "the server counted a 500": not counts.get("requests_total{500}"),
            "something was held in a pause": all(soak.rested),
            "something was held at the end": rested,
            f"memory grew by {growth:.1%}": growth <= args.growth,
            f"the server ended with {code}": code == 0,
        }.items()
        if not holds
    ]
    total = sum(sum(outcomes.values()) for outcomes in soak.outcomes.values())
    row = {
        "minutes": args.minutes,
        "requests": total,
        "answered": sum(outcomes["200"] for outcomes in soak.outcomes.values()),
        "queue full": sum(outcomes[FULL] for outcomes in soak.outcomes.values()),
        "over time": sum(outcomes["504 timeout"] for outcomes in soak.outcomes.values()),
        "client gone": soak.outcomes["vanishes"]["gone"],
        "refused": sum(soak.outcomes["invalid"].values()),
        "unexpected": len(soak.unexpected),
        "first token s, p50": percentile(soak.firsts, 0.5),
        "first token s, p99": percentile(soak.firsts, 0.99),
        "answer s, p50": percentile(soak.seconds, 0.5),
        "answer s, p99": percentile(soak.seconds, 0.99),
        "pauses at rest": f"{sum(soak.rested)}/{len(soak.rested)}",
        "memory grew": f"{growth:.1%}",
    }
    publish(
        "soak",
        [row],
        args,
        questions=questions.source,
        dtype=args.dtype,
        server=engine,
        outcomes={kind: dict(outcomes) for kind, outcomes in soak.outcomes.items()},
        unexpected=soak.unexpected[:100],
        broken=broken,
        statuses=statuses,
        most_slots=soak.most_slots,
        differing=soak.differing,
        memory={
            "mib_per_hour": 3600 * slope(soak.rss[len(soak.rss) // 4 :]),
            "samples": [[round(when), round(mib, 1)] for when, mib in soak.rss],
        },
        exit_code=code,
    )
    if broken:
        raise SystemExit("\n".join(["does not hold:", *broken, server.said]))


def grown(rss: Sequence[tuple[float, float]]) -> float:
    """By what share the last quarter's median exceeds the second's; 0 of few samples."""
    quarter = len(rss) // 4
    if not quarter:
        return 0.0
    second = statistics.median(mib for _, mib in rss[quarter : 2 * quarter])
    last = statistics.median(mib for _, mib in rss[-quarter:])
    return last / second - 1


if __name__ == "__main__":
    main()
