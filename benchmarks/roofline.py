"""How far a decoding step is from reading the weights once: `python -m benchmarks.roofline`.

A step must read every weight, whatever it computes, so *weight bytes ÷ bandwidth* is the least
time that it can take. The bandwidth is measured in the same run on a buffer as large as the
weights, in two ways, best of several:

    read   the sum of all its elements (float32): its bytes, over the seconds
    copy   to a second buffer: twice its bytes, read and written, over the seconds

The faster of the two counts, so the limit is the strictest one that this machine has shown. On a
CPU, more than these bytes may move in a copy (a cache line is read before it is written), which
only makes the limit look slower.

The step is a whole one of the engine: scheduling, masks, model, sampling, text. Without drafts.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from benchmarks import ours
from benchmarks.measuring import Clock, options, parse, publish, token_ids
from benchmarks.models import endless_engine, random_model, weight_bytes

TRIES = 5
OPENING = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=None)
    parser.add_argument("--prefixes", type=int, nargs="*", default=None, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, default=24, help="steps of each run (%(default)s)")
    args = parse(parser, argv)
    on_gpu = torch.device(args.device).type == "cuda"
    widths = args.rows or ([1, 10, 32] if on_gpu else [1, 10, 30])
    prefixes = args.prefixes or ([2048] if on_gpu else [512, 1500])
    if args.quick:
        widths, prefixes, args.tokens = [3], [32], 4
    model = random_model(args.model, args.device)
    read = weight_bytes(model)
    engine = endless_engine(model)
    rows, details = [], []
    for prefix in prefixes:
        for width in widths:
            openings = [token_ids(OPENING, seed=1 + index) for index in range(width)]
            steps, speeds = [], []
            for turn in range(args.runs + 1):
                speeds.append(bandwidth(read, args.device))
                run = ours.expand(engine, token_ids(prefix), openings, [args.tokens] * width)
                if turn:  # the first one warms up
                    steps.append(run.parts["median_pass"])
            best = {kind: max(found[kind] for found in speeds) for kind in speeds[0]}
            least = read / max(best.values())
            rows.append(
                {
                    "rows": width,
                    "prefix": prefix,
                    "weights GB": read / 1e9,
                    "read GB/s": best["read"] / 1e9,
                    "copy GB/s": best["copy"] / 1e9,
                    "least ms": 1e3 * least,
                    "step ms": 1e3 * statistics.median(steps),
                    "step ÷ least": f"{statistics.median(steps) / least:.2f}",
                }
            )
            details.append(
                {"rows": width, "prefix": prefix, "step seconds": steps, "bytes per second": speeds}
            )
    publish("roofline", rows, args, runs=details, engine=engine.describe())


@torch.inference_mode()
def bandwidth(size: int, device: str) -> dict[str, float]:
    """Bytes per second that memory gives, for a buffer of `size` bytes; see the module."""
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)

    def best(work: object, moved: int) -> float:
        seconds = []
        for _ in range(TRIES):
            clock = Clock(device)
            work()  # type: ignore[operator]
            seconds.append(clock())
        return moved / min(seconds)

    return {
        "read": best(source.sum, source.nbytes),
        "copy": best(lambda: target.copy_(source), 2 * source.nbytes),
    }


if __name__ == "__main__":
    main()
