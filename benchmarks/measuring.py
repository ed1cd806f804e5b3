"""What the speed benchmarks share: options, arms that alternate, a clock that waits for the device.

Only torch, transformers and the standard library, so that a bare GPU machine can run them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, report, short_name, without_folders
from langchain_pos.engine.cpu.neighbours import Neighbours


@dataclass(frozen=True)
class Run:
    """One measured run of one arm.

    Attributes:
        seconds: wall clock, the device's work included.
        tokens: tokens written that somebody wanted.
        passes: forward passes, None where the peer does not tell.
        kv_bytes: keys and values held at most, in bytes; None where the peer does not tell.
        written: the tokens of each sequence; only tests look at them.
        parts: seconds or counts of parts, by name.
        state_bytes: bytes counted for states beside keys and values; None where there are none.
    """

    seconds: float
    tokens: int
    passes: int | None = None
    kv_bytes: int | None = None
    written: tuple[tuple[int, ...], ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    state_bytes: int | None = None

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    def raw(self) -> dict[str, Any]:
        """What the JSON file keeps of it."""
        found = asdict(self)
        del found["written"]
        return {name: value for name, value in found.items() if value not in (None, {})}


Arm = Callable[[], Run]
"""One way of doing the work; called again for every run."""


def alternate(
    arms: Mapping[str, Arm], runs: int, fewer: Mapping[str, int] | None = None
) -> dict[str, list[Run]]:
    """Run every arm `runs` times, in turn, beginning with another one each time.

    So a machine that gets slower or faster meanwhile does so for all of them.

    Args:
        arms: by name.
        runs: of each.
        fewer: runs of those that take long.
    """
    names = list(arms)
    found: dict[str, list[Run]] = {name: [] for name in names}
    for turn in range(runs):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if turn < (fewer or {}).get(name, runs):
                found[name].append(arms[name]())
    return found


def summary(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Medians, minima and all single runs, for the JSON file."""
    return {
        name: {
            "seconds_median": median_seconds(some),
            "seconds_min": min(run.seconds for run in some),
            "runs": [run.raw() for run in some],
        }
        for name, some in runs.items()
    }


def median_seconds(runs: Sequence[Run]) -> float:
    """The median of the wall clock."""
    return statistics.median(run.seconds for run in runs)


def median_speed(runs: Sequence[Run]) -> float:
    """The median of tokens per second."""
    return statistics.median(run.speed for run in runs)


class Clock:
    """Seconds since it was made, once the device has done what it was given."""

    def __init__(self, device: torch.device | str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._wait()
        self._began = time.perf_counter()

    def __call__(self) -> float:
        """Seconds so far."""
        self._wait()
        return time.perf_counter() - self._began

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def token_ids(count: int, seed: int = 0) -> list[int]:
    """Random token ids that every tokenizer here has, none of them special."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(300, 2000, (count,), generator=generator).tolist()


def options(text: str | None, *, model: str = "qwen2.5-0.5b") -> argparse.ArgumentParser:
    """The options that all speed benchmarks have.

    Args:
        text: the module's docstring.
        model: default shape.
    """
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=model, help="shape of the random weights (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs (%(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and few tokens: shows that it works"
    )
    parser.add_argument("--name", help="name of the JSON file, without what tells the device")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, tiny: bool = True
) -> argparse.Namespace:
    """Parse, and let `--quick` choose few runs and, with `tiny`, the tiny model."""
    args = parser.parse_args(argv)
    if args.quick:
        args.runs = min(args.runs, 2)
        hybrid = args.model.startswith("qwen3.5")
        args.model = ("tiny-hybrid" if hybrid else "tiny") if tiny else args.model
    args.words = without_folders(sys.argv[1:] if argv is None else argv)
    args.neighbours = Neighbours(torch.device(args.device).type)
    return args


def without_folder(args: argparse.Namespace) -> str:
    """Name `args.model` by its folder alone, in the command as well, and return that name."""
    name = short_name(args.model)
    args.words = [name if word == args.model else word for word in args.words]
    args.model = name
    return name


def publish(
    name: str, rows: Sequence[dict[str, Any]], args: argparse.Namespace, **details: Any
) -> Path:
    """Print the table and write the JSON file; results of a GPU have a name of their own.

    Args:
        name: the benchmark's module.
        rows: the table.
        args: from `parse`.
        details: what else belongs into the file.
    """
    kind = torch.device(args.device).type
    stem = args.name or name
    if "engine" in details:  # its name may be a folder of this machine
        details["engine"] = {**details["engine"], "model": args.model}
    return report(
        stem if kind == "cpu" else f"{stem}.gpu",
        rows,
        folder=args.out,
        command=" ".join([f"python -m benchmarks.{name}", *args.words]),
        device=kind,
        model=args.model,
        others_cores=round(args.neighbours.cores(), 2),
        **details,
    )
