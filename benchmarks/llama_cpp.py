"""Ours against llama.cpp on the same GGUF file: `python -m benchmarks.llama_cpp --gguf FILE`.

Needs `pip install xllamacpp` (the extra `langchain-pos[bench]`), or `--server` with the address of
a llama-server that runs already. `--model` gives ours a folder with the same weights, unpacked.

- one sequence: llama.cpp writes the whole answer, one token after another
- slots: llama.cpp in the manner of Skeleton-of-Thought: the skeleton first, then a request for each
  entry, all at once, in as many of its slots; each has the prompt cache that it has by default
- ours: the same, in one sequence

Fixed lengths: all ways write a skeleton of N entries of `--head` tokens, and after each entry of it
`--body` tokens (one sequence: as many in all), greedily and past any EOS. So every way writes the
same number of tokens, on the prompt's own token ids. Ours writes without drafts there, because text
past its end repeats itself, and repetition is easily guessed.

Own answers: everyday questions whose answers are lists. llama.cpp in one sequence answers the bare
question; with slots it is asked in Skeleton-of-Thought's words for a skeleton of short points, then
for each of them; ours is the native form, drafts included. The texts differ in length, so tokens
are shown beside seconds.

All use the same number of threads and alternate. No prompt is asked twice of anybody: each begins
with a number of its own, so a prompt cache helps within an answer only, which is what it is for.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.llama_server import LlamaServer
from benchmarks.measuring import (
    Arm,
    Clock,
    Run,
    alternate,
    median_seconds,
    options,
    parse,
    publish,
    summary,
)
from langchain_pos import ParallelReasoningLLM
from langchain_pos.engine import Engine
from langchain_pos.reasoning.chat_template import encode_prompt

SAME = "the GGUF file"
ONE, SLOTS, OURS = "llama.cpp, one sequence", "llama.cpp, slots", "ours"
QUESTIONS = (
    "What are the advantages of working from home?",
    "How can I improve my sleep?",
    "What should I consider before I adopt a dog?",
)
SKELETON = (
    "You're an organizer responsible for only giving the skeleton (not the full content) for "
    "answering the question. Provide the skeleton in a list of points (numbered 1., 2., 3., etc.) "
    "to answer the question. Instead of writing a full sentence, each skeleton point should be "
    "very short with only 3~5 words. Generally, the skeleton should have 3~10 points.\n\n"
    "Question:\n{question}\nSkeleton:"
)
POINT = (
    "You're responsible for continuing the writing of one and only one point in the overall answer "
    "to the following question.\n\n{question}\n\nThe skeleton of the answer is\n\n{skeleton}\n\n"
    "Continue and only continue the writing of point {number}. Write it in 1~2 sentences and do "
    "not continue with other points!"
)
"""Skeleton-of-Thought's prompts (Ning et al., arXiv 2307.15337), without its examples."""
_POINT = re.compile(r"^\s*(\d{1,2})\.\s*(.+?)\s*$", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__, model=SAME)
    parser.add_argument("--gguf", required=True, help="the file that all of them answer with")
    parser.add_argument("--server", help="address of a llama-server that serves the file already")
    parser.add_argument("--dtype", default="auto", help="of ours (%(default)s)")
    parser.add_argument("--quantization", help="of ours: int8; none if omitted")
    parser.add_argument("--entries", type=int, nargs="*", default=[5, 10])
    parser.add_argument("--head", type=int, default=8, help="tokens of a head (%(default)s)")
    parser.add_argument("--body", type=int, default=32, help="tokens of a body (%(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=320, help="of an own answer; 0: none (%(default)s)"
    )
    args = parse(parser, argv, tiny=False)
    if args.quick:
        args.entries, args.body, args.tokens = [3], 4, 24
    given = args.gguf if args.model == SAME else args.model
    engine = Engine.load(
        given, device=args.device, dtype=args.dtype, quantization=args.quantization
    )
    threads = torch.get_num_threads()
    with LlamaServer(
        args.server, file=args.gguf, slots=max([10, *args.entries]), threads=threads
    ) as server:
        fixed, details = _fixed_lengths(engine, server, args)
        own, answers = _own_answers(engine, server, args) if args.tokens else ([], [])
        system = server.system
    _name_no_folders(args)
    publish(
        "llama_cpp",
        [*fixed, *own],
        args,
        engine={key: said for key, said in engine.describe().items() if key != "gguf"},
        llama_cpp=system,
        threads=threads,
        cells=details,
        answers=answers,
    )


