"""What all benchmarks share: the machine, the versions, a table, a JSON file, the data folder."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instructions that decide how fast a matrix product is."""
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables that keep PyTorch from some of them: `AVX2` and `avx2` make most machines alike."""


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions and date: what a figure means nothing without."""
    import torch

    info: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "platform": platform.platform(),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "flags": flags(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers", "langchain-core", "xgrammar", "langchain-pos"):
        try:
            info[package] = version(package)
        except PackageNotFoundError:
            info[package] = None
    if torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def flags() -> list[str]:
    """Those of `FLAGS` that are used: the processor has them, and no variable forbids them."""
    found = [flag for flag in FLAGS if flag in _cpuinfo("flags").split()]
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    if not limits:
        return found
    if {limit.lower() for limit in limits.values()} == {"avx2"} and len(limits) == len(LIMITS):
        return [flag for flag in found if flag == "avx2"]
    return [*found, *(f"{name}={limit}" for name, limit in limits.items())]


def _cpuinfo(key: str) -> str:
    """What Linux says of the first core."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def report(
    name: str, rows: Sequence[dict[str, Any]], *, folder: Path = RESULTS, **details: Any
) -> Path:
    """Print a table and write `results/<name>.json`.

    Args:
        name: the benchmark's.
        rows: one dict for each line of the table, with the same keys.
        folder: where the JSON file goes.
        details: what else belongs into the JSON file, such as single measurements.

    Returns:
        the JSON file.
    """
    print(markdown(rows))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {
        "benchmark": name,
        "command": " ".join(
            [f"python -m benchmarks.{Path(sys.argv[0]).stem}", *without_folders(sys.argv[1:])]
        ),
        "machine": machine(),
        "rows": list(rows),
        **details,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwritten to {path}")
    return path


def without_folders(argv: Sequence[str]) -> list[str]:
    """A command's words without folders, which a result of this machine does not name.

    `--data` and `--out` are left out, and a model's folder is only its name.
    """
    shown, words = [], list(argv)
    while words:
        word = words.pop(0)
        if word in ("--out", "--data"):
            words[:1] = []
        elif not word.startswith(("--out=", "--data=")):
            shown.append(short_name(word) if Path(word).is_absolute() else word)
    return shown


def short_name(model: str) -> str:
    """A model's name without its folder; that of the folder above, if its own says nothing."""
    where = Path(model)
    return where.parent.name if where.name in ("hf", "model.gguf") else where.name


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table, as `docs/benchmarks.md` shows it."""
    if not rows:
        return "(no rows)"
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[h]) for h in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def data_folder(given: Path | None) -> Path:
    """The folder with the paper's tasks: given, from LANGCHAIN_POS_DATA, or beside the repo."""
    folder = given or Path(
        os.environ.get(
            "LANGCHAIN_POS_DATA", Path(__file__).parent.parent.parent / "shared" / "data"
        )
    )
    if not folder.is_dir():
        raise SystemExit(
            f"{folder} does not exist; give the folder with retrieval_10.jsonl by --data or "
            "LANGCHAIN_POS_DATA"
        )
    return folder
