"""The data of a question's way: JSON there and back, and chunks that add up."""

from __future__ import annotations

import random
from functools import reduce
from operator import add
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from langchain_pos import (
    Block,
    BranchResult,
    Plan,
    ReasoningChunk,
    ReasoningRequest,
    ReasoningResult,
    Step,
)
from langchain_pos.engine.completion import TokenUsage
from langchain_pos.results.data import StagePasses, StageTimings

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SECONDS = st.floats(0, 1e6, allow_nan=False)
COUNTS = st.integers(0, 1 << 40)
USAGE = st.builds(TokenUsage, COUNTS, COUNTS)
REASONS = st.sampled_from(["stop", "length", "cancelled", "error"])
TITLES = st.lists(
    st.text(st.characters(categories=("L", "Nd")), min_size=1, max_size=9),
    min_size=1,
    max_size=5,
    unique_by=str.casefold,
)


@st.composite
def blocks(draw: Any) -> Block:
    """A plan with all of its branches."""
    titles = draw(TITLES)
    branches = tuple(
        draw(
            st.builds(
                BranchResult,
                index=st.just(index),
                title=st.just(title),
                text=TEXT,
                finish_reason=REASONS,
                usage=USAGE,
                started=SECONDS,
                ended=SECONDS,
                error=st.none() | TEXT,
            )
        )
        for index, title in enumerate(titles)
    )
    return Block(plan=Plan.of(titles, draw(TEXT)), branches=branches)


RESULTS = st.builds(
    ReasoningResult,
    question=TEXT,
    blocks=st.lists(blocks(), max_size=3).map(tuple),
    conclusion=TEXT,
    mode=st.sampled_from(["parallel", "sequential"]),
    fallback_reason=st.none() | TEXT,
    finish_reason=REASONS,
    error=st.none() | TEXT,
    usage=USAGE,
    timings=st.builds(StageTimings, queued=SECONDS, plan=SECONDS, expand=SECONDS, conclude=SECONDS),
    forward_passes=st.builds(StagePasses, plan=COUNTS, expand=COUNTS, conclude=COUNTS),
    plan_attempts=COUNTS,
    peak_slots=COUNTS,
    model_name=TEXT,
)


class TestJson:
    @given(RESULTS)
    def test_a_result_comes_back_equal(self, result: ReasoningResult) -> None:
        """As text and as Python data; any characters, any of the fields."""
        assert ReasoningResult.model_validate_json(result.model_dump_json()) == result
        assert ReasoningResult.model_validate(result.model_dump(mode="json")) == result
        assert ReasoningResult.model_validate(result.model_dump()) == result

    @given(TEXT, st.lists(st.tuples(TEXT, TEXT)).map(tuple), st.none() | TITLES.map(tuple))
    def test_a_request_comes_back_equal(self, question: str, messages: Any, steps: Any) -> None:
        """What is asked can be kept in a file."""
        request = ReasoningRequest(question=question, messages=messages, steps=steps)
        assert ReasoningRequest.model_validate_json(request.model_dump_json()) == request

    def test_unknown_fields_are_refused(self) -> None:
        """A misspelt name is not lost in silence."""
        with pytest.raises(ValidationError, match="conclusoin"):
            ReasoningResult.model_validate({"conclusoin": "x"})

    def test_results_are_frozen(self) -> None:
        """They can be shared between threads and kept in caches."""
        result = ReasoningResult(conclusion="x")
        with pytest.raises(ValidationError, match="frozen"):
            result.conclusion = "y"  # type: ignore[misc]
        assert hash(Plan.of(["a"])) == hash(Plan.of(["a"]))


class TestPlan:
    @pytest.mark.parametrize(
        ("titles", "said"),
        [
            ([], "at least 1"),
            (["Ann", "ann"], "same title: 'ann'"),
            (["Ann", " Ann\n"], "same title: 'Ann'"),
            (["a ####b"], "opens a step"),
            ([" \n "], "empty"),
            ([""], "at least 1"),
        ],
    )
    def test_unusable_titles_are_refused(self, titles: list[str], said: str) -> None:
        """None, twice the same, a mark inside, nothing but white space."""
        with pytest.raises(ValidationError, match=said):
            Plan.of(titles)

    def test_titles_become_one_clean_line(self) -> None:
        """White space inside is one space, outside none."""
        assert Step(title="  Ann\n  Lee ").title == "Ann Lee"


