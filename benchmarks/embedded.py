"""The shipped model's own answers, ours against `generate`: `python -m benchmarks.embedded`.

Real questions of the paper's retrieval tasks, greedily, each token the model's own. Parallel: the
three stages. Sequential: transformers `generate` on the prompt that `mode="sequential"` builds,
with as many tokens allowed. Seconds include prefill; every question is answered both ways before
the next one, each way `--runs` times. Branches are judged as in `benchmarks.quality`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.answering import Answering
from benchmarks.measuring import Run, alternate, median_seconds, options, parse, publish
from benchmarks.report import data_folder
from benchmarks.scoring import Score
from langchain_pos.embedded import embedded_model_path
from langchain_pos.reasoning.settings import ReasoningSettings
from langchain_pos.results.result import ReasoningResult

OURS, SEQUENTIAL = "parallel", "sequential"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__, model="the shipped model")
    parser.set_defaults(runs=3)
    parser.add_argument("--tasks", nargs="*", default=["retrieval_10", "retrieval_30"])
    parser.add_argument("--questions", type=int, default=20, help="of each task (%(default)s)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", help="of ours: int8; none if omitted")
    parser.add_argument("--join", choices=["reprefill", "reuse"], default="reprefill")
    parser.add_argument("--data", type=Path, help="folder with the paper's tasks")
    args = parse(parser, argv, tiny=False)
    if args.quick:
        args.questions, args.runs, args.tasks = 1, 1, args.tasks[:1]

    shipped = args.model == "the shipped model"
    name = str(embedded_model_path()) if shipped else args.model
    both = Answering(
        name, args.device, args.dtype, ReasoningSettings(join=args.join), args.quantization
    )
    both.warm_up()
    rows, details = [], []
    for task in args.tasks:
        text = (data_folder(args.data) / f"{task}.jsonl").read_text(encoding="utf-8")
        scores = {OURS: Score(), SEQUENTIAL: Score()}
        for line in text.splitlines()[: args.questions]:
            row = json.loads(line)
            results: dict[str, ReasoningResult] = {}

            def ask(
                way: str,
                prompt: str = row["prompt"],
                results: dict[str, ReasoningResult] = results,
            ) -> Run:
                run = (both.parallel if way == OURS else both.sequential)(prompt)
                results[way] = both.result
                return run

            runs = alternate({way: partial(ask, way) for way in scores}, args.runs)
            found: dict[str, Any] = {"id": row["id"]}
            for way, score in scores.items():
                verdict = score.add(row, results[way], median_seconds(runs[way]))
                found[way] = {"seconds": [run.seconds for run in runs[way]], **verdict}
            details.append(found)
        rows += [_row(task, way, scores) for way in scores]
    publish("embedded", rows, args, answers=details, engine=both.engine.describe())


def _row(task: str, way: str, scores: dict[str, Score]) -> dict[str, Any]:
    own, other = (statistics.median(scores[one].seconds) for one in (OURS, SEQUENTIAL))
    row = scores[way].row(task, way)
    row["mode"] = "parallel" if way == OURS else "sequential (generate)"
    row["× generate"] = f"{other / own:.2f}" if way == OURS else "1"
    return row


if __name__ == "__main__":
    main()
