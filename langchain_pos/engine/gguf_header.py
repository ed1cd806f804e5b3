"""The head of a GGUF file: what it says of itself, read without its weights and without a package.

A file that is cut off, or is something else by that name, is found here in a moment, and not after
minutes of unpacking.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from langchain_pos.errors import ModelLoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SIZES = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # bytes, by value type
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_STRING, _ARRAY = 8, 9
# Storage types by ggml's number: name, elements of a block, bytes of a block.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        architecture: llama.cpp's name of it, such as "qwen2".
        tensors: how many tensors are stored in which type, the most frequent first.
        parts: how many files the model is spread over.
    """

    architecture: str
    tensors: dict[str, int]
    parts: int

    @property
    def quantisation(self) -> str:
        """The types that the weights are stored in; F32 alone is left out beside others."""
        kinds = [kind for kind in self.tensors if kind != "F32"]  # norms and biases mostly
        return ", ".join(kinds or self.tensors)

    @property
    def float_type(self) -> str | None:
        """The name of torch's type, where the weights are not quantised."""
        if not set(self.tensors) <= set(_FLOATS):
            return None
        names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
        return next((names[kind] for kind in names if kind in self.tensors), None)


def read_header(file: Path) -> Header:
    """Read what a GGUF file says of itself, and check that its data is all there.

    Raises:
        ModelLoadError: it cannot be read, is not a GGUF file, or is damaged.
    """
    try:
        with file.open("rb") as opened:
            magic = opened.read(24)
            if magic[:4] != _MAGIC:
                raise ModelLoadError(
                    f"{file} is not a GGUF file: it begins with {magic[:4]!r}, a GGUF file with "
                    f"{_MAGIC!r}. Give a GGUF file, or a folder with config.json and *.safetensors"
                )
            if len(magic) < 24:
                raise ModelLoadError(_damaged(file, "it ends inside its own header"))
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as blob:
                return _Reader(blob).header(file)
    except OSError as error:
        raise ModelLoadError(f"cannot read {file}: {error.strerror or error}") from error
    except (struct.error, IndexError, ValueError, KeyError, OverflowError) as error:
        raise ModelLoadError(_damaged(file, f"its header cannot be read ({error})")) from error


def _damaged(file: Path, how: str) -> str:
    return f"{file} is damaged or cut off: {how}. Download it again and compare its size"


class _Reader:
    def __init__(self, blob: mmap.mmap) -> None:
        self.blob, self.place = blob, 4

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.blob, self.place)
        self.place += struct.calcsize(form)
        return int(value)

    def string(self) -> str:
        length = self.take("<Q")
        if self.place + length > len(self.blob):
            raise ValueError(f"a name of {length} bytes at {self.place}")
        text = self.blob[self.place : self.place + length].decode("utf-8", errors="replace")
        self.place += length
        return text

    def value(self, kind: int) -> str | int | None:
        """A value, where it is a string or an integer; others are skipped."""
        if kind == _STRING:
            return self.string()
        if kind in _INTEGERS:
            return self.take(_INTEGERS[kind])
        if kind != _ARRAY:
            self.place += _SIZES[kind]
            return None
        element, count = self.take("<I"), self.take("<Q")
        if element in _SIZES:
            self.place += _SIZES[element] * count
            return None
        for _ in range(count):
            if element == _STRING:
                length = self.take("<Q")
                self.place += length
            else:
                self.value(element)
        return None

    def header(self, file: Path) -> Header:
        version = self.take("<I")
        if version not in _VERSIONS:
            raise ModelLoadError(
                f"{file} is a GGUF file of version {version}; versions 2 and 3 can be read. Get a "
                "newer file, or convert it again with llama.cpp"
            )
        tensors, pairs = self.take("<Q"), self.take("<Q")
        said = {}
        for _ in range(pairs):
            key = self.string()
            said[key] = self.value(self.take("<I"))
        counts: Counter[str] = Counter()
        end = 0
        for _ in range(tensors):
            name = self.string()
            elements = 1
            for _ in range(self.take("<I")):
                elements *= self.take("<Q")
            number, offset = self.take("<I"), self.take("<Q")
            if number not in _TYPES:
                raise ModelLoadError(
                    f"{file} stores {name} in ggml's type {number}, which is not supported; get "
                    "the model in another quantisation, such as Q4_K_M or Q8_0"
                )
            kind, block, size = _TYPES[number]
            counts[kind] += 1
            end = max(end, offset + elements // block * size)
        if not isinstance(architecture := said.get("general.architecture"), str) or not tensors:
            raise ModelLoadError(_damaged(file, "it names no architecture, or holds no tensors"))
        alignment = int(said.get("general.alignment") or 32)
        expected = -(-self.place // alignment) * alignment + end
        if expected > len(self.blob):
            raise ModelLoadError(
                _damaged(file, f"it has {len(self.blob):,} bytes, its tensors need {expected:,}")
            )
        return Header(architecture, dict(counts.most_common()), int(said.get("split.count") or 1))
