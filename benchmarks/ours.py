"""Our engine, measured from where the prefix is in its cache; and kept in lock-step.

Requests are written from the engine's public parts (`Feed`, `decode`), as `Engine.decode_branches`
is, with a clock in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from benchmarks.measuring import Clock, Run
from langchain_pos.engine import Engine
from langchain_pos.engine.decoding.sequence import Feed, Steps, decode, feed
from langchain_pos.engine.sampling import SamplingParams, derive_seed
from langchain_pos.engine.scheduler.request import Request

T = TypeVar("T")


async def clocked(steps: Steps[T], ticks: list[float], clock: Clock) -> T:
    """`steps`, with the time after each of its passes noted in `ticks`."""
    try:
        feeds = steps.send(None)  # type: ignore[arg-type]  # a coroutine starts with None
        while True:
            sampled = await feed(feeds)
            ticks.append(clock())
            feeds = steps.send(sampled)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def expand(
    engine: Engine,
    prefix_ids: Sequence[int],
    openings: Sequence[Sequence[int]],
    lengths: Sequence[int],
    *,
    max_parallel: int | None = None,
    wanted: int | None = None,
) -> Run:
    """Stage 2 alone: branches behind a prefix that has been prefilled before the clock starts.

    Args:
        engine: without EOS, so that budgets end the branches.
        prefix_ids: what all branches see.
        openings: the first tokens of each branch.
        lengths: tokens that each writes.
        max_parallel: branches decoded at the same time; None for all.
        wanted: tokens that count as written; all by default.

    Returns:
        its `parts` have the seconds of the median and of the first pass, which feeds the
        openings.
    """
    ticks: list[float] = []
    params = SamplingParams()
    written: list[tuple[int, ...]] = []
    clocks: list[Clock] = []

    async def steps(request: Request[tuple[int, int]]) -> tuple[int, int]:
        root = engine.scheduler.root(request)
        await feed([Feed(root, prefix_ids)])
        clocks.append(Clock(engine.forward.device))
        sequences = [
            engine.sequence(
                engine.fork(root, at=len(prefix_ids)),
                opening,
                max_new_tokens=length,
                sampling=params,
                seed=derive_seed(0, index),
                context_ids=prefix_ids,
            )
            for index, (opening, length) in enumerate(zip(openings, lengths, strict=True))
        ]

        async def branches() -> None:
            await decode(
                sequences,
                max_parallel=max_parallel,
                on_end=lambda sequence: engine.release(sequence.segment),
            )

        await clocked(branches(), ticks, clocks[0])
        written.extend(tuple(sequence.token_ids) for sequence in sequences)
        return request.peak_slots, request.peak_states

    together = sorted(map(len, openings), reverse=True)[:max_parallel]
    most = sorted(lengths, reverse=True)[:max_parallel]
    peak, states = engine.run(
        steps,
        reserve=len(prefix_ids) + sum(together) + sum(most),
        segments=1 + len(together),
    )
    passes = [after - before for before, after in zip([0.0, *ticks], ticks, strict=False)]
    return Run(
        seconds=ticks[-1],
        tokens=sum(lengths) if wanted is None else wanted,
        passes=len(ticks),
        kv_bytes=(peak - states) * engine.forward.cache.slot_bytes,
        state_bytes=states * engine.forward.cache.slot_bytes or None,
        written=tuple(written),
        parts={"first_pass": passes[0], "median_pass": sorted(passes)[len(passes) // 2]},
    )


def expand_in_waves(
    engine: Engine,
    prefix_ids: Sequence[int],
    openings: Sequence[Sequence[int]],
    lengths: Sequence[int],
    width: int,
) -> Run:
    """`expand` without retirement and refill: groups of `width`, each until its longest ends."""
    waves = []
    for start in range(0, len(lengths), width):
        some = lengths[start : start + width]
        waves.append(
            expand(
                engine,
                prefix_ids,
                openings[start : start + width],
                [max(some)] * len(some),
                wanted=sum(some),
            )
        )
    return Run(
        seconds=sum(wave.seconds for wave in waves),
        tokens=sum(lengths),
        passes=sum(wave.passes or 0 for wave in waves),
        kv_bytes=max(wave.kv_bytes or 0 for wave in waves),
    )


def cache_bytes(engine: Engine) -> int:
    """Bytes that the engine's cache has allocated: what it holds, and what it may yet hold."""
    layers: list[Any] = list(engine.forward.cache.layers)
    slots = max((layer.keys.shape[2] for layer in layers), default=0)
    return slots * engine.forward.cache.slot_bytes
