"""Real instruct models on everyday questions, in their own form: `python -m benchmarks.real`.

Questions that people wrote (`everyday.jsonl`), each with a person's judgement whether its answer
suits parallel writing. Every question is answered in native form and sequentially, on the same
engine, greedily; then the texts are scored by the same model after the bare question. Reported:

- suits / does not: share of the questions written in parallel, by that judgement
- a list: the same of the questions whose sequential answer has a list in it, where a model that
  refuses or answers in a sentence has none
- equal: declined answers that are the sequential one, of all declined
- odd heads: titles that repeat one another, or are empty of content
- log-prob: mean log-probability of the parallel text's tokens minus that of the sequential text's
- twice: sentences that stand in two branches, of all sentences in branches
- twice, sequential: the same of the entries of lists in their sequential answers
- passes, seconds, tokens: sequential over parallel, of the questions written in parallel; a
  sequential answer may have `--sequential-tokens`, so that a budget that leaves each branch whole
  does not cut it
- passes and seconds, no drafts: the same with a sequential answer that guesses nothing ahead, a
  token in a pass, as `generate` writes
- tokens a pass, tokens/s: parallel over sequential, since texts differ in length
- declined, passes: what trying has cost at most: passes over sequential's
"""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import options, parse, publish, without_folder
from benchmarks.report import data_folder
from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.engine import Engine
from langchain_pos.engine.forest.segments import Ledger
from langchain_pos.reasoning.chat_template import encode_prompt
from langchain_pos.reasoning.markdown_list import first_head
from langchain_pos.reasoning.sentences import sentences

