"""`langchain-pos doctor`: what this machine offers, and whether a model can be served on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_pos.cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    exit_codes,
)
from langchain_pos.cli.running import load
from langchain_pos.errors import ParallelReasoningError

if TYPE_CHECKING:
    from langchain_pos.results.result import ReasoningResult
    from langchain_pos.runnables.parallel_reasoning import ParallelReasoningLLM


def doctor(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    try_forms: Annotated[
        bool,
        typer.Option("--try", help="Also answer five questions, and recommend a form."),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Show what this machine offers, and try a model on it."""
    with exit_codes(debug):
        for key, value in _machine().items():
            typer.echo(f"{key:16} {value}")
        try:
            llm = load(model=model, device=device, dtype=dtype, quantization=quantization)
        except ParallelReasoningError as error:
            typer.echo(f"{'model':16} {model or 'the shipped one'}: cannot be served")
            raise error
        for key, value in llm.engine.describe().items():
            typer.echo(f"{key:16} {value}")
        if try_forms:
            typer.echo("")
            for line in try_out(llm):
                typer.echo(line)


LISTS = (
    "What are the advantages of working from home?",
    "Compare Paris, Tokyo and Cairo as places for a holiday.",
    "How can I improve my sleep?",
)
"""Questions that most models answer with a list."""
NO_LISTS = ("What is 17 + 25?", "Write a short poem about rain.")
"""Questions that none should."""
_SHORT: dict[str, int] = {
    "max_sequential_tokens": 160,
    "max_branch_tokens": 80,
    "max_conclusion_tokens": 80,
}


def try_out(llm: ParallelReasoningLLM) -> Iterator[str]:
    """Answer five questions in the model's own form, a line each; then a recommendation.

    "native" where the model writes lists in answer to questions that suit them and leaves the
    others alone; "ask" where it writes them once it is asked for a list; else "sequential".
    """
    wrong = 0
    for question in NO_LISTS:
        result = llm.invoke(question, None, outline="native", **_SHORT)
        wrong += result.mode == "parallel"
        yield _tried(question, result)
    found = {"native": 0, "ask": 0}
    for outline in ("native", "ask"):
        for question in LISTS:
            result = llm.invoke(question, None, outline=outline, **_SHORT)
            found[outline] += result.mode == "parallel"
            yield _tried(question, result, outline)
        if 2 * found[outline] > len(LISTS) and not wrong:
            yield f"recommended      outline={outline!r}"
            return
    yield "recommended      mode='sequential', or steps=[...] given by the caller"


def _tried(question: str, result: ReasoningResult, outline: str = "native") -> str:
    how = f"{len(result.branches)} entries" if result.mode == "parallel" else "one text"
    why = f" ({result.fallback_reason})" if result.fallback_reason else ""
    return f"{outline:7} {how:11} {question}{why}"


def _machine() -> dict[str, str]:
    """Versions and devices."""
    import os
    import platform
    from importlib.metadata import version

    import torch

    names = ("langchain-pos", "langchain-core", "torch", "transformers", "xgrammar")
    found = {"python": f"{platform.python_version()} on {platform.platform()}"}
    found |= {name: version(name) for name in names}
    found["cpu"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found["cuda"] = ", ".join(gpus) or "none found"
    return found
