"""Whole requests that write the paper's recorded texts: `python -m benchmarks.replay`.

Weights are random, texts are real: after every forward pass the engine samples as always, grammar
and all, and then the recorded token takes the place of the one chosen. So drafts are accepted
where, and only where, they guess the recorded text. Prefill, plan, branches, join and conclusion
are all inside the measured time, and the texts that come out are compared with the recorded ones.

Peers write recorded texts as well:

    sequential      `generate`, the recorded sequential answer behind the plain question
    look-up         the same with `prompt_lookup_num_tokens`
    the paper's     the same parallel answer behind the same prompt as ours: skeleton token by
                    token, titles and branches in lock-step, join, conclusion (`paper_algorithm`)

Ratios are sums of medians over the answers of a kind. Sequential answers take longest and are
measured over their whole length, but fewer times (`--sequential-runs`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.measuring import (
    Arm,
    Clock,
    Run,
    alternate,
    median_seconds,
    options,
    parse,
    publish,
    summary,
)
from benchmarks.models import engine_for, random_model, twin
from benchmarks.paper_algorithm import PaperAlgorithm
from benchmarks.peers import PAPER, generate_text
from benchmarks.recorded import KINDS, Recorded, encode, read, token_ratio, tokenizer_for
from benchmarks.report import data_folder
from langchain_pos.engine import Engine
from langchain_pos.engine.sampling import RowSampling, derive_seed, sample
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.errors import NonFiniteLogitsError
from langchain_pos.local.decoder import LocalDecoder
from langchain_pos.local.decoding import LocalDecoding
from langchain_pos.reasoning.chat_template import encode_prompt
from langchain_pos.reasoning.paper_form import PaperForm
from langchain_pos.reasoning.prompts import prompts_for
from langchain_pos.reasoning.reasoner import Reasoner
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.data import Plan, ReasoningRequest
from langchain_pos.results.result import ReasoningResult

OURS, SEQUENTIAL, LOOKUP = "ours", "generate", "generate, prompt look-up"
LOOKUP_TOKENS = 10
"""Length of the drafts of prompt look-up in transformers' own examples."""
FORM = PaperForm()
SETTINGS = ReasoningSettings(
    seed=0,
    max_blocks=1,
    max_preamble_tokens=1024,
    max_title_tokens=256,
    max_plan_tokens=8192,
    max_branch_tokens=4096,
    max_conclusion_tokens=4096,
    decline_without_gain=False,
    max_pressure=None,
    outline="paper",
    on_plan_failure="raise",
)
"""Bounds that no recorded text reaches."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--answers", type=int, default=2, help="of each kind (%(default)s)")
    parser.add_argument("--sequential-runs", type=int, default=2)
    parser.add_argument("--join", choices=["reprefill", "reuse"], default="reprefill")
    parser.add_argument("--no-drafts", action="store_true", help="our engine without guesses")
    parser.add_argument(
        "--keep", action="store_true", help="keep the other kinds that the result file has"
    )
    parser.add_argument("--data", type=Path, help="folder with the paper's recorded runs")
    parser.add_argument("--dtype", default="auto", help="of the weights (%(default)s)")
    parser.add_argument("--quantization", help="of ours: int8; none if omitted")
    args = parse(parser, argv)
    if args.quick:
        args.answers, args.sequential_runs = 1, 1

    folder = data_folder(args.data)
    answers = {kind: read(folder, kind, args.answers) for kind in args.kinds}
    tokenizer = tokenizer_for(text for some in answers.values() for a in some for text in _texts(a))
    model = random_model(args.model, args.device, dtype=args.dtype)
    peer_model = twin(model)
    engine = engine_for(model, tokenizer, quantization=args.quantization)
    settings = SETTINGS.model_copy(update={"drafts": not args.no_drafts, "join": args.join})
    fewer = {SEQUENTIAL: args.sequential_runs, LOOKUP: args.sequential_runs}
    rows, details = [], []
    for kind, some in answers.items():
        found, results = [], []
        for recorded in some:
            ours = Replay(engine, recorded, settings)
            peer = PeerReplay(peer_model, tokenizer, recorded, ours.prompt_ids)
            arms: dict[str, Arm] = {OURS: ours.run, SEQUENTIAL: peer.sequential}
            if not engine.forward.states:  # which neither of these two can cut back
                arms[LOOKUP] = partial(peer.sequential, lookup=LOOKUP_TOKENS)
                arms[PAPER] = peer.paper
            ours.run()  # warm-up: grammar, buffers
            runs = alternate(arms, args.runs, fewer)
            found.append(runs)
            results.append(ours.results[-1])
            details.append(_details(kind, recorded, runs, ours.results[-1]))
            print(kind, recorded.id, _seconds([runs]), file=sys.stderr)
            row = _row(kind, found, results, token_ratio(tokenizer, some[: len(found)]))
            # After each answer: what interrupts a run of an hour does not cost all of it.
            _publish([*rows, row], details, args, engine)
        rows.append(row)


def _publish(
    rows: list[dict[str, Any]],
    details: list[dict[str, Any]],
    args: argparse.Namespace,
    engine: Engine,
) -> None:
    """Report what is there so far, with `--keep` beside the other kinds of the run before."""
    kept: dict[str, Any] = {"rows": [], "answers": []}
    before = args.out / "replay.json"
    if args.keep and before.is_file():
        kept = json.loads(before.read_text(encoding="utf-8"))
    order, done = list(KINDS), {row["answers like"] for row in rows}
    rows = [row for row in kept["rows"] if row["answers like"] not in done] + rows
    rows.sort(key=lambda row: order.index(row["answers like"]))
    details = [each for each in kept["answers"] if each["kind"] not in done] + details
    publish("replay", rows, args, answers=details, engine=engine.describe())


def _joined(steps: Sequence[tuple[str, str]]) -> str:
    """Recorded steps as the paper joins them."""
    return FORM.join(Plan.of([title for title, _ in steps]), [body for _, body in steps])


def _texts(recorded: Recorded) -> list[str]:
    """All that is read or written with an answer, for the tokenizer."""
    prompts = prompts_for(recorded.prompt)
    return [
        f"Question: {prompts.for_plan(recorded.prompt, max_branches=SETTINGS.max_branches)}",
        f"Question: {prompts.for_sequential(recorded.prompt)}\n\nAnswer:\n",
        recorded.skeleton,
        recorded.parallel,
        _joined(recorded.steps),
        recorded.sequential,
    ]


class Replay:
    """One recorded answer through our three stages.

    Args:
        engine: its sampler is replaced while a run lasts.
        recorded: the answer.
        settings: with a seed, from which every sequence's own follows.
    """

    def __init__(self, engine: Engine, recorded: Recorded, settings: ReasoningSettings) -> None:
        self.engine = engine
        self.recorded = recorded
        self.settings = settings
        self.results: list[ReasoningResult] = []
        self._reasoner = Reasoner(LocalDecoding(engine))
        self._ask = ReasoningRequest(question=recorded.prompt)
        answer = self._reasoner.prepare(self._ask, settings)
        decoder = cast("LocalDecoder", answer.decoder)
        self.prompt_ids = decoder.encode(answer.question.plan_messages())
        tokenizer: Any = engine.tokenizer
        seed = answer.question.seed
        self._by_seed = {derive_seed(seed, "plan", 1): encode(tokenizer, recorded.skeleton)}
        for index, (_, body) in enumerate(recorded.steps):
            self._by_seed[derive_seed(seed, "branch", 1, index)] = encode(tokenizer, body)
        self._conclusion = encode(tokenizer, recorded.conclusion)
        self._eos = int(tokenizer.eos_token_id)

    def run(self) -> Run:
        """Answer the question; the recorded text must come out.

        Raises:
            RuntimeError: it did not.
        """
        scheduler = self.engine.scheduler
        before, scheduler.sampler = scheduler.sampler, self._sample
        try:
            clock = Clock(self.engine.forward.device)
            pending = self._reasoner.submit(self._ask, self.settings)
            result = pending.wait()
            seconds = clock()
        finally:
            scheduler.sampler = before
        self._check(result)
        self.results.append(result)
        states = cast("Request[ReasoningResult]", pending).peak_states
        size = self.engine.forward.cache.slot_bytes
        return Run(
            seconds=seconds,
            tokens=result.usage.output_tokens,
            passes=result.forward_passes.total,
            kv_bytes=(result.peak_slots - states) * size,
            state_bytes=states * size or None,
            parts={
                "plan": result.timings.plan,
                "expand": result.timings.expand,
                "conclude": result.timings.conclude,
            },
        )

    def _sample(
        self, logits: torch.Tensor, rows: Sequence[RowSampling]
    ) -> list[int | NonFiniteLogitsError]:
        sample(logits, rows)  # all that sampling costs; then the recorded tokens
        return [self._forced(row) for row in rows]

    def _forced(self, row: RowSampling) -> int:
        target = self._by_seed.get(row.seed, self._conclusion)
        return target[row.step] if row.step < len(target) else self._eos

    def _check(self, result: ReasoningResult) -> None:
        recorded = self.recorded
        said = (
            result.mode,
            result.preamble,
            [(branch.title, branch.text) for branch in result.branches],
            result.conclusion,
        )
        wanted = (
            "parallel",
            recorded.preamble,
            [(title, body.strip()) for title, body in recorded.steps],
            recorded.conclusion,
        )
        for is_, should_be in zip(said, wanted, strict=True):
            if is_ != should_be:
                raise RuntimeError(
                    f"{recorded.id}: the replayed text differs from the recorded one: {is_!r}, not "
                    f"{should_be!r} ({result.fallback_reason or 'no fallback'})"
                )


class PeerReplay:
    """The same answer by the peers.

    Args:
        model: with `sdpa` attention and without EOS.
        tokenizer: as ours.
        recorded: the answer.
        prompt_ids: of our plan prompt, for the paper's algorithm.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        recorded: Recorded,
        prompt_ids: Sequence[int],
    ) -> None:
        self._model = model
        self._eos = int(tokenizer.eos_token_id)
        self._plain_ids = encode_prompt(
            tokenizer, [("user", prompts_for(recorded.prompt).for_sequential(recorded.prompt))]
        )
        self._sequential_ids = encode(tokenizer, recorded.sequential)
        self._prompt_ids = list(prompt_ids)
        self._skeleton = encode(tokenizer, recorded.skeleton)
        preamble = f"{recorded.preamble}\n" if recorded.preamble else ""
        self._preamble = encode(tokenizer, preamble)
        plan = Plan.of([title for title, _ in recorded.steps])
        places = range(len(plan.steps))
        self._openings = [encode(tokenizer, FORM.opening(plan, place)) for place in places]
        self._bodies = [encode(tokenizer, body) for _, body in recorded.steps]
        said = [(title, body.strip()) for title, body in recorded.steps]
        self._joined = encode(tokenizer, _joined(said))
        self._conclusion = encode(tokenizer, recorded.conclusion)

    def sequential(self, lookup: int | None = None) -> Run:
        """`generate`, prefill included."""
        target = [*self._sequential_ids, self._eos]
        return generate_text(self._model, self._plain_ids, target, lookup=lookup)

    def paper(self) -> Run:
        """The paper's algorithm, prefill included."""
        clock = Clock(self._model.device)
        algorithm = PaperAlgorithm(self._model)
        # Stage 1. The whole skeleton, token by token; then back to before its first `####`.
        logits = algorithm.prefill(self._prompt_ids)
        algorithm.write(logits, len(self._skeleton), self._skeleton)
        trunk = len(self._prompt_ids) + len(self._preamble)
        algorithm.cut_back(trunk)
        plan, plan_seconds = algorithm.passes, clock()
        # Stage 2. Every branch ends itself by EOS, and goes on computing behind it.
        bodies = [[*body, self._eos] for body in self._bodies]
        algorithm.expand(self._openings, list(map(len, bodies)), bodies)
        algorithm.cut_back(trunk)
        expand, expand_seconds = algorithm.passes, clock()
        # Stage 3. The joined text in one pass, the conclusion token by token.
        logits = algorithm.prefill(self._joined)
        algorithm.write(logits, len(self._conclusion) + 1, [*self._conclusion, self._eos])
        seconds = clock()
        return Run(
            seconds=seconds,
            tokens=len(self._skeleton) + sum(map(len, self._bodies)) + len(self._conclusion),
            passes=algorithm.passes,
            kv_bytes=algorithm.peak_kv_bytes,
            parts={
                "plan passes": plan,
                "expand passes": expand - plan,
                "conclude passes": algorithm.passes - expand,
                "plan": plan_seconds,
                "expand": expand_seconds - plan_seconds,
                "conclude": seconds - expand_seconds,
            },
        )


