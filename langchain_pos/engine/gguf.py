"""GGUF files: unpacked through transformers once, and kept as an ordinary model folder.

Unpacking takes minutes, reading the unpacked folder seconds. So the folder is kept beside the file,
or in the user's cache where nothing may be written there, and used as long as the file's size and
time are those that were unpacked. It is written under another name and renamed when it is whole:
what was broken off is never used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from langchain_pos.engine.gguf_header import Header, read_header
from langchain_pos.engine.user_cache import user_cache
from langchain_pos.errors import MissingExtraError, ModelLoadError, UnsupportedModelError

logger = logging.getLogger(__name__)

_NOTE = "gguf.json"
_LOCK = threading.Lock()  # one conversion at a time: it takes a file's size several times over
_FORMAT = 1  # of the unpacked folder; another number is unpacked anew
_ABANDONED = 24 * 3600  # seconds after which a folder that was never finished is removed


@dataclass(frozen=True)
class Unpacked:
    """A GGUF file's model in transformers' form.

    Attributes:
        origin: where it came from, its quantisation and unpacked size, for people.
        is_quantised: whether the file's weights are; unpacked they are not.
        folder: where it is kept; None where it could not be.
        model: the model itself, where no folder is.
        tokenizer: the tokenizer itself, where no folder is.
    """

    origin: str
    is_quantised: bool
    folder: Path | None = None
    model: Any = None
    tokenizer: Any = None


def unpack(file: Path, *, beside: bool, check: Callable[[Any], None]) -> Unpacked:
    """The model in a GGUF file, from where it is kept, else unpacked and kept.

    Args:
        file: the GGUF file.
        beside: whether the unpacked form may be kept beside the file, not in the user's cache only.
        check: raises for a configuration that cannot be served, before the weights are read.

    Raises:
        MissingExtraError: it must be unpacked, and a package is missing.
        ModelLoadError: the file is damaged, not GGUF, or nothing that transformers can unpack.
        UnsupportedModelError: `check` refuses it.
    """
    header = read_header(file)
    if header.parts > 1:
        raise ModelLoadError(
            f"{file} is one of {header.parts} parts of a model; join them with llama.cpp's "
            "`llama-gguf-split --merge`, and give the joined file"
        )
    is_quantised = header.float_type is None
    places = _places(file, beside)
    for place in places:
        if _is_whole(place, file):
            return Unpacked(_origin(file, header, place), is_quantised, place)
    _require_packages()
    # A warning, so that it is seen without any set-up where there is no loading bar.
    size = file.stat().st_size / 1e9
    logger.warning(
        "unpacking %s (%.1f GB) for this and later loads; it may take minutes", file, size
    )
    began = time.monotonic()
    model, tokenizer = _convert(file, header, check)
    logger.info("unpacked %s in %.0f s", file, time.monotonic() - began)
    for place in places:
        try:
            _keep(model, tokenizer, place, file)
        except Exception as error:  # noqa: BLE001  a model that cannot be kept can still answer
            logger.warning("cannot keep the unpacked %s in %s: %s", file.name, place, error)
            continue
        return Unpacked(_origin(file, header, place), is_quantised, place)
    logger.warning("%s is not kept unpacked; it will be unpacked at every load", file)
    return Unpacked(_origin(file, header, None), is_quantised, None, model, tokenizer)


def _require_packages() -> None:
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"unpacking a GGUF file needs {' and '.join(missing)}, not installed here; install "
            f"with `pip install {' '.join(missing)}`, which the extra `langchain-pos[gguf]` holds"
        )


def _convert(file: Path, header: Header, check: Callable[[Any], None]) -> tuple[Any, Any]:
    """Model and tokenizer as transformers unpack them."""
    dtype = getattr(torch, header.float_type or "bfloat16")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with _LOCK, _read_once():
            config = AutoConfig.from_pretrained(**where)
            check(config)
            tokenizer = AutoTokenizer.from_pretrained(**where)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **where,
                config=config,
                dtype=dtype,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            model, report = loaded
    except UnsupportedModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(f"{file} does not fit into memory unpacked: {error}") from error
    except Exception as error:  # transformers and gguf raise a dozen kinds
        reason = " ".join(str(error).split())[:300]
        raise ModelLoadError(
            f"transformers {transformers.__version__} cannot unpack {file} (architecture "
            f"{header.architecture!r}, quantisation {header.quantisation}): "
            f"{type(error).__name__}: {reason}. Remedy: a newer transformers, the same model in "
            "another quantisation (Q4_K_M, Q8_0) or as safetensors, or llama.cpp's server as "
            "OpenAICompletionsEngine"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelLoadError(
            f"{file} lacks {', '.join(missing[:3])} ({len(missing)} tensors in all), without which "
            "the model would answer at random; get the file again, or the model as safetensors"
        )
    return model, tokenizer


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers parse the file once, and show its progress through its own hook.

    It parses the file anew for the configuration, the tokenizer and the weights, some five times in
    all; with a large vocabulary that takes far longer than the unpacking.
    """
    package: Any = import_module("gguf")
    older: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    reader, bar = package.GGUFReader, older.tqdm
    readers: dict[str, Any] = {}

    def read_once(path: Any, *args: Any, **kwargs: Any) -> Any:
        name = str(path)
        if name not in readers:
            for _ in transformers_logging.tqdm([name], desc=f"Reading {Path(name).name}"):
                readers[name] = reader(path, *args, **kwargs)
        return readers[name]

    package.GGUFReader, older.tqdm = read_once, transformers_logging.tqdm
    try:
        yield
    finally:
        package.GGUFReader, older.tqdm = reader, bar


