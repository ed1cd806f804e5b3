"""Writes docs/benchmarks.md from the JSON files: `python -m benchmarks.render`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, markdown
from langchain_pos.engine.cpu.neighbours import NOTICED

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Every table is written by a command of `benchmarks/`, which also leaves a JSON file with machine,
versions, date, command and every single measurement in `benchmarks/results/`;
`python -m benchmarks.render` makes this page from them. The machines are small and shared: compare
the figures of one table with each other, and do not quote seconds across tables. Ratios are ratios
of medians; above 1 means that ours is faster. `python -m benchmarks.NAME --help` says what a
benchmark does, and `--quick` shows within seconds that it works.

How to read the arms, in every table:

- All decode greedily, in the same dtype, on the same machine, in one process, in turn; every run
  begins with another arm. Peers run on a second model object over the same weights with
  transformers' own `sdpa` attention, so nothing that our engine does to its model reaches them.
- *The paper's algorithm* is `benchmarks/paper_algorithm.py`: the skeleton token by token, titles
  and branches in lock-step, a belt mask rebuilt for each pass, concatenated caches. Tests check
  that it writes exactly what our engine writes.
- *Copied caches* is `generate` on a row for each branch, each with its copy of the prefix's cache.
- "avx2" alone among the flags: `ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2` kept PyTorch from
  what the processor has beyond it, for us and for the peers that run on PyTorch. Such runs are in
  float32, which is then the fastest, or in eight bits.
- Model shapes (`qwen2.5-0.5b`, `-7b`, `-14b`) have the real dimensions and random weights: passes
  cost what they cost with trained ones, and what is written is noise, or recorded text.

For a model and a machine of your own: `langchain-pos bench --model NAME` takes a minute or two.
"""

WHAT = {
    "branches": """## Branches: stage 2 alone

`python -m benchmarks.branches`: N branches of 64 tokens after a prefix; each arm is timed once
the prefix is in its cache. Feeding the openings counts, and so does copying the caches.
Sequential `generate` writes one branch; its tokens per second stand for N, one after another.
`generate_batch` is measured over the time in which all its requests decode. "–": not measured
there.""",
    "ragged": """## Ragged branches

`python -m benchmarks.ragged`: branches as long as those recorded from the paper's runs. *Lock-step*
is our own engine, kept from retiring a branch before the longest has ended; *in groups* has eight
rows: waiting branches take freed rows, against groups that wait for their longest. Only recorded
tokens count. A branch that retires frees its row; how much that gains depends on what a row costs.
On this CPU a pass of ten rows takes hardly longer than a pass of one row (*Roofline*), and the
longest branch decides how many passes there are, so lock-step costs little here.""",
    "replay": """## Whole requests

`python -m benchmarks.replay` answers questions with the texts recorded from the paper's runs,
through prefill, plan, branches, join and conclusion: after each pass the engine samples as always,
and the recorded token takes the place of the one chosen. So drafts are accepted where, and only
where, they guess the recorded text, and the text that comes out is compared with the recorded one.
*generate* writes the recorded sequential answer to the same question, with and without
`prompt_lookup_num_tokens`; *the paper's algorithm* writes the same parallel answer after the same
prompt as ours. No Qwen tokenizer is available offline: text is cut by a rule that gives about
as many tokens as were recorded (*token ratio*; `benchmarks/recorded.py`). The ratio to `generate`
follows the length of the recorded sequential answer (among those about ten students from 3.5 to
6.8), so a kind's ratio is that of sums. Where little can be guessed, the only advantage over the
paper's algorithm is a cheaper pass: planning's branches and conclusions are free prose, and take
nearly as many passes as tokens either way.""",
    "embedded": """## The shipped model's own answers

`python -m benchmarks.embedded`: real questions, the model's own tokens. Parallel is ours;
sequential is transformers `generate` on the prompt of `mode="sequential"`. One of twenty questions
is five percent; for how often answers are right, see *Quality*, which asks more.""",
    "real": """## Real models on everyday questions

`python -m benchmarks.real --model MODEL`: questions that people wrote, each with a person's
judgement of whether its answer suits parallel writing, answered in the model's own form and
sequentially, greedily, on one engine. The texts are scored by the same model after the bare
question. Sequential over parallel counts the questions that were written in parallel.""",
    "llama_cpp": """## llama.cpp

`python -m benchmarks.llama_cpp --gguf FILE`: the same file and the same number of threads, ours
and llama.cpp's server (`xllamacpp`) in turn. *One sequence* writes the answer token by token;
*slots* is Skeleton-of-Thought: a skeleton, then a request for each of its entries, all at once,
with the prompt cache that the server has by default. With fixed lengths all write the same number
of tokens, greedily and past any EOS, ours without drafts. In the questions below them each writes
its own answer, whose length is shown; llama.cpp's skeletons and points are asked for in
Skeleton-of-Thought's words. llama.cpp computes with the file's weights as they are; ours unpacks
them, and packs them again in eight bits unless a dtype was given. The wheels of `xllamacpp` for
Linux are built without AVX-512 and AMX; a `llama-server` built for the processor is measured with
`--server URL`.""",
    "roofline": """## Roofline

`python -m benchmarks.roofline`: one decoding step of our engine, over the time that this
machine's memory takes to deliver all weights once. The bandwidth is measured in the same run on a
buffer as large as the weights: a sum (its bytes), and a copy (twice its bytes); the faster one
counts.""",
    "memory": """## Memory

`python -m benchmarks.memory`: keys and values at the peak. *Held*: slots in use; *allocated*: with
the room that the cache keeps for growing.""",
    "paper": """## The paper's table

`python -m benchmarks.paper` fills the columns of the paper's Table 1 for any model and any task
file: sequential is `generate`, parallel is ours, Skeleton-of-Thought is our plan, then `generate`
on rows over copied caches, then a conclusion. With `--chain-of-draft` the model is asked for drafts
of a few words, sequentially and in parallel. Peak memory is what CUDA had allocated at most; on a
CPU, the bytes of weights, keys and values.""",
    "quality": """## Quality

`python -m benchmarks.quality` asks a model, the shipped one unless another is named, the paper's
retrieval questions (10 or 30 students, one of whom has a GPA in a range), greedily, in parallel and
sequentially in turn. A final answer can be right by luck and hide a leak between branches, so every
branch is judged as well: *values right* is the share of students whose own GPA was copied into
their branch, *verdicts right* the share judged right. *Steps complete*: all students, in order,
none invented. *Sequential, asked*: the question with the sentence that asks for a list, written one
entry after the other. Medians over the questions for passes, tokens and seconds; seconds include
prefill.""",
    "drafts": """## Drafts

`python -m benchmarks.drafts` answers the same questions with and without drafts, in turn, and
checks that the texts are equal.""",
    "joins": """## Joins

`python -m benchmarks.joins` answers the same questions with `join="reprefill"` and `join="reuse"`,
and counts how often the answers differ.""",
    "serve": """## Many clients at once

`python -m benchmarks.serve`: `langchain-pos serve` in a process of its own, asked over loopback by
another. The same mixed requests (ten and thirty students in parallel, sequential ones, own steps,
short ones; half of them streams) one at a time and at once, in alternating blocks, greedily. *Equal
to alone*: every text of every branch, and how it ended. *First token*: the first text of any stage
in a stream. *MiB*: the server's resident set, at the 50th and the last request at once.
Client and server share the machine's cores. Sharing a pass saves the read of the weights and the
pass's fixed cost; each request still has its own prompt to feed and its own keys and values to
read, and a parallel answer fills a pass's free rows even when it runs alone. In a profile at 16 at
once, in float32, half of the time was attention over each request's own keys and values, a fifth
the matrix products, whose rows are no longer free by then. The more guesses a request may fill its
passes with when it is alone, the less company can add.""",
    "gpu_first_run": """## The first minutes on a GPU

`python -m benchmarks.gpu_first_run`: the engine's tests and the benchmarks above on several shapes,
in one command of eight minutes, each step with a limit. Their own tables are in its JSON file.""",
    "soak": """## Mixed load for a long time

`python -m benchmarks.soak --minutes 60`: phases of steady load, bursts beyond what the queue holds,
and pauses; with clients that vanish, deadlines and invalid bodies. It fails if a request has an
outcome that its kind may not have, if anything is still held during a pause, or if memory grows
(the last quarter's median against the second's).""",
    "grammar": """## Grammar

`python -m benchmarks.grammar`: compiling the skeleton's grammar for 150,000 random tokens, and one
mask at each place of a skeleton.""",
}