def _name_no_folders(args: Any) -> None:
    """Files by their last names: a result names no folder of its machine."""
    for option in ("gguf", "model", "server"):
        path = getattr(args, option)
        if path:
            short = Path(path).name if option != "server" else "URL"
            args.words = [word.replace(path, short) for word in args.words]
    args.model = Path(args.gguf).name


# -------------------------------------------------------------------- fixed lengths


class _Fixed:
    """An answer of N entries with fixed lengths, by each way.

    Args:
        engine: ours; its EOS ends nothing meanwhile.
        server: the peer.
        entries: how many.
        head: tokens of each in the skeleton.
        body: tokens of each body.
    """

    def __init__(
        self, engine: Engine, server: LlamaServer, entries: int, head: int, body: int
    ) -> None:
        self._engine, self._server = engine, server
        self._entries, self._head, self._body = entries, head, body
        self.tokens = entries * (head + body)

    def arms(self) -> dict[str, Arm]:
        """The ways; a run of each has a prompt that nobody has seen."""
        ways = {OURS: self._ours, SLOTS: self._slots, ONE: self._one}
        return {name: partial(self._run, way) for name, way in ways.items()}

    def _run(self, way: Any) -> Run:
        prompt = _prompt(self._engine, QUESTIONS[0])
        clock = Clock("cpu")
        written = way(prompt)
        return Run(clock(), written)

    def _openings(self, skeleton: Sequence[int]) -> list[list[int]]:
        head = self._head
        return [list(skeleton[n * head : (n + 1) * head]) for n in range(self._entries)]

    def _one(self, prompt: list[int]) -> int:
        return self._server.complete(prompt, self.tokens).tokens

    def _slots(self, prompt: list[int]) -> int:
        skeleton = self._server.complete(prompt, self._entries * self._head)
        # Which tokens it wrote, its server does not say: others of the same number do as well.
        openings = self._openings(_token_ids(self._engine, skeleton.text, skeleton.tokens))
        bodies = self._server.at_once([([*prompt, *opening], self._body) for opening in openings])
        return skeleton.tokens + sum(body.tokens for body in bodies)

    def _ours(self, prompt: list[int]) -> int:
        engine = self._engine
        ends, engine.eos_token_ids = engine.eos_token_ids, frozenset()
        try:
            skeleton = engine.generate(
                prompt, max_new_tokens=self._entries * self._head, drafts=False
            )
            bodies = engine.decode_branches(
                prompt,
                self._openings(skeleton.token_ids),
                max_new_tokens=self._body,
                drafts=False,
            )
        finally:
            engine.eos_token_ids = ends
        return sum(len(each.token_ids) for each in [skeleton, *bodies])