def _places(file: Path, beside: bool) -> list[Path]:
    """Where the unpacked form may lie, the best first."""
    whole = file.expanduser().absolute()
    sign = hashlib.sha256(str(whole).encode()).hexdigest()[:12]
    cached = user_cache() / "gguf" / f"{file.stem}-{sign}"
    return [whole.with_name(f"{file.name}.unpacked"), cached] if beside else [cached]


def _stamp(file: Path) -> dict[str, int]:
    """What tells this file from a later one by its name."""
    found = file.stat()
    return {"format": _FORMAT, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _is_whole(place: Path, file: Path) -> bool:
    """Whether `place` holds this very file unpacked, with nothing lost since."""
    try:
        note = json.loads((place / _NOTE).read_text(encoding="utf-8"))
        sizes = {name: (place / name).stat().st_size for name in note["files"]}
        return bool(note["stamp"] == _stamp(file) and note["files"] == sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _keep(model: Any, tokenizer: Any, place: Path, file: Path) -> None:
    """Write the unpacked form to a folder of its own, then give that its name."""
    place.parent.mkdir(parents=True, exist_ok=True)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free = shutil.disk_usage(place.parent).free
    if free < size:
        raise OSError(f"{size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    for left in place.parent.glob(f"{place.name}.half-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
    half = Path(tempfile.mkdtemp(prefix=f"{place.name}.half-", dir=place.parent))
    try:
        shutil.copymode(place.parent, half)  # mkdtemp's is its maker's alone
        model.save_pretrained(half)
        tokenizer.save_pretrained(half)
        sizes = {path.name: path.stat().st_size for path in half.iterdir() if path.is_file()}
        note = {"stamp": _stamp(file), "files": sizes}
        (half / _NOTE).write_text(json.dumps(note, indent=1), encoding="utf-8")
        for name in sizes:
            shutil.copymode(half / _NOTE, half / name)  # safetensors writes for its owner alone
        if not _is_whole(place, file):  # another process may have been faster
            shutil.rmtree(place, ignore_errors=True)
            half.rename(place)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _origin(file: Path, header: Header, place: Path | None) -> str:
    size = 0
    if place is not None:
        size = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    kept = f"unpacked to {size / 1e9:.2f} GB in {place}" if place else "unpacked, not saved"
    return f"{file} ({header.architecture}, {header.quantisation}), {kept}"
