"""Peak bytes of keys and values, by peer: `python -m benchmarks.memory`.

N branches behind one prefix. *Held* by our engine is what its slots in use take at the peak;
*allocated* what it has taken from the allocator for them, which doubles when it runs out. The
others concatenate; what `torch.cat` needs while it copies is not counted for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import ours
from benchmarks.measuring import options, parse, publish, token_ids
from benchmarks.models import endless_engine, random_model, twin
from benchmarks.paper_algorithm import PaperAlgorithm, kv_bytes
from benchmarks.peers import Prefix

OPENING = 4
_MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--points", nargs="*", default=["10x512", "30x1500"], metavar="NxPREFIX")
    parser.add_argument("--tokens", type=int, default=64, help="of each branch (%(default)s)")
    args = parse(parser, argv)
    if args.quick:
        args.points, args.tokens = ["3x32"], 4
    model = random_model(args.model, args.device)
    peer_model = twin(model)
    engine = endless_engine(model)
    rows = []
    for point in args.points:  # what is allocated stays so: the smallest first
        count, length = map(int, point.split("x"))
        prefix_ids = token_ids(length)
        openings = [token_ids(OPENING, seed=1 + index) for index in range(count)]
        own = ours.expand(engine, prefix_ids, openings, [args.tokens] * count)
        prefix = Prefix(peer_model, prefix_ids)
        copied = prefix.copied(openings, args.tokens).kv_bytes or 0
        paper = prefix.paper(openings, args.tokens).kv_bytes or 0
        one = one_sequence(peer_model, length + count * (OPENING + args.tokens))
        held = own.kv_bytes or 0
        rows.append(
            {
                "branches": count,
                "prefix": length,
                "tokens each": args.tokens,
                "ours, held MiB": held / _MIB,
                "ours, allocated MiB": ours.cache_bytes(engine) / _MIB,
                "one sequence MiB": one / _MIB,
                "paper's algorithm MiB": paper / _MIB,
                "copied caches MiB": copied / _MIB,
                "held ÷ one sequence": f"{held / one:.3f}",
                "copied ÷ held": f"{copied / held:.1f}",
            }
        )
    publish("memory", rows, args)


def one_sequence(model: Any, tokens: int) -> int:
    """Bytes of transformers' cache for one sequence of so many tokens, fed in chunks."""
    algorithm = PaperAlgorithm(model)
    ids = token_ids(tokens)
    for begin in range(0, tokens, 512):
        algorithm.prefill(ids[begin : begin + 512])
    return kv_bytes(algorithm.cache)


if __name__ == "__main__":
    main()
