"""What the skeleton's grammar costs: `python -m benchmarks.grammar`.

Masks are made on the CPU while the model waits, so a grammar that needs a scan of the vocabulary
would cost more than a forward pass. This shows compiling and one mask at each place of a skeleton.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import xgrammar

from benchmarks.report import report
from langchain_pos.reasoning.skeleton_grammar import skeleton_grammar

PLACES = ("", "Let us", " see\n", "####", "Ann", ":", "......\n####", "经济", " ")


def large_vocabulary() -> list[bytes]:
    """About 150,000 random tokens of Latin letters, marks and Chinese characters."""
    chance = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz ETAOIN,.:#%\n层面经济技术路线环境政策"
    words = {"".join(chance.choices(letters, k=chance.randint(2, 7))) for _ in range(190_000)}
    return [bytes([byte]) for byte in range(256)] + [w.encode() for w in sorted(words)][:150_000]


def main() -> None:
    """Measure and report."""
    info = xgrammar.TokenizerInfo(large_vocabulary())
    report("grammar", [measure(info, branches) for branches in (8, 64, 1000)])


def measure(info: xgrammar.TokenizerInfo, branches: int) -> dict[str, Any]:
    """One line of the table."""
    compiler = xgrammar.GrammarCompiler(info)
    grammar = skeleton_grammar(max_branches=branches)
    compiling = seconds(lambda: compiler.compile_grammar(grammar))
    compiled = compiler.compile_grammar(grammar)
    state = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    bitmask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    masks = []
    for piece in PLACES:
        if piece:
            state.accept_string(piece)
        masks += [seconds(lambda: state.fill_next_token_bitmask(bitmask)) for _ in range(20)]
    return {
        "max_branches": branches,
        "vocabulary": info.vocab_size,
        "compile ms": compiling * 1e3,
        "mask µs median": statistics.median(masks) * 1e6,
        "mask µs max": max(masks) * 1e6,
    }


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
