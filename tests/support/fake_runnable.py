"""A fake runnable with canned chunks for the tests of the command `langchain-pos`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_pos.cli import running
from langchain_pos.cli.main import app
from langchain_pos.engine.completion import TokenUsage
from langchain_pos.errors import ContextLengthError, ModelLoadError, UnsupportedModelError
from langchain_pos.results.data import Block, BranchResult, Plan, StagePasses, StageTimings
from langchain_pos.results.result import ReasoningChunk, ReasoningResult

BODIES = {"Ann": "GPA 3.10, outside", "Ben": "GPA 2.40, inside", "Cem": "GPA 4.00, outside"}


def parallel_chunks(bodies: dict[str, str] = BODIES) -> Iterator[ReasoningChunk]:
    """A stream of three stages; the branches are written letter by letter, all at once."""
    plan = Plan.of(list(bodies), preamble="Let me look at each student.")
    yield ReasoningChunk(stage="plan", delta="Let me look at each student.\n####Ann")
    yield ReasoningChunk(stage="plan", blocks=(Block(plan=plan),))
    for place in range(max(map(len, bodies.values()))):
        for index, (title, body) in enumerate(bodies.items()):
            if place < len(body):
                branch = BranchResult(index=index, title=title, text=body[place])
                yield ReasoningChunk(
                    stage="expand",
                    branch=index,
                    delta=body[place],
                    blocks=(Block(plan=plan, branches=(branch,)),),
                )
    for index, title in enumerate(bodies):
        done = BranchResult(index=index, title=title, finish_reason="stop")
        yield ReasoningChunk(stage="expand", blocks=(Block(plan=plan, branches=(done,)),))
    for word in ("The answer is\n", "name: Ben"):
        yield ReasoningChunk(stage="conclude", delta=word, conclusion=word)
    yield ReasoningChunk(
        stage="conclude",
        mode="parallel",
        usage=TokenUsage(300, 120),
        timings=StageTimings(plan=0.5, expand=0.25, conclude=0.25),
        forward_passes=StagePasses(plan=20, expand=12, conclude=8),
    )


def sequential_chunks(tokens_per_pass: int = 1) -> Iterator[ReasoningChunk]:
    """A stream of a sequential answer."""
    yield ReasoningChunk(stage="conclude", delta="name: Ben", conclusion="name: Ben")
    yield ReasoningChunk(
        stage="conclude",
        mode="sequential",
        usage=TokenUsage(300, 120),
        timings=StageTimings(conclude=3.0 / tokens_per_pass),
        forward_passes=StagePasses(conclude=120 // tokens_per_pass),
    )


def fallback_chunks() -> Iterator[ReasoningChunk]:
    """A stream of an answer that was to be parallel, and was cut off."""
    yield ReasoningChunk(stage="plan", delta="Hm.")
    yield ReasoningChunk(
        stage="conclude",
        conclusion="It is B",
        mode="sequential",
        fallback_reason="no valid plan",
        finish_reason="length",
    )


def interrupted_chunks() -> Iterator[ReasoningChunk]:
    """A stream that Ctrl+C interrupts in the middle of the second branch."""
    yield from list(parallel_chunks())[: 2 + 3 * len("GPA 2.40")]
    raise KeyboardInterrupt


def failed_branch_chunks() -> Iterator[ReasoningChunk]:
    """A stream in which one branch fails."""
    plan = Plan.of(["Ann"])
    bad = BranchResult(index=0, title="Ann", finish_reason="error", error="logits are NaN")
    yield ReasoningChunk(stage="plan", blocks=(Block(plan=plan),))
    yield ReasoningChunk(stage="expand", blocks=(Block(plan=plan, branches=(bad,)),))
    yield ReasoningChunk(stage="conclude", conclusion="nothing known")


class FakeLLM:
    """Stands for `ParallelReasoningLLM`; keeps what it was asked."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.asked: list[tuple[Any, str]] = []
        self.configs: list[Any] = []

    @property
    def engine(self) -> Any:
        model = self.settings.get("model")
        if model == "missing":
            raise ModelLoadError("no model 'missing':\n name a folder")
        if model == "mamba":
            raise UnsupportedModelError("mamba keeps a recurrent state")
        return SimpleNamespace(
            describe=lambda: {"attention": "sdpa", "device": "cpu", "probe": "passed"}
        )

    def stream(
        self, request: Any, mode: str = "parallel", drafts: bool = True
    ) -> Iterator[ReasoningChunk]:
        self.asked.append((request, mode))
        if isinstance(request, dict) and "messages" in request:
            request = request["question"]
        if request == "too long":
            raise ContextLengthError("the prompt has 9000 tokens, the model reads 2048")
        if request == "broken":
            raise RuntimeError("a bug")
        if request == "bad branch":
            return failed_branch_chunks()
        if request == "one thing":
            return fallback_chunks()
        if request == "stop here":
            return interrupted_chunks()
        return parallel_chunks() if mode == "parallel" else sequential_chunks(2 if drafts else 1)

    def invoke(
        self, request: Any, mode: str = "parallel", drafts: bool = True, **settings: int
    ) -> ReasoningResult:
        chunks = list(self.stream(request, mode, drafts))
        return sum(chunks[1:], start=chunks[0]).result()

    def batch_as_completed(
        self, requests: list[Any], config: Any = None, *, return_exceptions: bool, mode: str
    ) -> Iterator[tuple[int, Any]]:
        assert return_exceptions
        self.configs.append(config)
        for index in reversed(range(len(requests))):
            if requests[index] == "stop here":
                raise KeyboardInterrupt
            try:
                yield index, self.invoke(requests[index], mode)
            except (ContextLengthError, RuntimeError) as error:
                yield index, error


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    """The fake that the command gets instead of a model."""
    fake = FakeLLM()

    def make(settings: dict[str, Any]) -> FakeLLM:
        fake.settings = settings
        return fake

    monkeypatch.setattr(running, "make_llm", make)
    return fake


def run(*args: str | Path, stdin: str | None = None) -> Any:
    """The outcome of one command line."""
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