def _details(
    kind: str, recorded: Recorded, runs: dict[str, list[Run]], result: ReasoningResult
) -> dict[str, Any]:
    return {
        "kind": kind,
        "id": recorded.id,
        "recorded tokens": [recorded.parallel_tokens, recorded.sequential_tokens],
        "passes": result.forward_passes.model_dump(),
        "drafted": result.drafts.drafted,
        "accepted": result.drafts.accepted,
        "prompt tokens": result.usage.input_tokens,
        "arms": summary(runs),
    }


def _seconds(found: Sequence[dict[str, list[Run]]]) -> dict[str, float]:
    """Seconds of each arm, medians over the runs summed over the answers."""
    return {name: sum(median_seconds(runs[name]) for runs in found) for name in found[0]}


def _row(
    kind: str,
    found: Sequence[dict[str, list[Run]]],
    results: Sequence[ReasoningResult],
    ratio: float,
) -> dict[str, Any]:
    seconds = _seconds(found)
    passes = [result.forward_passes for result in results]
    drafted = sum(result.drafts.drafted for result in results)
    accepted = sum(result.drafts.accepted for result in results)
    count = len(results)
    return {
        "answers like": kind,
        "answers": count,
        "runs": len(found[0][OURS]),
        "sequential tokens": sum(runs[SEQUENTIAL][0].tokens for runs in found) / count,
        "token ratio": f"{ratio:.2f}",
        "passes: plan": sum(some.plan for some in passes) / count,
        "expand": sum(some.expand for some in passes) / count,
        "conclude": sum(some.conclude for some in passes) / count,
        "guesses right": f"{accepted / drafted:.0%}" if drafted else "–",
        "seconds": seconds[OURS] / count,
        "× generate": f"{seconds[SEQUENTIAL] / seconds[OURS]:.2f}",
        "× with look-up": _times(seconds, LOOKUP),
        "× the paper's algorithm": _times(seconds, PAPER),
        **_megabytes([runs[OURS][0] for runs in found]),
    }


def _times(seconds: dict[str, float], peer: str) -> str:
    return f"{seconds[peer] / seconds[OURS]:.2f}" if peer in seconds else "–"


def _megabytes(runs: Sequence[Run]) -> dict[str, float]:
    """Keys, values and states of the largest answer, where there are states."""
    if not any(run.state_bytes for run in runs):
        return {}
    return {
        "KV MB": max(run.kv_bytes or 0 for run in runs) / 1e6,
        "states MB": max(run.state_bytes or 0 for run in runs) / 1e6,
    }


if __name__ == "__main__":
    main()
