"""Branches of different lengths, as recorded from the paper's runs: `python -m benchmarks.ragged`.

The lengths of `paper_traces.jsonl`, stage 2 alone. Our engine lets a finished branch leave its
rows, and with `--width` a waiting one takes its place. In lock-step, all go on until the longest
has ended (and in groups of `--width`, a group waits for its longest): our own engine kept from
retiring, and the paper's algorithm, which feeds the titles one token a pass as well. Only the
recorded tokens count as written.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.measuring import (
    Arm,
    alternate,
    median_seconds,
    options,
    parse,
    publish,
    summary,
    token_ids,
)
from benchmarks.models import endless_engine, random_model, twin
from benchmarks.peers import Prefix
from benchmarks.report import data_folder

KINDS = {
    "planning": "industry_tasks",
    "retrieval-10": "logic_gpa_resume_10",
    "retrieval-30": "logic_gpa_resume_30",
}
CHARACTERS = {"planning": 1.5, "retrieval-10": 4.0, "retrieval-30": 4.0}
"""Characters of a prompt to a token, roughly: Chinese, English."""
OPENING_MARKS = 2
"""Tokens of an opening besides its title: `####` and the colon."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--traces", type=int, default=5, help="of each kind (%(default)s)")
    parser.add_argument("--width", type=int, default=8, help="rows for waiting and refilling")
    parser.add_argument("--data", type=Path, help="folder with the paper's recorded runs")
    args = parse(parser, argv)
    if args.quick:
        args.traces = 1

    text = (data_folder(args.data) / "paper_traces.jsonl").read_text(encoding="utf-8")
    traces = [json.loads(line) for line in text.splitlines()]
    model = random_model(args.model, args.device)
    peer_model = twin(model)
    engine = endless_engine(model)
    rows, details = [], []
    for kind in args.kinds:
        found = []
        for trace in sample(traces, KINDS[kind], args.traces):
            size = trace["prompt_chars"] / CHARACTERS[kind] + trace["preamble_tokens"]
            lengths = [max(body, 1) for _, body in trace["branches"]]
            openings = [
                token_ids(title + OPENING_MARKS, seed=1 + index)
                for index, (title, _) in enumerate(trace["branches"])
            ]
            if args.quick:
                size, lengths, openings = 32, [min(n, 6) for n in lengths[:4]], openings[:4]
            prefix = Prefix(peer_model, token_ids(math.ceil(size)))
            arms: dict[str, Arm] = {
                "ours": partial(ours.expand, engine, prefix.token_ids, openings, lengths),
                "lock-step": partial(
                    ours.expand_in_waves,
                    engine,
                    prefix.token_ids,
                    openings,
                    lengths,
                    len(lengths),
                ),
                "paper": partial(prefix.paper_ragged, openings, lengths),
            }
            if len(lengths) > args.width:
                arms["ours, refilled"] = partial(
                    ours.expand,
                    engine,
                    prefix.token_ids,
                    openings,
                    lengths,
                    max_parallel=args.width,
                )
                arms["lock-step, in groups"] = partial(
                    ours.expand_in_waves, engine, prefix.token_ids, openings, lengths, args.width
                )
            if model.device.type == "cpu":
                ours.expand(engine, prefix.token_ids, openings, [2] * len(lengths))  # warm-up
                prefix.paper(openings, 2)
            else:  # passes are recorded when their shape first comes
                alternate(arms, 1)
            runs = alternate(arms, args.runs)
            found.append(runs)
            details.append({"kind": kind, "trace": trace["id"], "arms": summary(runs)})
            print(kind, trace["id"], _seconds(found[-1:]), file=sys.stderr)
        rows.append(_row(kind, found, args.width))
    publish("ragged", rows, args, traces=details, engine=engine.describe())


def sample(traces: Sequence[dict[str, Any]], kind: str, count: int) -> list[dict[str, Any]]:
    """`count` traces of a kind, evenly spread over the file, the same in every run."""
    some = [trace for trace in traces if f"/{kind}/" in trace["id"] and trace["branches"]]
    return [some[index * len(some) // count] for index in range(min(count, len(some)))]


def _seconds(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each arm, medians over the runs summed over the traces."""
    names = {name: None for runs in found for name in runs}
    return {
        name: sum(median_seconds(runs[name]) for runs in found if name in runs) for name in names
    }


def _row(kind: str, found: Sequence[dict[str, Any]], width: int) -> dict[str, Any]:
    seconds = _seconds(found)
    row: dict[str, Any] = {
        "lengths of": kind,
        "traces": len(found),
        "runs": len(found[0]["ours"]) if found else 0,
        "seconds": seconds["ours"],
        "passes": sum(runs["ours"][0].passes or 0 for runs in found),
        "passes in lock-step": sum(runs["lock-step"][0].passes or 0 for runs in found),
        "× lock-step": f"{seconds['lock-step'] / seconds['ours']:.2f}",
        "× the paper's algorithm": f"{seconds['paper'] / seconds['ours']:.2f}",
    }
    head = f"{width} rows: × lock-step in groups"
    row[head] = "–"
    if "ours, refilled" in seconds:
        row[head] = f"{seconds['lock-step, in groups'] / seconds['ours, refilled']:.2f}"
    return row


if __name__ == "__main__":
    main()
