"""Score a model on questions in the paper's form: `python -m training.evaluate FILE.jsonl`.

Without a file, it uses held-out students from our own generator (`--generated 10`). It reports
whether the skeleton is complete, and whether copied values, verdicts and the final answer are
correct, in parallel and sequentially. For reporting only: checkpoints are chosen on the validation
set.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from training.decode import Decoder
from training.export import EMBEDDED
from training.students import paper_problem

_RECORD = re.compile(
    r"^The student named (.+?) is \d+ years old, .*? with a GPA of (\d+(?:\.\d+)?)\. ", re.M
)
_BOUNDS = re.compile(r"GPA between (\d+(?:\.\d+)?) and (\d+(?:\.\d+)?)")
_BODY = re.compile(r"^ GPA (\S+), wanted .*?, (yes|no)(?:: (.*))?$")

Row = dict[str, str]


def generated(count: int, rows: int, seed: int = 4242) -> list[Row]:
    """Return held-out questions of the paper's form with `count` students."""
    made = []
    for index in range(rows):
        problem, answer = paper_problem(random.Random(f"{seed}-{count}-{index}"), count)
        text = problem.head + "".join(problem.records) + problem.questions[0].text
        made.append({"prompt": text, "gold_keys": answer})
    return made


def _answer(text: str) -> str:
    """The text after the last "name:" of a conclusion."""
    return text.rsplit("name:", 1)[-1].strip() if "name:" in text else ""


def score(row: Row, titles: list[str], bodies: list[str], conclusion: str) -> dict[str, list[bool]]:
    """Compare one answer with the records of its prompt."""
    records = dict(_RECORD.findall(row["prompt"]))
    (bounds,) = _BOUNDS.findall(row["prompt"])
    found: dict[str, list[bool]] = defaultdict(list)
    found["complete"].append(titles == list(records))
    for title, body in zip(titles, bodies, strict=True):
        parsed = _BODY.match(body.removesuffix("####").rstrip("\n"))
        if title not in records:
            continue  # an invented step counts against "complete"
        value = records[title]
        inside = float(bounds[0]) <= float(value) <= float(bounds[1])
        found["value"].append(parsed is not None and parsed[1] == value)
        found["verdict"].append(parsed is not None and (parsed[2] == "yes") == inside)
        if inside:
            found["verdict_inside"].append(parsed is not None and parsed[2] == "yes")
    found["answer"].append(_answer(conclusion) == row["gold_keys"])
    return found


def split_answer(text: str) -> tuple[list[str], list[str], str]:
    """Split a sequential answer into titles, bodies and conclusion."""
    head, _, conclusion = text.partition("####%%%%\n")
    steps = [part.partition(":") for part in head.split("####")[1:]]
    return [t for t, _, _ in steps], [b for _, _, b in steps], conclusion


def evaluate(folder: Path, rows: list[Row], show: int = 0) -> dict[str, float]:
    """Return the share of correct items over all rows, in parallel and sequentially."""
    decoder = Decoder(folder)
    totals: dict[str, list[bool]] = defaultdict(list)
    for index, row in enumerate(tqdm(rows, mininterval=10)):
        out = decoder.parallel(row["prompt"])
        text = decoder.sequential(row["prompt"])
        if index < show:
            print(out, text, sep="\n")
        for mode, answer in (
            ("parallel", (out.titles, out.bodies, out.conclusion)),
            ("sequential", split_answer(text)),
        ):
            for key, values in score(row, *answer).items():
                totals[f"{mode} {key}"] += values
    return {key: round(sum(v) / len(v), 4) for key, v in totals.items()}


def main() -> None:
    """Read the command line, evaluate, print the shares as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="jsonl with `prompt` and `gold_keys`")
    parser.add_argument("--generated", type=int, default=10, help="students per held-out question")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--show", type=int, default=0, help="print the first answers")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.file:
        rows = [json.loads(line) for line in args.file.read_text().splitlines()][: args.rows]
    else:
        rows = generated(args.generated, args.rows)
    print(json.dumps(evaluate(args.model, rows, args.show), indent=2))


if __name__ == "__main__":
    main()
