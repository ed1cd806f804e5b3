"""`langchain-pos doctor`: what this machine offers, and whether a model can be served on it."""

from __future__ import annotations

import typer

from langchain_pos.cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    exit_codes,
)
from langchain_pos.cli.running import load
from langchain_pos.errors import ParallelReasoningError


def doctor(
    model: ModelOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what this machine offers, and whether a model passes the probe on it."""
    with exit_codes(debug):
        for key, value in _machine().items():
            typer.echo(f"{key:16} {value}")
        try:
            llm = load(model=model, device=device, dtype=dtype)
        except ParallelReasoningError as error:
            typer.echo(f"{'model':16} {model or 'the shipped one'}: cannot be served")
            raise error
        for key, value in llm.engine.describe().items():
            typer.echo(f"{key:16} {value}")


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