def main() -> None:
    """Render all results that exist; those of a GPU come last."""
    parts = [HEAD]
    for device, suffix in (("On a CPU", ""), ("On a GPU", ".gpu")):
        found = [
            "\n\n".join([f"#{text}", *(section(json.loads(path.read_text())) for path in paths)])
            + "\n"
            for name, text in WHAT.items()
            if (paths := results(name, suffix))
        ]
        if found:
            parts += [f"## {device}\n", *found]
        elif suffix:
            parts.append(f"## {device}\n\nNo figures yet: nothing here has been run on CUDA.\n")
    PAGE.write_text("\n".join(parts))
    print(f"written to {PAGE}")


def results(name: str, suffix: str) -> list[Path]:
    """A benchmark's files: its own, and those of runs with `--name NAME_something`."""
    return sorted(
        path
        for path in RESULTS.glob(f"{name}*{suffix}.json")
        if path.name.removesuffix(".json").endswith(".gpu") == bool(suffix)
        and path.name.removeprefix(name)[0] in "._"
    )


def section(result: dict[str, Any]) -> str:
    """Table, and below it the machine and the command."""
    machine = result["machine"]
    on_gpu = result.get("device") == "cuda"
    where = ", ".join(
        [
            machine["gpu"] if on_gpu else machine["processor"],
            *(
                []
                if on_gpu
                else [" ".join([f"{machine['cores']} cores", *machine.get("flags", [])])]
            ),
            f"torch {machine['torch']}",
            f"transformers {machine['transformers']}",
            machine["date"],
        ]
    )
    others = result.get("others_cores", 0)
    where += f", other processes used {others} cores meanwhile" if others >= NOTICED else ""
    dtype = result.get("dtype", "auto")
    engine = result.get("engine", {})
    named = "device" in result or "device" in engine  # the older ones name it in the text
    shape = [result["model"]] if named else []
    shape += [engine.get("dtype")] if dtype == "auto" else [dtype]
    shape += ["weights of eight bits"] if "packed in int8" in engine.get("weights", "") else []
    chosen = re.findall(r"--(?:outline|visibility) \w+|--suiting", str(result.get("command", "")))
    shape += [f"`{' '.join(chosen)}`"] if chosen else []
    note = f". Note: {result['note']}" if "note" in result else ""
    about = ", ".join(filter(None, [*shape, where]))
    return f"{markdown(result['rows'])}\n\n<small>{about}{note}</small>"


if __name__ == "__main__":
    main()
