"""What a model wrote, to read: `python -m benchmarks.transcripts --model MODEL [--model MODEL]`.

Thirty questions of every day (`everyday.py`), each answered in the model's own form, greedily. All
answers go into `docs/transcripts.md`, unedited, whatever they are worth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.everyday import EVERYDAY
from benchmarks.report import RESULTS, report
from langchain_pos import ParallelReasoningLLM, ReasoningResult

PAGE = Path(__file__).parent.parent / "docs" / "transcripts.md"
HEAD = """# Transcripts

What real models wrote in native form, greedily: thirty questions of every day, all answers, as
they came. `python -m benchmarks.transcripts` asks them again. The questions were written for this
project, and no setting was chosen by them. A sequential answer is cut at {tokens} tokens, a branch
and a conclusion at {branch}. The weights were in eight bits.

A row of dots stands where the branches begin and where they end. Small models are often wrong; what
to look for is whether the branches read as one answer, whether they repeat one another, and whether
the question should have been left alone.

"""
DOTS = "· " * 20


def main(
    model: Annotated[list[str] | None, typer.Option(help="folder, .gguf file or hub name")] = None,
    questions: Annotated[int, typer.Option(help="the first so many")] = 30,
    tokens: Annotated[int, typer.Option(help="of a sequential answer")] = 300,
    branch: Annotated[int, typer.Option(help="tokens of a branch")] = 100,
    dtype: str = "auto",
    out: Annotated[Path, typer.Option(help="folder of the JSON file")] = RESULTS,
    page: Annotated[Path, typer.Option(help="what to write the answers to")] = PAGE,
) -> None:
    """Ask, and write the JSON file; without a model, write the page from the JSON files."""
    for each in model or ():
        llm = ParallelReasoningLLM(
            model=each,
            dtype=dtype,
            max_sequential_tokens=tokens,
            max_branch_tokens=branch,
            max_conclusion_tokens=branch,
        )
        where = Path(each)
        name = where.parent.name if where.name in ("hf", "model.gguf") else where.name
        answers = []
        for question in EVERYDAY.splitlines()[:questions]:
            answers.append(_answer(question, llm.invoke(question)))
            print(len(answers), answers[-1]["how"], question, flush=True)
        parallel = sum(a["mode"] == "parallel" for a in answers)
        row = {"model": name, "questions": len(answers), "in parallel": parallel}
        report(
            f"transcripts_{name}",
            [row],
            folder=out,
            command=f"python -m benchmarks.transcripts --model {name}",
            model=name,
            answers=answers,
            budgets={"tokens": tokens, "branch": branch},
        )
    render(out, page)


def _answer(question: str, result: ReasoningResult) -> dict[str, Any]:
    passes, tokens = result.forward_passes.total, result.usage.output_tokens
    how = f"{result.mode}, {tokens} tokens in {passes} forward passes"
    if result.plan and result.plan.pressure is not None:
        how += f", pressure {result.plan.pressure:.2f}"
    if result.fallback_reason:
        how += f"; {result.fallback_reason}"
    return {"question": question, "mode": result.mode, "how": how, "text": _marked(result)}


def _marked(result: ReasoningResult) -> str:
    """The answer with a row of dots before and after each block's list."""
    text = result.text
    for block in result.blocks:
        listed = block.text.removeprefix(block.plan.preamble).strip()
        text = text.replace(listed, f"{DOTS}\n{listed}\n{DOTS}", 1)
    return text


def render(folder: Path, page: Path) -> None:
    """Write the page from what was answered last."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("transcripts_*.json"))]
    if not found:
        raise SystemExit("nothing has been asked yet: give --model")
    parts = [HEAD.format(**found[0]["budgets"])]
    for run in found:
        parts.append(f"## {run['model']}\n\n")
        for answer in run["answers"]:
            verbatim = f"~~~~text\n{answer['text'].strip()}\n~~~~"
            parts.append(f"### {answer['question']}\n\n{answer['how']}\n\n{verbatim}\n\n")
    page.write_text("".join(parts).rstrip() + "\n", encoding="utf-8")
    print(f"written to {page}")


if __name__ == "__main__":
    typer.run(main)
