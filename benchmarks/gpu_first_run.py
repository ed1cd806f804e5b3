"""All that is worth knowing of a GPU, in one command: `python -m benchmarks.gpu_first_run`.

For the first minutes on a machine that is lent: the engine's tests, then the speed benchmarks from
the smallest model shape to the largest, each in a process of its own with a limit. At most
`--minutes` in all: what no longer fits is left out and named. The one JSON file is written after
every step, so that whatever ends the machine's loan costs the current step only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import options, parse, publish

ROOT = Path(__file__).parent.parent
_LEAST = 5.0
"""Seconds below which a step is not worth its start."""


@dataclass(frozen=True)
class Step:
    """A command and the most seconds that it may take.

    Attributes:
        name: in the report.
        module: of `python -m`.
        words: its options.
        limit: seconds.
    """

    name: str
    module: str
    words: tuple[str, ...]
    limit: float


def steps(device: str, quick: bool) -> list[Step]:
    """What is run, most telling first."""
    few = ("--branches", "10", "30", "--prefixes", "512", "--tokens", "32", "--runs", "3")
    told = ("--device", device)
    made = [
        Step("the roofline, 0.5B", "benchmarks.roofline", ("--model", "qwen2.5-0.5b"), 60),
        Step("branches, 0.5B", "benchmarks.branches", ("--model", "qwen2.5-0.5b", *few), 80),
        Step("the roofline, 7B", "benchmarks.roofline", ("--model", "qwen2.5-7b"), 80),
        Step("branches, 7B", "benchmarks.branches", ("--model", "qwen2.5-7b", *few), 120),
        Step("the shipped model", "benchmarks.embedded", ("--questions", "4", "--runs", "2"), 60),
        Step(
            "branches, a hybrid model", "benchmarks.branches", ("--model", "qwen3.5-0.8b", *few), 80
        ),
        Step("branches, 14B", "benchmarks.branches", ("--model", "qwen2.5-14b", *few), 120),
    ]
    if quick:
        return [Step(s.name, s.module, ("--quick", *told), s.limit) for s in made[:2]]
    tests = (
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        "tests/engine/forward",
        "tests/engine/test_isolation.py",
    )
    return [
        Step("tests", "pytest", tests, 100),
        *(Step(s.name, s.module, (*s.words, *told), s.limit) for s in made),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps and report."""
    parser = options(__doc__, model="several shapes")
    parser.add_argument("--minutes", type=float, default=8.0, help="in all (%(default)s)")
    args = parse(parser, argv, tiny=False)
    if not args.quick and torch.device(args.device).type != "cuda":
        raise SystemExit(
            f"--device {args.device}: this is for a CUDA device; on a CPU run the benchmarks "
            "themselves, or --quick to see that this one works"
        )
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for step in steps(args.device, args.quick):
        left = args.minutes * 60 - (time.monotonic() - began)
        rows.append(
            run(step, min(step.limit, left), found) if left > _LEAST else _row(step, "no time")
        )
        print(rows[-1], file=sys.stderr, flush=True)
        publish("gpu_first_run", rows, args, results=found)


def run(step: Step, limit: float, found: dict[str, Any]) -> dict[str, Any]:
    """Run a step; its JSON files, or what it said where it failed, go into `found`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        words = [*step.words, *(["--out", out] if step.module.startswith("benchmarks.") else [])]
        command = [sys.executable, "-m", step.module, *words]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
            )
            outcome = "done" if done.returncode == 0 else f"exit code {done.returncode}"
            said = done.stdout + done.stderr
        except subprocess.TimeoutExpired as stopped:
            outcome = f"stopped after {limit:.0f} s"
            said = "".join(
                part.decode(errors="replace") if isinstance(part, bytes) else part or ""
                for part in (stopped.stdout, stopped.stderr)
            )
        results = [json.loads(path.read_text()) for path in sorted(Path(out).glob("*.json"))]
    found[step.name] = {"results": results}
    if outcome != "done" or not results:
        found[step.name]["said"] = said[-3000:]
    return _row(step, outcome, time.monotonic() - started)


def _row(step: Step, outcome: str, seconds: float = 0.0) -> dict[str, Any]:
    return {
        "step": step.name,
        "command": " ".join(["python -m", step.module, *step.words]),
        "outcome": outcome,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
