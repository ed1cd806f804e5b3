"""Stage 2 alone, N branches behind a prefix, against its peers: `python -m benchmarks.branches`.

Every arm is measured from where the prefix is in its cache. What it then does to write branches
counts: feeding the openings, copying caches, making masks. The prefix's own prefill does not.

`--points` are measured with all peers, alternating, `--runs` times each; the rest of the grid with
our engine and sequential `generate` alone, once. Sequential `generate` writes one branch, and its
tokens per second stand for N of them: one after another they would take N times as long, and
longer still in one answer, where every branch sees those before it. `generate_batch` prefills
every branch's copy of the prefix, so it is run fewer times (`--continuous-runs`).

A model with layers that keep a state (`--model qwen3.5-0.8b`) has no run of the paper's algorithm,
whose mask cannot part such layers, nor of copied caches, since transformers does not repeat states.
What the engine counts for states stands beside the keys and values.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks import ours
from benchmarks.measuring import (
    Arm,
    Run,
    alternate,
    median_seconds,
    median_speed,
    options,
    parse,
    publish,
    summary,
    token_ids,
)
from benchmarks.models import endless_engine, random_model, twin
from benchmarks.peers import CONTINUOUS, COPIED, PAPER, SEQUENTIAL, Prefix
from langchain_pos.engine import Engine

OURS = "ours"
OPENING = 4
"""Tokens of a branch's opening, such as `####Ann:`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--branches", type=int, nargs="*", default=[1, 2, 5, 10, 20, 30])
    parser.add_argument("--prefixes", type=int, nargs="*", default=[512, 1500, 4000])
    parser.add_argument("--tokens", type=int, default=64, help="of each branch (%(default)s)")
    parser.add_argument(
        "--points",
        nargs="*",
        default=["1x512", "10x512", "30x1500"],
        metavar="NxPREFIX",
        help="where all peers are measured (%(default)s)",
    )
    parser.add_argument("--peers", nargs="*", default=["copied", "paper", "continuous"])
    parser.add_argument("--continuous-runs", type=int, default=1)
    parser.add_argument("--dtype", default="auto", help="of the weights (%(default)s)")
    parser.add_argument("--quantization", help="of ours: int8; none if omitted")
    args = parse(parser, argv)
    if args.quick:
        args.branches, args.prefixes, args.tokens = [1, 3], [32], 4
        args.points = ["3x32"]
    points = [tuple(map(int, point.split("x"))) for point in args.points]
    cells = {(count, prefix) for count in args.branches for prefix in args.prefixes}

    model = random_model(args.model, args.device, dtype=args.dtype)
    peer_model = twin(model)
    engine = endless_engine(model, args.quantization)
    # A GPU's passes are recorded when their shape first comes, so there all of them come once.
    warm = 2 if model.device.type == "cpu" else args.tokens
    rows, details = [], []
    for prefix_length in sorted({prefix for _, prefix in {*cells, *points}}):
        prefix = Prefix(peer_model, token_ids(prefix_length))
        for count, _ in sorted(c for c in {*cells, *points} if c[1] == prefix_length):
            with_peers = (count, prefix_length) in points
            peers = [] if prefix.keeps_states else args.peers
            openings = [token_ids(OPENING, seed=1 + index) for index in range(count)]
            arms_wanted = peers if with_peers else ()
            arms = _arms(engine, prefix, openings, args.tokens, arms_wanted)
            for arm in _arms(engine, prefix, openings, warm, arms_wanted).values():
                arm()  # warm-up
            found = alternate(arms, args.runs if with_peers else 1)
            failure = None
            if with_peers and "continuous" in args.peers:
                runs = [
                    _continuous(prefix, openings, args.tokens) for _ in range(args.continuous_runs)
                ]
                failure = next((run for run in runs if isinstance(run, str)), None)
                done = [run for run in runs if isinstance(run, Run)]
                found |= {CONTINUOUS: done} if done else {}
            rows.append(_row(count, prefix_length, found, failure))
            details.append(
                {
                    "branches": count,
                    "prefix": prefix_length,
                    "tokens": args.tokens,
                    "arms": summary(found),
                    "generate_batch failed": failure,
                }
            )
            print(rows[-1], file=sys.stderr)
    publish("branches", rows, args, cells=details, engine=engine.describe())


def _arms(
    engine: Engine, prefix: Prefix, openings: list[list[int]], tokens: int, peers: Sequence[str]
) -> dict[str, Arm]:
    lengths = [tokens] * len(openings)
    arms: dict[str, Arm] = {
        OURS: partial(ours.expand, engine, prefix.token_ids, openings, lengths),
        SEQUENTIAL: partial(prefix.sequential, openings[:1], tokens),
    }
    if "copied" in peers:
        arms[COPIED] = partial(prefix.copied, openings, tokens)
    if "paper" in peers:
        arms[PAPER] = partial(prefix.paper, openings, tokens)
    return arms


def _continuous(prefix: Prefix, openings: list[list[int]], tokens: int) -> Run | str:
    """A run, or why there is none: it depends on kernels that not every machine has."""
    try:
        return prefix.continuous(openings, tokens)
    except Exception as error:  # noqa: BLE001  a peer's failure is a finding
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _row(
    count: int, prefix: int, found: dict[str, list[Run]], failure: str | None
) -> dict[str, Any]:
    own = found[OURS]
    row: dict[str, Any] = {
        "branches": count,
        "prefix": prefix,
        "runs": len(own),
        "tokens/s": median_speed(own),
        "passes": own[0].passes,
        "ms a pass": 1e3 * median_seconds(own) / (own[0].passes or 1),
    }
    if own[0].state_bytes:
        row |= {"KV MB": (own[0].kv_bytes or 0) / 1e6, "states MB": own[0].state_bytes / 1e6}
    for peer, head in (
        (SEQUENTIAL, "× sequential generate"),
        (COPIED, "× copied caches"),
        (PAPER, "× the paper's algorithm"),
        (CONTINUOUS, "× generate_batch"),
    ):
        ratio = median_speed(own) / median_speed(found[peer]) if peer in found else None
        row[head] = "–" if ratio is None else f"{ratio:.2f}"
    if failure is not None:
        row["× generate_batch"] = "does not run here"
    return row


if __name__ == "__main__":
    main()