_ENTRY = re.compile(r"^(?:[0-9]{1,2}[.)] |[-*•] |#{2,4} |\*\*)", re.MULTILINE)
_ODD = re.compile(r"(?:title|step|point|item|conclusion)?\s*[\d.…:]*", re.IGNORECASE)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = options(__doc__, model="a folder, a .gguf file or a hub name")
    parser.add_argument("--questions", type=int, default=40, help="by lot (%(default)s)")
    parser.add_argument("--tokens", type=int, default=400, help="of a branch (%(default)s)")
    parser.add_argument(
        "--sequential-tokens", type=int, default=1200, help="of a sequential answer (%(default)s)"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", help="of ours: int8; none if omitted")
    parser.add_argument("--outline", default="native", choices=["native", "ask", "paper"])
    parser.add_argument("--suiting", action="store_true", help="only questions whose answers suit")
    parser.add_argument("--visibility", default="auto", choices=["auto", "isolated", "first"])
    parser.add_argument("--data", type=Path, help="folder with everyday.jsonl")
    args = parse(parser, argv, tiny=False)
    lines = (data_folder(args.data) / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{**json.loads(line), "line": number} for number, line in enumerate(lines, 1)]
    asked = random.Random(1).sample(rows, len(rows))
    if args.suiting:
        asked = [row for row in asked if row["parallel"]]
    questions = asked[: 2 if args.quick else args.questions]
    if args.quick:
        args.sequential_tokens = args.tokens
    llm = ParallelReasoningLLM(
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        quantization=args.quantization,
        outline=args.outline,
        visibility=args.visibility,
        max_sequential_tokens=args.sequential_tokens,
        max_branch_tokens=args.tokens,
        max_conclusion_tokens=args.tokens,
    )
    llm.invoke("Name two colours.")  # what is set up once is set up now
    answers = []
    for number, row in enumerate(questions, 1):
        answers.append(_answer(llm, row))
        last = answers[-1]
        print(f"{number}/{len(questions)} {last['mode']} {row['prompt'][:60]!r}", flush=True)
    name = without_folder(args)
    usual = {"outline": "native", "visibility": "auto", "dtype": "auto"}
    chosen = [value for key, value in vars(args).items() if usual.get(key, value) != value]
    chosen += ["suiting"] * args.suiting
    args.name = args.name or "_".join([f"real_{name}", *chosen])
    publish("real", [_row(name, answers)], args, answers=answers, engine=llm.engine.describe())


def _answer(llm: ParallelReasoningLLM, row: dict[str, Any]) -> dict[str, Any]:
    """One question in both ways, scored."""
    native = llm.invoke(row["prompt"])
    plain = llm.invoke(row["prompt"], mode="sequential")
    prompt = encode_prompt(llm.engine.tokenizer, [("user", row["prompt"])])
    parallel = native.mode == "parallel"
    plainer = llm.invoke(row["prompt"], mode="sequential", drafts=False) if parallel else plain
    every, twice = _twice([branch.text for branch in native.branches])
    return {
        "line": row["line"],  # of the file: the questions themselves are not ours to publish
        "suits": bool(row["parallel"]),
        "mode": native.mode,
        "reason": native.fallback_reason,
        "pressure": native.plan.pressure if native.plan else None,
        "titles": [branch.title for branch in native.branches],
        "text": native.text,
        "sequential": plain.conclusion,
        "equal": native.text == plain.conclusion,
        "listed": first_head(plain.conclusion) is not None,
        "odd": _odd([branch.title for branch in native.branches]),
        "log_prob": mean_log_prob(llm.engine, prompt, native.text) if parallel else None,
        "sequential_log_prob": mean_log_prob(llm.engine, prompt, plain.conclusion),
        "sentences": every,
        "twice": twice,
        "sequential_twice": _twice(_ENTRY.split(plain.conclusion)[1:]) if parallel else None,
        "passes": [native.forward_passes.total, plain.forward_passes.total],
        "passes_no_drafts": [native.forward_passes.total, plainer.forward_passes.total],
        "tokens": [_tokens(llm, native), _tokens(llm, plain)],
        "seconds": [native.timings.total, plain.timings.total],
        "seconds_no_drafts": [native.timings.total, plainer.timings.total],
    }


def _tokens(llm: ParallelReasoningLLM, result: ReasoningResult) -> int:
    return len(llm.engine.tokenizer(result.text)["input_ids"])


def _twice(texts: Sequence[str]) -> tuple[int, int]:
    """Sentences in all texts, and how many of them stand in an earlier one, too."""
    every = [sentence for text in texts for sentence in set(sentences(text))]
    return len(every), len(every) - len(set(every))


def _odd(titles: Sequence[str]) -> int:
    words = [re.sub(r"\W+", " ", title).strip().casefold() for title in titles]
    repeats = len(words) - len(set(words))
    return repeats + sum(bool(_ODD.fullmatch(title)) for title in titles)


@torch.inference_mode()
def mean_log_prob(engine: Engine, prompt: Sequence[int], text: str) -> float:
    """Mean log-probability, in nats a token, of a text after a prompt, under the engine's model."""
    written = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not written:
        return 0.0
    forward, ids = engine.forward, [*prompt, *written]
    root = forward.forest.root(Ledger())
    try:
        forward.run([(root, ids[: len(prompt) - 1])], [])
        logits = forward.run([(root, ids[len(prompt) - 1 : -1])], [0], [len(written) - 1])
        chosen = torch.tensor(written, device=logits.device)[:, None]
        return float(logits.float().log_softmax(-1).gather(1, chosen).mean())
    finally:
        forward.forest.release(root)


def _row(name: str, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    parallel = [a for a in answers if a["mode"] == "parallel"]
    declined = [a for a in answers if a["mode"] != "parallel"]
    suits, others = ([a for a in answers if a["suits"] is kind] for kind in (True, False))
    heads = sum(len(a["titles"]) for a in parallel)
    gaps = [a["log_prob"] - a["sequential_log_prob"] for a in parallel]
    sentences = sum(a["sentences"] for a in parallel)
    return {
        "model": name,
        "questions": len(answers),
        "suits, in parallel": _share([a["mode"] == "parallel" for a in suits]),
        "a list, in parallel": _share([a["mode"] == "parallel" for a in answers if a["listed"]]),
        "does not, left alone": _share([a["mode"] != "parallel" for a in others]),
        "declined, equal": _share([a["equal"] for a in declined]),
        "odd heads": f"{sum(a['odd'] for a in parallel)}/{heads}",
        "log-prob": round(statistics.mean(gaps), 3) if gaps else None,
        "twice": f"{sum(a['twice'] for a in parallel)}/{sentences}",
        "twice, sequential": "{1}/{0}".format(
            *(sum(a["sequential_twice"][place] for a in parallel) for place in (0, 1))
        ),
        "passes": _ratio(parallel, "passes"),
        "seconds": _ratio(parallel, "seconds"),
        "passes, no drafts": _ratio(parallel, "passes_no_drafts"),
        "seconds, no drafts": _ratio(parallel, "seconds_no_drafts"),
        "tokens": _ratio(parallel, "tokens"),
        "tokens a pass": _rate(parallel, "passes"),
        "tokens/s": _rate(parallel, "seconds"),
        "declined, passes": round(
            max((a["passes"][0] / a["passes"][1] for a in declined), default=1), 2
        ),
    }


def _share(flags: Sequence[bool]) -> str:
    return f"{sum(flags)}/{len(flags)}"


def _ratio(answers: Sequence[dict[str, Any]], name: str) -> float | None:
    """Median of sequential over parallel."""
    ratios = [a[name][1] / max(a[name][0], 1e-9) for a in answers]
    return round(statistics.median(ratios), 2) if ratios else None


def _rate(answers: Sequence[dict[str, Any]], name: str) -> float | None:
    """Median of tokens over `name`, parallel over sequential."""
    ratios = [
        (a["tokens"][0] / a[name][0]) / (a["tokens"][1] / a[name][1])
        for a in answers
        if a["tokens"][1]
    ]
    return round(statistics.median(ratios), 2) if ratios else None


if __name__ == "__main__":
    main()