def _fixed_lengths(
    engine: Engine, server: LlamaServer, args: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, details = [], []
    for entries in args.entries:
        ways = _Fixed(engine, server, entries, args.head, args.body)
        for arm in _Fixed(engine, server, entries, args.head, 2).arms().values():
            arm()  # warm-up
        found = alternate(ways.arms(), args.runs)
        short = [run.tokens for runs in found.values() for run in runs if run.tokens != ways.tokens]
        if short:
            raise RuntimeError(f"{ways.tokens} tokens are to be written, and {short} were")
        rows.append(_row(f"{entries} entries, fixed lengths", found))
        details.append({"entries": entries, "arms": summary(found)})
        print(rows[-1], flush=True)
    return rows, details


# ---------------------------------------------------------------------- own answers


def _own_answers(
    engine: Engine, server: LlamaServer, args: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    llm = ParallelReasoningLLM.from_engine(
        engine,
        outline="native",
        max_branch_tokens=args.tokens,
        max_sequential_tokens=args.tokens,
        max_conclusion_tokens=args.tokens,
    )
    rows, details = [], []
    for question in QUESTIONS[: 1 if args.quick else None]:
        texts: dict[str, str] = {}
        arms: dict[str, Arm] = {
            OURS: partial(_native, llm, question, texts),
            SLOTS: partial(_skeleton_of_thought, server, question, args.tokens, texts),
            ONE: partial(_answer, server, question, args.tokens, texts),
        }
        found = alternate(arms, max(args.runs // 2, 1))
        rows.append(_row(question, found))
        details.append({"question": question, "arms": summary(found), "texts": texts})
        print(rows[-1], flush=True)
    return rows, details


def _native(llm: ParallelReasoningLLM, question: str, texts: dict[str, str]) -> Run:
    asked = _numbered(question)
    clock = Clock("cpu")
    result = llm.invoke(asked)
    seconds = clock()
    texts[OURS] = result.text
    return Run(
        seconds,
        result.usage.output_tokens,
        result.forward_passes.total,
        parts={"entries": len(result.branches)},
    )


def _answer(server: LlamaServer, question: str, most: int, texts: dict[str, str]) -> Run:
    asked = _numbered(question)
    clock = Clock("cpu")
    reply = server.chat([{"role": "user", "content": asked}], most)
    texts[ONE] = reply.text
    return Run(clock(), reply.tokens)


def _skeleton_of_thought(
    server: LlamaServer, question: str, most: int, texts: dict[str, str]
) -> Run:
    asked = _numbered(question)
    clock = Clock("cpu")
    skeleton = server.chat([{"role": "user", "content": SKELETON.format(question=asked)}], most)
    points = list(dict(_POINT.findall(skeleton.text)).items())[:10]
    outline = "\n".join(f"{number}. {point}" for number, point in points)
    bodies = server.at_once(
        [
            ([{"role": "user", "content": POINT.format(
                question=asked, skeleton=outline, number=number
            )}], most)
            for number, _ in points
        ]
    )  # fmt: skip
    seconds = clock()
    texts[SLOTS] = "\n".join(
        f"{number}. **{point}**: {body.text}"
        for (number, point), body in zip(points, bodies, strict=True)
    )
    tokens = skeleton.tokens + sum(body.tokens for body in bodies)
    return Run(seconds, tokens, parts={"entries": len(points)})


# --------------------------------------------------------------------------- shared


_numbers = count(1)


def _numbered(question: str) -> str:
    """The question with a number before it that it has never had."""
    return f"{next(_numbers)}) {question}"


def _prompt(engine: Engine, question: str) -> list[int]:
    return encode_prompt(engine.tokenizer, [("user", _numbered(question))])


def _token_ids(engine: Engine, text: str, most: int) -> list[int]:
    """A text's tokens, brought to a number."""
    found: list[int] = engine.tokenizer(text, add_special_tokens=False)["input_ids"] or [0]
    return (found * (most // len(found) + 1))[:most]


def _row(what: str, found: dict[str, list[Run]]) -> dict[str, Any]:
    row: dict[str, Any] = {"answer": what, "runs": len(found[OURS])}
    for name in (OURS, SLOTS, ONE):
        runs = found[name]
        row[f"{name}: tokens"] = round(statistics.median(run.tokens for run in runs))
        row[f"{name}: seconds"] = round(median_seconds(runs), 2)
    own = median_seconds(found[OURS])
    row["× slots"] = f"{median_seconds(found[SLOTS]) / own:.2f}"
    row["× one sequence"] = f"{median_seconds(found[ONE]) / own:.2f}"
    return row


if __name__ == "__main__":
    main()
