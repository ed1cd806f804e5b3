"""The matrix product of eight bits in `int8.c`: compiled on this machine, run by PyTorch's threads.

A wheel for all machines holds no machine code, so the C file is compiled when it is first needed,
in a second or two, and kept in the user's cache. It needs a C compiler: the system's, or the one
that the package `ziglang` brings (`pip install "langchain-pos[int8]"`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from langchain_pos.engine.cpu.openmp import team
from langchain_pos.engine.user_cache import user_cache
from langchain_pos.errors import ModelLoadError

GROUP = 64
"""Features that share a scale."""
PANEL = 32
"""Channels that lie together."""
_SOURCE = Path(__file__).with_name("int8.c")
_FLAGS = ("-O3", "-shared", "-fPIC")
_PREFIX = "langchain_pos-"
_PATIENCE = 120
"""Seconds that a compiler may take."""
_INSTRUCTIONS = ("AVX2", "AVX-VNNI", "AVX512-VNNI")
"""As `int8.c` numbers them."""


class _Job(ctypes.Structure):
    """`struct job` of `int8.c`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("states", "weights", "scales", "bias", "out")),
        *((name, ctypes.c_void_p) for name in ("whole", "units")),
        *((name, ctypes.c_int64) for name in ("rows", "features", "channels")),
        *((name, ctypes.c_int32) for name in ("bfloat16", "instructions", "next", "chunk")),
    )


class Kernel:
    """The compiled product.

    Args:
        library: the compiled `int8.c`.
        instructions: one of "AVX2", "AVX-VNNI" and "AVX512-VNNI", which this processor must have.
    """

    def __init__(self, library: Path, instructions: str) -> None:
        multiply = ctypes.CDLL(str(library)).langchain_pos_int8_multiply
        multiply.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        multiply.restype = None
        self._multiply: Callable[..., None] = multiply
        self._instructions = _INSTRUCTIONS.index(instructions)
        self._team = team()

    def __call__(
        self,
        states: torch.Tensor,
        weights: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
        channels: int,
    ) -> torch.Tensor:
        """`states @ weights.T + bias`.

        Args:
            states: `[rows, features]`, float32 or bfloat16, contiguous; features a multiple of 64.
            weights: `[panels, features / 4, 32, 4]` int8.
            scales: `[panels, features / 64, 32]` float32.
            bias: `[channels]` float32, or None.
            channels: at most 32 panels; what the last panel holds beyond them is left out.

        Returns:
            `[rows, channels]`, in the states' dtype.
        """
        rows, features = states.shape
        if states.device.type != "cpu" or states.dtype not in (torch.float32, torch.bfloat16):
            raise RuntimeError(
                "weights of eight bits multiply states in float32 or bfloat16 on a CPU, and these "
                f"are {states.dtype} on {states.device}; do not move or convert such a model"
            )
        out = states.new_empty(rows, channels)
        # Whatever the process's default dtype is: transformers sets it while it loads a model.
        whole = states.new_empty(rows, features, dtype=torch.int8)
        units = states.new_empty(rows, features // GROUP, dtype=torch.float32)
        job = _Job(
            states.data_ptr(),
            weights.data_ptr(),
            scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            whole.data_ptr(),
            units.data_ptr(),
            rows,
            features,
            channels,
            states.dtype == torch.bfloat16,
            self._instructions,
        )
        self._multiply(ctypes.byref(job), self._team, torch.get_num_threads())
        return out


def instructions() -> str | None:
    """The best instructions for bytes that PyTorch knows of and may use; None without AVX2."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    allowed = torch.backends.cpu.get_cpu_capability()  # follows ATEN_CPU_CAPABILITY
    if allowed == "AVX512" and torch.cpu._is_vnni_supported():
        return "AVX512-VNNI"
    if allowed not in ("AVX2", "AVX512"):
        return None
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    # Laptops have it without AVX512, and PyTorch's levels do not tell.
    has_vnni = known.get("avx_vnni") and "ATEN_CPU_CAPABILITY" not in os.environ
    return "AVX-VNNI" if has_vnni else "AVX2"


@cache
def kernel() -> Kernel:
    """The product with the best instructions of this processor.

    Raises:
        ModelLoadError: this machine cannot run or compile it, and why.
    """
    found = instructions()
    if found is None or not sys.platform.startswith("linux"):
        raise ModelLoadError(
            "weights of eight bits need an x86 processor with AVX2 and Linux, and this is "
            f"{platform.machine()} with {platform.system()}; leave out quantization='int8', or on "
            "a GPU give model_kwargs={'quantization_config': …}"
        )
    if team() is None:
        raise ModelLoadError(
            "weights of eight bits need the OpenMP library of PyTorch's wheels (libgomp, libomp or "
            "libiomp5), and this process has none; leave out quantization='int8'"
        )
    try:
        library = compiled()
        try:
            return Kernel(library, found)
        except OSError:  # such as a cache from which nothing may be executed
            return Kernel(_compile(Path(tempfile.mkdtemp(prefix=_PREFIX)) / library.name), found)
    except (OSError, RuntimeError, AttributeError) as error:
        raise ModelLoadError(
            f"weights of eight bits cannot be used here ({error}); leave out quantization='int8', "
            "or set XDG_CACHE_HOME to a folder whose files may be written and executed"
        ) from error


def compiled() -> Path:
    """The compiled `int8.c`, from the user's cache; compiled if it is not there.

    Raises:
        ModelLoadError: no compiler works.
    """
    sign = hashlib.sha256(" ".join(_FLAGS).encode() + _SOURCE.read_bytes()).hexdigest()[:16]
    library = user_cache() / "compiled" / f"int8-{platform.machine()}-{sign}.so"
    try:
        return library if library.is_file() else _compile(library)
    except OSError:  # nothing may be read or written there
        return _compile(Path(tempfile.mkdtemp(prefix=_PREFIX)) / library.name)


def _compile(library: Path) -> Path:
    """Compile `int8.c` under another name, then give it this one: what is there is whole."""
    library.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f"{library.stem}-", dir=library.parent))
    failures = []
    try:
        for compiler in _compilers():
            made = half / library.name
            command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
            try:
                done = subprocess.run(command, capture_output=True, check=False, timeout=_PATIENCE)
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{' '.join(compiler)}: {error}")
                continue
            if done.returncode == 0:
                return made.replace(library)
            said = " ".join(done.stderr.decode(errors="replace").split())
            failures.append(f"{' '.join(compiler)}: {said[:300]}")
    finally:
        shutil.rmtree(half, ignore_errors=True)
    tried = "; ".join(failures) or "no cc, gcc or clang was found"
    raise ModelLoadError(
        "weights of eight bits need a C compiler, and none works here: "
        f'pip install "langchain-pos[int8]" brings one ({tried})'
    )


def _compilers() -> list[list[str]]:
    """Commands that compile C, the system's first."""
    found = [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if find_spec("ziglang") is not None:
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found
