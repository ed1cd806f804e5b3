"""Many clients at once, over HTTP: `python -m benchmarks.serve`.

`langchain-pos serve` runs in a process of its own; this one asks it over loopback. The same mixed
requests (ten and thirty students in parallel, sequential ones, own steps, short ones; streams and
whole answers) are asked one at a time and `--at-once` at a time, in alternating blocks, greedily.
Each answer in company is compared with the same request's answer alone: every text of every branch,
and how it ended. A request's first token is the first text of any stage that its stream tells.

Memory is the server's resident set. It must be flat from the 50th request in company to the last.
Slots must be back at zero after each block; where they are not, or where a request has no answer,
the command ends with 1.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measuring import Clock, Run, alternate, options, parse, publish
from benchmarks.serving import Question, Questions, Reply, Server, ask, percentile, slope

ALONE, COMPANY = "one at a time", "at once"
SETTLED = 50
"""Requests after which memory must be flat."""


class Arm:
    """One way of asking all requests, block after block.

    Args:
        server: who is asked.
        blocks: of requests.
        at_once: requests under way.

    Attributes:
        replies: in the order of the requests.
        rss: the server's memory in MiB after each reply, in the order of the replies.
        most_slots: seen in use.
        rested: for each block, whether nothing was held behind it.
    """

    def __init__(self, server: Server, blocks: Sequence[list[Question]], at_once: int) -> None:
        self._server = server
        self._blocks: Iterator[list[Question]] = iter(blocks)
        self._at_once = at_once
        self.replies: list[Reply] = []
        self.rss: list[float] = []
        self.most_slots = 0.0
        self.rested: list[bool] = []

    def __call__(self) -> Run:
        """Ask the next block."""
        block = next(self._blocks)
        clock = Clock("cpu")
        replies = asyncio.run(self._ask(block))
        seconds = clock()
        self.replies += replies
        self.rested.append(self._server.at_rest())
        return Run(seconds, sum(reply.tokens for reply in replies))

    async def _ask(self, block: list[Question]) -> list[Reply]:
        found: dict[int, Reply] = {}
        waiting = iter(enumerate(block))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._at_once)
        async with httpx.AsyncClient(
            base_url=self._server.url, timeout=None, limits=limits
        ) as client:

            async def work() -> None:
                for place, question in waiting:
                    found[place] = await ask(client, question.body)
                    if (rss := self._server.rss) is not None:
                        self.rss.append(rss)

            watching = asyncio.create_task(self._watch())
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._at_once):
                    tasks.create_task(work())
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        return [found[place] for place in range(len(block))]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            told = await asyncio.to_thread(self._server.metrics)
            self.most_slots = max(self.most_slots, told["slots_in_use"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__, model="the shipped model")
    parser.set_defaults(runs=2)
    parser.add_argument("--requests", type=int, default=200, help="in each arm (%(default)s)")
    parser.add_argument("--at-once", type=int, default=16, help="in company (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="(%(default)s)")
    parser.add_argument("--quantization", help="int8; none if omitted")
    parser.add_argument("--seed", type=int, default=0, help="of the mix (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder with the paper's tasks")
    args = parse(parser, argv, tiny=False)
    if args.quick:
        args.requests, args.at_once = 8, 4

    questions = Questions(args.data, args.seed)
    if args.quick:
        asked = [questions.one(kind) for kind in ("short", "short sequential") * 4]
    else:
        asked = questions.mixed(args.requests)
    size = -(-len(asked) // args.runs)
    blocks = [asked[start : start + size] for start in range(0, len(asked), size)]
    told = ["--device", args.device, "--dtype", args.dtype]
    told += ["--quantization", args.quantization] if args.quantization else []
    told += ["--max-concurrency", str(args.at_once)]
    if args.model != "the shipped model":
        told += ["--model", args.model]
    with Server(told) as server:
        arms = {ALONE: Arm(server, blocks, 1), COMPANY: Arm(server, blocks, args.at_once)}
        warm = Arm(server, [Questions(args.data, args.seed + 1).mixed(4)], 2)
        warm()
        runs = alternate({name: partial(arm) for name, arm in arms.items()}, len(blocks))
        engine = server.engine()
        code = server.end()

    differing = [
        {"request": place, "kind": asked[place].kind, ALONE: one.said(), COMPANY: other.said()}
        for place, (one, other) in enumerate(
            zip(arms[ALONE].replies, arms[COMPANY].replies, strict=True)
        )
        if one.said() != other.said()
    ]
    seconds = {name: sum(run.seconds for run in some) for name, some in runs.items()}
    rows = [
        row(name, arm, args.at_once, seconds, len(asked) - len(differing))
        for name, arm in arms.items()
    ]
    publish(
        "serve",
        rows,
        args,
        questions={"source": questions.source, "kinds": Counter(q.kind for q in asked)},
        streams=sum(bool(question.body.get("stream")) for question in asked),
        dtype=args.dtype,
        server=engine,
        blocks={name: [run.raw() for run in some] for name, some in runs.items()},
        memory={name: memory(arm.rss) for name, arm in arms.items()},
        by_kind=by_kind(asked, arms),
        differing=differing,
        rested={name: arm.rested for name, arm in arms.items()},
        exit_code=code,
    )
    missing = sum(not reply.answered for arm in arms.values() for reply in arm.replies)
    held = not all(each for arm in arms.values() for each in arm.rested)
    if missing or held or code != 0:
        raise SystemExit(
            f"{missing} requests without an answer; slots held behind a block: {held}; the "
            f"server's exit code: {code}\n{server.said}"
        )


def row(name: str, arm: Arm, at_once: int, seconds: dict[str, float], equal: int) -> dict[str, Any]:
    """An arm's line of the table."""
    firsts = [reply.first for reply in arm.replies if reply.first is not None]
    wholes = [reply.seconds for reply in arm.replies]
    used = memory(arm.rss)
    count, company = len(arm.replies), name == COMPANY
    return {
        "requests at a time": at_once if company else 1,
        "requests": count,
        "answered": sum(reply.answered for reply in arm.replies),
        "equal to alone": equal if company else "–",
        "requests/s": count / seconds[name],
        "tokens/s": sum(reply.tokens for reply in arm.replies) / seconds[name],
        "× one at a time": f"{seconds[ALONE] / seconds[name]:.2f}" if company else "1",
        "first token s, p50": percentile(firsts, 0.5),
        "first token s, p99": percentile(firsts, 0.99),
        "answer s, p50": percentile(wholes, 0.5),
        "answer s, p99": percentile(wholes, 0.99),
        "most slots seen": int(arm.most_slots),
        "MiB at the 50th": used.get("at_settled", "–") if company else "–",
        "MiB at the last": used.get("at_last", "–") if company else "–",
    }