class TestText:
    def test_the_text_of_a_result_is_the_papers_form(self) -> None:
        """Preamble, `####title: body` lines, the terminator, the conclusion."""
        branches = (
            BranchResult(index=0, title="Ann", text="a"),
            BranchResult(index=1, title="Ben", text="b"),
        )
        block = Block(plan=Plan.of(["Ann", "Ben"], "See."), branches=branches)
        result = ReasoningResult(blocks=(block, block), conclusion="Ben")
        one = "See.\n####Ann: a\n####Ben: b\n####%%%%\n"
        assert result.text == one + one + "Ben"
        assert result.preamble == "See."
        assert result.plan == block.plan
        assert result.branches == branches + branches

    def test_an_ordinary_answer_is_its_conclusion(self) -> None:
        """No block, no delimiters."""
        result = ReasoningResult(conclusion="Ben", mode="sequential")
        assert (result.text, result.plan, result.preamble, result.branches) == ("Ben", None, "", ())

    def test_totals_are_sums_of_the_stages(self) -> None:
        """Seconds with the time in the queue, passes, tokens."""
        assert StageTimings(queued=1, plan=2, expand=3, conclude=4).total == 10
        assert StagePasses(plan=2, expand=3, conclude=4).total == 9
        assert TokenUsage(2, 3) + TokenUsage(4, 5) == TokenUsage(6, 8)
        assert TokenUsage(2, 3).total_tokens == 5


@st.composite
def streams(draw: Any) -> tuple[ReasoningResult, list[ReasoningChunk]]:
    """A result, and chunks that tell it: plans, bodies in any order, ends, conclusion, totals."""
    result: ReasoningResult = draw(RESULTS)
    shuffle = random.Random(draw(st.integers()))
    chunks: list[ReasoningChunk] = []
    for place, block in enumerate(result.blocks):
        if place:
            preamble = block.plan.preamble
            chunks.append(ReasoningChunk(stage="conclude", conclusion=preamble, delta=preamble))
        bare = tuple(Block(plan=b.plan) for b in result.blocks[: place + 1])
        chunks.append(ReasoningChunk(stage="plan", blocks=bare))

        def piece(branch: BranchResult, bare: tuple[Block, ...] = bare) -> ReasoningChunk:
            last = Block(plan=bare[-1].plan, branches=(branch,))
            return ReasoningChunk(stage="expand", branch=branch.index, blocks=(*bare[:-1], last))

        waiting = {branch: list(branch.text) for branch in block.branches if branch.text}
        while waiting:
            branch = shuffle.choice(list(waiting))
            text = waiting[branch].pop(0)
            chunks.append(piece(BranchResult(index=branch.index, title=branch.title, text=text)))
            if not waiting[branch]:
                del waiting[branch]
        chunks += [piece(branch.model_copy(update={"text": ""})) for branch in block.branches]
    half = len(result.conclusion) // 2
    for text in (result.conclusion[:half], result.conclusion[half:]):
        chunks.append(ReasoningChunk(stage="conclude", conclusion=text, delta=text))
    known = set(ReasoningResult.model_fields) - {"blocks", "conclusion"}
    totals = {name: getattr(result, name) for name in known}
    chunks.append(ReasoningChunk(stage="conclude", **totals))
    return result, chunks


class TestChunks:
    @settings(max_examples=30)
    @given(streams())
    def test_the_sum_of_a_stream_is_the_result(
        self, case: tuple[ReasoningResult, list[ReasoningChunk]]
    ) -> None:
        """Whatever order the branches write in, and with several blocks."""
        result, chunks = case
        assert reduce(add, chunks).result() == result

    @settings(max_examples=30)
    @given(streams(), st.integers(0, 100))
    def test_it_does_not_matter_where_a_stream_is_cut(
        self, case: tuple[ReasoningResult, list[ReasoningChunk]], place: int
    ) -> None:
        """Sums of pieces add up to the same as one chunk after another."""
        result, chunks = case
        cut = 1 + place % len(chunks)
        whole = reduce(add, chunks[:cut])
        if chunks[cut:]:
            whole = whole + reduce(add, chunks[cut:])
        assert whole.result() == result
        assert whole.delta == "".join(chunk.delta for chunk in chunks)

    def test_a_chunk_adds_to_chunks_only(self) -> None:
        """Anything else is a mistake."""
        with pytest.raises(TypeError):
            ReasoningChunk(stage="plan") + "text"  # type: ignore[operator]
