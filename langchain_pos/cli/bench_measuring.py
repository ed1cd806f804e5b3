"""The gain of parallel decoding on this machine, and how many branches a pass should carry.

Two measurements: one question answered in parallel and sequentially, in turn; and the time of a
decoding step at 1, 2, 4, … rows, which is nearly constant while reading the weights dominates and
grows with the rows once computing does. `recommended_branches` looks for that point.

Times are wall time around whole passes (scheduling, model, sampling, text), as a user sees it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from langchain_pos.engine.cpu.neighbours import Neighbours
from langchain_pos.engine.decoding.sequence import Feed, feed
from langchain_pos.engine.sampling import RowSampling, SamplingParams

if TYPE_CHECKING:
    from langchain_pos.engine.engine import Engine
    from langchain_pos.engine.scheduler.request import Request
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of rows that are measured."""
NEARLY_FREE = 1.3
"""Rows are nearly free while a step takes at most this many times as long as with one row; the
engine uses the same limit when it measures how far drafts may fill a pass."""
ENOUGH = 0.9
"""Share of the best tokens per second that the recommended number of branches reaches."""
_PREFIX = 512
_SECONDS_EACH = 2.0


@dataclass(frozen=True)
class StepTime:
    """The time of a decoding step with a given number of rows.

    Attributes:
        rows: sequences that each get a token.
        seconds: median wall time of a step.
    """

    rows: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """All rows' tokens over the step's seconds."""
        return self.rows / self.seconds


@dataclass(frozen=True)
class AnswerTime:
    """One way of answering the question.

    Attributes:
        way: its name.
        seconds: wall time of each run.
        tokens: written.
        forward_passes: one after another.
        fallback_reason: why a question meant for parallel was answered sequentially.
    """

    way: str
    seconds: tuple[float, ...]
    tokens: int
    forward_passes: int
    fallback_reason: str | None = None

    @property
    def median(self) -> float:
        """Median of the wall times."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class BenchResult:
    """All measurements.

    Attributes:
        engine: model, device, dtype and limits.
        answers: the ways of answering; parallel comes last.
        steps: by rows, ascending.
        prefix: tokens that the rows of `steps` shared.
        busy: what to say if other processes slowed all this down.
    """

    engine: dict[str, str]
    answers: tuple[AnswerTime, ...]
    steps: tuple[StepTime, ...]
    prefix: int
    busy: str | None = None

    @property
    def recommended_branches(self) -> int:
        """See `recommended_branches`."""
        return recommended_branches(self.steps)

    @property
    def free_rows(self) -> int:
        """See `free_rows`."""
        return free_rows(self.steps)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "max_parallel_branches": self.recommended_branches,
            "free_rows": self.free_rows,
        }


def measure(llm: ParallelReasoningLLM, question: str, *, runs: int = 3) -> BenchResult:
    """Answer `question` in parallel and sequentially, in turn, and time decoding steps.

    Args:
        llm: with its settings; only mode and drafts are changed. Without `prefix_cache_tokens=0`,
            only the first answers include their prefill.
        question: one that can be split into parts.
        runs: per way.
    """
    ways: dict[str, dict[str, Any]] = {
        "sequential, no drafts": {"mode": "sequential", "drafts": False},
        "sequential": {"mode": "sequential"},
        "parallel": {"mode": "parallel"},
    }
    llm.invoke(question, max_branch_tokens=1, max_conclusion_tokens=1)  # one-time setup
    neighbours = Neighbours(llm.engine.describe()["device"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results = {}
    for _ in range(runs):
        for way, settings in ways.items():
            began = time.perf_counter()
            results[way] = llm.invoke(question, **settings)
            seconds[way].append(time.perf_counter() - began)
    answers = tuple(
        AnswerTime(
            way,
            tuple(seconds[way]),
            result.usage.output_tokens,
            result.forward_passes.total,
            result.fallback_reason,
        )
        for way, result in results.items()
    )
    prefix = min(_PREFIX, (llm.engine.context_length or _PREFIX) // 2)
    steps = step_times(llm.engine, prefix=prefix)
    engine = llm.engine.describe() | {"model": llm.reasoner.model_name}
    return BenchResult(engine, answers, steps, prefix, neighbours.warning())


def step_times(
    engine: Engine, *, prefix: int, widths: Sequence[int] = WIDTHS, steps: int = 16
) -> tuple[StepTime, ...]:
    """Median seconds of a decoding step, by rows.

    Every width is measured in two rounds, ascending each time, so that a disturbance does not
    affect a single width.

    Args:
        engine: nothing else should run on it in the meantime.
        prefix: tokens that all rows see.
        widths: numbers of rows; those that exceed the engine's slots are left out.
        steps: steps of a round; fewer if they take longer than two seconds together.
    """
    pool = engine.forward.forest.pool
    room = (pool.total - pool.cost(0, prefix)) // pool.cost(0, steps + 1)
    fitting = [width for width in widths if width <= min(room, engine.scheduler.budget.max_rows)]
    found: dict[int, list[float]] = {width: [] for width in fitting}
    token = engine.forward.vocabulary // 2

    async def request_steps(request: Request[None]) -> None:
        root = engine.scheduler.root(request)
        await feed([Feed(root, [token] * prefix)])
        for _ in range(2):
            for width in fitting:
                branches = [engine.fork(root, at=prefix) for _ in range(width)]
                began = before = time.perf_counter()
                for step in range(steps + 1):
                    await feed(
                        [
                            Feed(branch, [token], RowSampling(SamplingParams(), index, step))
                            for index, branch in enumerate(branches)
                        ]
                    )
                    now = time.perf_counter()
                    if step:  # the first one includes the setup for this width
                        found[width].append(now - before)
                    before = now
                    if step > 1 and now - began > _SECONDS_EACH:
                        break
                for branch in branches:
                    engine.release(branch)

    engine.run(request_steps, reserve=prefix + max(fitting, default=0) * (steps + 1))
    return tuple(StepTime(width, statistics.median(some)) for width, some in found.items())


def recommended_branches(steps: Sequence[StepTime]) -> int:
    """Branches that a pass should carry: a good `max_parallel_branches`.

    The knee: the fewest measured rows that reach 90% of the best tokens per second. Below it,
    another branch costs less than it brings, so carrying more of them finishes an answer sooner.
    Above it, time grows in proportion to the rows: nothing is gained, and every other request
    waits longer for its pass.
    """
    best = max(step.tokens_per_second for step in steps)
    return min(step.rows for step in steps if step.tokens_per_second >= ENOUGH * best)


def free_rows(steps: Sequence[StepTime]) -> int:
    """Rows up to which a step costs at most 1.3 times one row: room for drafts."""
    alone = steps[0].seconds
    free = steps[0].rows
    for step in steps:
        if step.seconds > NEARLY_FREE * alone:
            break
        free = step.rows
    return free
