"""How the product of eight bits is compiled and chosen: by what the machine has."""

from __future__ import annotations

import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from langchain_pos.engine.cpu import int8_kernel
from langchain_pos.engine.cpu.int8_kernel import compiled, instructions, kernel
from langchain_pos.errors import ModelLoadError
from tests.support.compilers import compiles_here

runs_here = pytest.mark.skipif(not compiles_here(), reason="no AVX2, no Linux or no C compiler")


@pytest.fixture(autouse=True)
def forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled yet, as on a new machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel.cache_clear()
    yield
    kernel.cache_clear()


@pytest.mark.parametrize(
    ("machine", "allowed", "has", "chosen"),
    [
        ("x86_64", "AVX512", {"avx512_vnni": True, "avx_vnni": True}, "AVX512-VNNI"),
        ("AMD64", "AVX512", {"avx_vnni": True}, "AVX-VNNI"),
        ("x86_64", "AVX512", {}, "AVX2"),
        ("x86_64", "AVX2", {"avx_vnni": True}, "AVX-VNNI"),
        ("x86_64", "AVX2", {"avx512_vnni": True}, "AVX2"),
        ("x86_64", "DEFAULT", {"avx2": True}, None),
        ("arm64", "NEON", {}, None),
    ],
)
def test_the_best_instructions_that_are_allowed(
    machine: str,
    allowed: str,
    has: dict[str, bool],
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On processors that are faked: by what PyTorch finds, and what its environment allows it."""
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: allowed)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: has.get("avx512_vnni", False))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert instructions() == chosen
    if chosen is None:
        with pytest.raises(ModelLoadError, match="x86 processor with AVX2 and Linux"):
            kernel()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")  # kept to less than it has
    assert instructions() in (chosen, "AVX2")


@runs_here
def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process finds it; nothing half-made stays beside it."""
    library = compiled()
    assert [library] == list(library.parent.iterdir())
    monkeypatch.setattr(int8_kernel, "_compilers", list)
    assert compiled() == library


@runs_here
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled for this process alone."""
    (tmp_path / "langchain_pos").write_text("a file where a folder is wanted")
    assert compiled().is_file()


@runs_here
def test_a_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    """Damaged, or where nothing may be executed: another one is compiled for this process."""
    library = compiled()
    library.write_bytes(b"no library")
    assert kernel()


def test_what_fails_is_a_reason_not_to_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else escapes: a GGUF file is loaded without, though nobody asked for this."""

    def fails(*_: object, **__: object) -> Path:
        raise PermissionError("nothing may be written anywhere")

    monkeypatch.setattr(int8_kernel, "instructions", lambda: "AVX2")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(int8_kernel, "team", lambda: 1)
    monkeypatch.setattr(int8_kernel, "_compile", fails)
    with pytest.raises(ModelLoadError, match="nothing may be written anywhere"):
        kernel()


@runs_here
def test_a_compiler_that_fails_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is tried; if none works, the message has their words and the way out."""
    bad = tmp_path / "cc"
    bad.write_text("#!/bin/sh\necho no headers are installed >&2\nexit 1\n")
    bad.chmod(bad.stat().st_mode | stat.S_IXUSR)
    good, gone = int8_kernel._compilers(), [str(tmp_path / "gone")]
    monkeypatch.setattr(int8_kernel, "_compilers", lambda: [[str(bad)], gone])
    said = r"langchain-pos\[int8\].*no headers are installed; .*gone: .*No such file"
    with pytest.raises(ModelLoadError, match=said):
        compiled()
    monkeypatch.setattr(int8_kernel, "_compilers", lambda: [[str(bad)], gone, *good])
    assert compiled().is_file()


def test_compilers_are_the_systems_and_then_the_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any the message says which were looked for."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name != "gcc" else None)
    monkeypatch.setattr(int8_kernel, "find_spec", lambda _: object())
    own = [sys.executable, "-m", "ziglang", "cc"]
    assert int8_kernel._compilers() == [["/bin/cc"], ["/bin/clang"], own]
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(int8_kernel, "find_spec", lambda _: None)
    with pytest.raises(ModelLoadError, match="no cc, gcc or clang was found"):
        compiled()


def test_without_the_threads_of_pytorch_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread alone would be slower than what it replaces."""
    monkeypatch.setattr(int8_kernel, "instructions", lambda: "AVX2")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(int8_kernel, "team", lambda: None)
    with pytest.raises(ModelLoadError, match="OpenMP library"):
        kernel()
