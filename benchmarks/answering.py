"""One model answering real questions in three ways; `embedded` and `paper` measure them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks import ours
from benchmarks.measuring import Clock, Run
from benchmarks.models import engine_for, twin
from benchmarks.peers import Prefix, answer
from langchain_pos.engine.completion import TokenUsage
from langchain_pos.engine.cpu.weight_packing import PackedModelError
from langchain_pos.engine.loading import load
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.local.decoder import LocalDecoder
from langchain_pos.local.decoding import LocalDecoding
from langchain_pos.local.trunk import LocalTrunk
from langchain_pos.reasoning.budget import Budget
from langchain_pos.reasoning.paper_form import PAPER
from langchain_pos.reasoning.prompts import load_prompts
from langchain_pos.reasoning.reasoner import Reasoner, Reasoning
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.data import (
    STEP_MARK,
    Block,
    BranchResult,
    Plan,
    ReasoningRequest,
    StagePasses,
)
from langchain_pos.results.result import ReasoningResult


@dataclass(frozen=True)
class _Planned:
    """What stage 1 leaves for the rows."""

    plan: Plan | None
    trunk_ids: list[int]
    openings: list[list[int]]
    tokens: int
    peak_slots: int


class Answering:
    """A model behind our engine, and a twin of it behind `generate`.

    Args:
        name: folder or hub name.
        device: as for `Engine.load`.
        dtype: as for `Engine.load`.
        settings: budgets, for all ways alike.
        quantization: of ours alone.

    Attributes:
        engine: ours.
        result: of the last answer.
        peak_bytes: of the last answer: what CUDA had allocated at most; on a CPU, weights, keys
            and values.
    """

    def __init__(
        self,
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        settings: ReasoningSettings | None = None,
        quantization: str | None = None,
    ) -> None:
        model, tokenizer = load(name, device=device, dtype=dtype)
        self.settings = settings or ReasoningSettings()
        self._peer = twin(model)
        self._weights = sum(weights.nbytes for weights in model.parameters())
        try:
            self.engine = engine_for(model, tokenizer, quantization=quantization)
        except PackedModelError:  # as `Engine.load` does
            if quantization is not None:
                raise
            self.engine = engine_for(twin(self._peer), tokenizer, pack_weights=False)
        prompts = load_prompts(Path(name)) if Path(name).is_dir() else None
        self._reasoner = Reasoner(LocalDecoding(self.engine), prompts=prompts, model_name=name)
        self.result = ReasoningResult()
        self.peak_bytes = 0

    def warm_up(self) -> None:
        """What is set up once is set up now."""
        for way in (self.parallel, self.sequential):
            way("Ann is 20 years old, Ben is 21. Who of them is older?")

    def parallel(self, question: str) -> Run:
        """Our three stages."""
        clock = self._begin()
        self.result = self._prepare(question).submit().wait()
        seconds = clock()
        self._peak(self.result.peak_slots * self.engine.forward.cache.slot_bytes, own=True)
        passes = self.result.forward_passes.total
        return Run(seconds, self.result.usage.output_tokens, passes)

    def sequential(self, question: str) -> Run:
        """Transformers' `generate` on the prompt of `mode="sequential"`."""
        clock = self._begin()
        asked = self._prepare(question, mode="sequential")
        prompt_ids, budget = self._prompt(asked)
        eos = self.engine.eos_token_ids
        run = answer(self._peer, prompt_ids, budget.sequential, eos)
        text = self._text(list(run.written[0]))
        seconds = clock()
        held = len(prompt_ids) + run.tokens
        self._peak(held * self.engine.forward.cache.slot_bytes, own=False)
        self.result = ReasoningResult(
            question=question,
            conclusion=text,
            mode="sequential",
            usage=TokenUsage(len(prompt_ids), run.tokens),
            forward_passes=StagePasses(conclude=run.passes or 0),
        )
        return Run(seconds, run.tokens, run.passes)

    def skeleton_of_thought(self, question: str) -> Run:
        """Our stage 1, then `generate` on a row for each step, over copies of the prefix's cache.

        The conclusion follows by `generate`, behind the joined text: Skeleton-of-Thought has none,
        and could answer no question about all steps. The prefix is prefilled once more for
        transformers' cache, and that is not counted: an engine with one cache has it at hand.
        """
        clock = self._begin()
        planned = self._submit_plan(question).wait()
        plan_seconds = clock()
        if planned.plan is None:
            run = self.sequential(question)
            return Run(plan_seconds + run.seconds, planned.tokens + run.tokens)
        prefix = Prefix(self._peer, planned.trunk_ids)
        eos = sorted(self.engine.eos_token_ids)
        ending: dict[str, Any] = {
            "eos_token_id": eos or None,
            "pad_token_id": eos[0] if eos else 0,
        }
        rows = prefix.copied(
            planned.openings,
            self.settings.max_branch_tokens,
            stop_strings=[STEP_MARK],
            tokenizer=self.engine.tokenizer,
            **ending,
        )
        bodies = [self._cut(list(row)) for row in rows.written]
        texts = [self._text(body).partition(STEP_MARK)[0].strip() for body in bodies]
        joined = self.engine.tokenizer(PAPER.join(planned.plan, texts), add_special_tokens=False)[
            "input_ids"
        ]
        ended = prefix.sequential([joined], self.settings.max_conclusion_tokens, **ending)
        conclusion = self._cut(list(ended.written[0]))
        self._peak(max(rows.kv_bytes or 0, ended.kv_bytes or 0), own=False)
        branches = tuple(
            BranchResult(index=index, title=title, text=text)
            for index, (title, text) in enumerate(zip(planned.plan.titles, texts, strict=True))
        )
        tokens = planned.tokens + sum(map(len, bodies)) + len(conclusion)
        self.result = ReasoningResult(
            question=question,
            blocks=(Block(plan=planned.plan, branches=branches),),
            conclusion=self._text(conclusion),
            usage=TokenUsage(len(planned.trunk_ids), tokens),
        )
        return Run(plan_seconds + rows.seconds + ended.seconds, tokens)

    def _submit_plan(self, question: str) -> Request[_Planned]:
        """Stage 1 alone, as `Reasoning.reason` begins."""
        asked = self._prepare(question)

        async def steps(request: Request[_Planned]) -> _Planned:
            pending = cast("Request[ReasoningResult]", request)
            with asked.progress.under_way(pending, asked.decoder):
                await asked.decoder.start(pending)
                plan, trunk, _ = await asked.planner.plan()
            if plan is None or not isinstance(trunk, LocalTrunk):
                return _Planned(None, [], [], asked.progress.output_tokens, 0)
            openings = [trunk.encode(PAPER.opening(plan, i)) for i in range(len(plan.steps))]
            written, peak = asked.progress.output_tokens, request.ledger.peak_slots
            return _Planned(plan, list(trunk.token_ids), openings, written, peak)

        return self.engine.scheduler.submit(steps, reserve=asked.decoder.budget.reserve)

    @staticmethod
    def _prompt(asked: Reasoning) -> tuple[list[int], Budget]:
        """The tokens of a sequential prompt, and what may follow."""
        decoder = cast("LocalDecoder", asked.decoder)
        return decoder.encode(asked.question.sequential_messages()), decoder.budget

    def _prepare(self, question: str, **changes: Any) -> Reasoning:
        settings = self.settings.model_copy(update=changes)
        return self._reasoner.prepare(ReasoningRequest(question=question), settings)

    def _cut(self, token_ids: list[int]) -> list[int]:
        """The tokens before EOS."""
        ends = (at for at, token in enumerate(token_ids) if token in self.engine.eos_token_ids)
        return token_ids[: next(ends, len(token_ids))]

    def _text(self, token_ids: list[int]) -> str:
        return str(self.engine.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()

    def _begin(self) -> Clock:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        return Clock(self.engine.forward.device)

    def _peak(self, kv_bytes: int, *, own: bool) -> None:
        """Note the peak; what our engine's cache keeps allocated is not the peers' doing."""
        self.peak_bytes = self._weights + kv_bytes
        if self._on_gpu:
            others = 0 if own else ours.cache_bytes(self.engine)
            self.peak_bytes = torch.cuda.max_memory_allocated() - others

    @property
    def _on_gpu(self) -> bool:
        return self.engine.forward.device.type == "cuda"


Way = Callable[[str], Run]
"""A question answered in one of the ways."""
