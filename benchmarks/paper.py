"""The columns of the paper's Table 1 for any model and task: `python -m benchmarks.paper`.

    python -m benchmarks.paper --model Qwen/Qwen2.5-7B-Instruct --dtype bfloat16 \
        --tasks retrieval_10 retrieval_30 planning

Each question is answered in three ways, and in five with `--chain-of-draft`, greedily:

    sequential            transformers `generate`, the ordinary answer
    parallel              our three stages
    Skeleton-of-Thought   our stage 1, then `generate` on one row for each step over copies of
                          the prefix's cache, then a conclusion by `generate`
    Chain-of-Draft        sequential, and parallel, with the instruction of arXiv 2502.18600 after
                          the question: drafts of five words (as in the paper's later table)

A task is a JSON-lines file, by path or by its stem in the data folder: rows with `prompt`, `task`
or `question`. Quality is the share of answers that name `gold_keys` and no other of the prompt's
students; rows without it (planning) need a judge: their texts are in the JSON file. Peak memory is
what CUDA had allocated at most; on a CPU, the bytes of weights, keys and values. Tokens per second
are all tokens over all seconds, prefill included.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.answering import Answering, Way
from benchmarks.measuring import options, parse, publish, without_folder
from benchmarks.report import data_folder
from benchmarks.scoring import names_it
from langchain_pos.embedded import embedded_model_path
from langchain_pos.reasoning.settings import ReasoningSettings

_GIB = 1 << 30
_DRAFTS = (
    "Think step by step, but only keep a minimum draft for each thinking step, with 5 words at "
    "most. Then give the answer."
)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__, model="the shipped model")
    parser.set_defaults(runs=1)
    parser.add_argument("--tasks", nargs="*", default=["retrieval_10", "retrieval_30"])
    parser.add_argument("--questions", type=int, default=50, help="of each task (%(default)s)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", help="of ours: int8; none if omitted")
    parser.add_argument("--join", choices=["reprefill", "reuse"], default="reprefill")
    parser.add_argument("--chain-of-draft", action="store_true", help="two ways more")
    parser.add_argument("--data", type=Path, help="folder with the paper's tasks")
    args = parse(parser, argv, tiny=False)
    if args.quick:
        args.questions, args.tasks = 1, args.tasks[:1]

    shipped = args.model == "the shipped model"
    name = str(embedded_model_path()) if shipped else args.model
    model = Answering(
        name,
        args.device,
        args.dtype,
        ReasoningSettings(join=args.join, outline="paper"),
        args.quantization,
    )
    model.warm_up()
    ways: dict[str, Way] = {
        "sequential": model.sequential,
        "parallel": model.parallel,
        "Skeleton-of-Thought": model.skeleton_of_thought,
    }
    if args.chain_of_draft:
        ways["Chain-of-Draft"] = lambda text: model.sequential(f"{text}\n\n{_DRAFTS}")
        ways["Chain-of-Draft, parallel"] = lambda text: model.parallel(f"{text}\n\n{_DRAFTS}")
    rows, details = [], []
    for task in args.tasks:
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for question in _questions(task, args.data)[: args.questions]:
            for way, ask in ways.items():
                run = ask(question["text"])
                result = model.result
                gold = question.get("gold_keys")
                found[way].append(
                    {
                        "task": Path(task).stem,
                        "id": question.get("id"),
                        "way": way,
                        "seconds": run.seconds,
                        "tokens": run.tokens,
                        "peak_bytes": model.peak_bytes,
                        "planned": bool(result.blocks),
                        "right": None
                        if gold is None
                        else names_it(question["text"], result.conclusion, gold),
                        "text": result.text,
                    }
                )
            print(question.get("id"), {w: found[w][-1]["seconds"] for w in ways}, file=sys.stderr)
        rows += [
            _row(Path(task).stem, way, some, found["sequential"]) for way, some in found.items()
        ]
        details += [answer for some in found.values() for answer in some]
    if not shipped:
        without_folder(args)
    publish("paper", rows, args, answers=details, engine=model.engine.describe())


def _questions(task: str, data: Path | None) -> list[dict[str, Any]]:
    """The rows of a task, each with its question as `text`."""
    path = Path(task) if task.endswith(".jsonl") else data_folder(data) / f"{task}.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; give a file, or its stem in the data folder")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        text = next((row[key] for key in ("prompt", "task", "question") if row.get(key)), None)
        if text is None:
            raise SystemExit(f"{path}, line {number}: a row needs `prompt`, `task` or `question`")
        rows.append({**row, "text": text})
    return rows


def _row(
    task: str, way: str, some: list[dict[str, Any]], sequential: list[dict[str, Any]]
) -> dict[str, Any]:
    seconds = [answer["seconds"] for answer in some]
    judged = [answer["right"] for answer in some if answer["right"] is not None]
    base = statistics.median(answer["seconds"] for answer in sequential)
    return {
        "task": task,
        "way": way,
        "questions": len(some),
        "quality": f"{sum(judged) / len(judged):.1%}" if judged else "–",
        "planned": "–"
        if way in ("sequential", "Chain-of-Draft")
        else sum(answer["planned"] for answer in some),
        "tokens/s": sum(answer["tokens"] for answer in some) / sum(seconds),
        "seconds": statistics.median(seconds),
        "× sequential": f"{base / statistics.median(seconds):.2f}",
        "peak memory GiB": max(answer["peak_bytes"] for answer in some) / _GIB,
    }


if __name__ == "__main__":
    main()