def memory(rss: Sequence[float]) -> dict[str, Any]:
    """The server's memory in MiB from the 50th reply to the last; of few, from the first."""
    if not rss:
        return {}
    after = min(SETTLED, len(rss)) - 1 if len(rss) > SETTLED else 0
    line = [(float(place), value) for place, value in enumerate(rss)][after:]
    return {
        "at_settled": statistics.median(rss[max(after - 2, 0) : after + 3]),
        "at_last": statistics.median(rss[-5:]),
        "most": max(rss),
        "mib_per_100_requests": 100 * slope(line),
        "samples": [round(value, 1) for value in rss],
    }


def by_kind(asked: Sequence[Question], arms: dict[str, Arm]) -> dict[str, Any]:
    """Median seconds and cached prompt tokens of each kind, in each arm."""
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        for question, reply in zip(asked, arm.replies, strict=True):
            kind = found.setdefault(question.kind, {}).setdefault(
                name, {"requests": 0, "seconds": [], "tokens": 0, "cached_tokens": 0}
            )
            kind["requests"] += 1
            kind["seconds"].append(reply.seconds)
            kind["tokens"] += reply.tokens
            kind["cached_tokens"] += reply.reasoning.get("cached_tokens", 0)
    for kinds in found.values():
        for kind in kinds.values():
            kind["seconds"] = statistics.median(kind["seconds"])
    return found


if __name__ == "__main__":
    main()
