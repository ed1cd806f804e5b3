from __future__ import annotations

import pytest

from langchain_pos.results.data import (
    Block,
    BranchResult,
    Plan,
    StagePasses,
    StageTimings,
    TokenUsage,
)
from langchain_pos.results.result import ReasoningResult
from langchain_pos.results.timeline import SequentialEstimate, Timeline
from tests.support.scripted import STUDENTS, scripted_llm


def two_blocks() -> ReasoningResult:
    """Two blocks that were expanded from 1 to 2 and from 4 to 6 seconds."""
    blocks = [
        Block(
            plan=Plan.of(["a", "b"]),
            branches=tuple(
                BranchResult(index=i, title=t, started=start, ended=end - i / 2)
                for i, t in enumerate("ab")
            ),
        )
        for start, end in ((1.0, 2.0), (4.0, 6.0))
    ]
    return ReasoningResult(
        blocks=tuple(blocks), timings=StageTimings(plan=2.5, expand=3.0, conclude=1.5)
    )


def test_one_block_shows_the_stages_behind_one_another() -> None:
    """With one block the stages' seconds are laid end to end, and branches lie in "expand"."""
    llm, _ = scripted_llm(STUDENTS)
    result = llm.invoke("Who?")
    timeline = Timeline.of(result)
    assert timeline is not None
    assert [span.stage for span in timeline.stages] == ["plan", "expand", "conclude"]
    took = [span.end - span.start for span in timeline.stages]
    seconds = result.timings
    assert took == pytest.approx([seconds.plan, seconds.expand, seconds.conclude])
    assert timeline.stages[0].end == timeline.stages[1].start
    assert [bar.title for bar in timeline.branches] == ["Ann", "Ben"]
    assert all(bar.start >= timeline.stages[0].end * 0.99 for bar in timeline.branches)
    # Between the stages time passes, too; on a busy machine more than they take.
    assert timeline.total >= 0.999 * (seconds.total - seconds.queued)


def test_between_two_blocks_no_boundary_is_invented() -> None:
    """What lies between blocks is one span of both stages; the branches bound "expand"."""
    timeline = Timeline.of(two_blocks())
    assert timeline is not None
    spans = [(span.stage, span.start, span.end) for span in timeline.stages]
    assert spans == [
        ("plan", 0.0, 1.0),
        ("expand", 1.0, 2.0),
        ("conclude, plan", 2.0, 4.0),
        ("expand", 4.0, 6.0),
        ("conclude", 6.0, 7.0),
    ]


def test_what_was_not_timed_has_no_timeline() -> None:
    """A piece of a stream has no timings, so nothing is drawn."""
    assert Timeline.of(ReasoningResult(conclusion="x")) is None


def test_the_estimate_is_tokens_times_the_quickest_stage() -> None:
    """900 tokens at 10 ms, the mean of the quickest stage."""
    result = ReasoningResult(
        usage=TokenUsage(600, 900),
        timings=StageTimings(queued=9, plan=1.0, expand=1.0, conclude=0.2),
        forward_passes=StagePasses(plan=10, expand=50, conclude=20),
    )
    estimate = result.sequential_estimate()
    assert estimate == SequentialEstimate(tokens=900, seconds_per_pass=0.01)
    assert estimate.seconds == pytest.approx(9.0)


def test_a_sequential_answer_has_no_estimate() -> None:
    """It was measured: there is nothing to estimate."""
    llm, _ = scripted_llm(STUDENTS)
    assert llm.invoke("Who?", mode="sequential").sequential_estimate() is None


def test_the_estimate_of_passes_holds() -> None:
    """Without drafts, the sequential run of the same model takes no more passes than estimated."""
    from langchain_pos import ParallelReasoningLLM, demo_question

    llm = ParallelReasoningLLM(drafts=False)
    parallel = llm.invoke(demo_question())
    sequential = llm.invoke(demo_question(), mode="sequential")
    estimate = parallel.sequential_estimate()
    assert estimate is not None
    assert sequential.forward_passes.total <= 1.05 * estimate.tokens
    assert estimate.tokens <= 1.25 * sequential.forward_passes.total
