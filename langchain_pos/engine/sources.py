"""What a model's name stands for (a folder, a GGUF file, a hub name), and why it did not load."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from transformers.utils.hub import cached_file

from langchain_pos.errors import ModelLoadError

_HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+|[\w.-]{2,}):(?P<file>[^:]+\.gguf)", re.IGNORECASE)
_ALLOWED = (
    "give a folder with config.json, a .gguf file, or a hub name such as 'Qwen/Qwen2.5-7B-Instruct'"
)
_NOT_REACHED = {
    "ConnectionError",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "TransportError",
}


@dataclass(frozen=True)
class Source:
    """What to load from.

    Attributes:
        name: a folder, a GGUF file, or a hub name.
        is_folder: whether it is a folder.
        gguf: the GGUF file, where it is one.
        from_hub: whether it came from the hub, so that nothing may be put beside it.
    """

    name: str
    is_folder: bool = False
    gguf: Path | None = None
    from_hub: bool = False


def locate(name: str, revision: str | None = None) -> Source:
    """What a name stands for; a GGUF file on the hub is downloaded.

    Args:
        name: a folder, a GGUF file, a hub name, or `hub-name:file.gguf`.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelLoadError: it can be none of them.
    """
    try:
        return _located(name, revision)
    except (OSError, RuntimeError) as error:  # no permission, too long a name, no such user's home
        raise ModelLoadError(f"model={name!r} cannot be looked up ({error}); {_ALLOWED}") from error


def _located(name: str, revision: str | None) -> Source:
    where = Path(name).expanduser()
    is_gguf = where.suffix.lower() == ".gguf"
    if name and where.is_dir():
        return _in_folder(where)
    if is_gguf and where.is_file():
        return Source(str(where), gguf=where)
    if matched := _HUB_FILE.fullmatch(name):
        return Source(
            name, gguf=_from_hub(name, matched["repo"], matched["file"], revision), from_hub=True
        )
    if is_gguf:
        raise ModelLoadError(
            f"model={name!r}: there is no such file at {where.absolute()}; {_near(where)}check the "
            "path. A file on the hub is given as 'hub-name:file.gguf', such as "
            "'Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_k_m.gguf'"
        )
    if where.is_file():
        raise ModelLoadError(f"model={name!r} is a file, but not a GGUF file; {_ALLOWED}")
    try:
        validate_repo_id(name)
    except HFValidationError:  # so it can only be meant as a path
        raise ModelLoadError(
            f"model={name!r}: there is no such folder; {_near(where)}{_ALLOWED}"
        ) from None
    return Source(name)


def _near(where: Path) -> str:
    """A question with the folder or GGUF file of a similar name beside it, if there is one."""
    if not where.parent.is_dir():
        return ""
    beside = {
        path.name: str(path)
        for path in where.parent.iterdir()
        if path.suffix.lower() == ".gguf" or path.is_dir()
    }
    near = difflib.get_close_matches(where.name, beside, n=1)
    return f"did you mean {beside[near[0]]!r}? Otherwise " if near else ""


def _in_folder(folder: Path) -> Source:
    """A folder itself, or the one GGUF file that it holds."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    if not files or (folder / "config.json").exists():
        return Source(str(folder), is_folder=True)
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:5]) + (" …" if len(files) > 5 else "")
        raise ModelLoadError(
            f"{folder} holds {len(files)} GGUF files ({names}); give one of them, such as "
            f"model={str(files[0])!r}"
        )
    return Source(str(files[0]), gguf=files[0])


def _from_hub(name: str, repo: str, file: str, revision: str | None) -> Path:
    try:
        found = cached_file(repo, file, revision=revision)
    except Exception as error:  # the hub raises a dozen kinds
        raise ModelLoadError(explain(Source(name), error)) from error
    if found is None:
        raise ModelLoadError(f"the hub name {repo!r} has no file {file!r}; check its list of files")
    return Path(found)


def explain(source: Source, error: Exception) -> str:
    """Say why nothing could be loaded, and what to do."""
    reason = " ".join(str(error).split())
    kind = f"the folder {source.name}" if source.is_folder else f"the hub name {source.name!r}"
    remedy = (
        "check that config.json, tokenizer.json and *.safetensors are present and complete"
        if source.is_folder
        else _hub_remedy(source.name, error)
    )
    if "trust_remote_code" in reason:
        remedy = "it needs its own code: pass trust_remote_code=True if you trust its authors"
    elif isinstance(error, torch.OutOfMemoryError):
        remedy = "it does not fit: take a smaller model, dtype='bfloat16' or another device"
    short = reason[:300] + ("…" if len(reason) > 300 else "")
    return f"cannot load a model from {kind}: {type(error).__name__}: {short}. Remedy: {remedy}"


def _hub_remedy(name: str, error: Exception) -> str:
    """Unknown to the hub, closed, without such a file, or the hub not reached: each by itself."""
    kinds = {kind.__name__ for met in _causes(error) for kind in type(met).__mro__}
    if "GatedRepoError" in kinds:
        return "the model is gated: accept its terms on the hub and log in with `hf auth login`"
    if "RepositoryNotFoundError" in kinds:
        return (
            "the hub has no such model: check the spelling, or log in with "
            "`hf auth login` if it is private"
        )
    if "RevisionNotFoundError" in kinds:
        return "the hub knows the model, but not this revision: check its spelling"
    if kinds & _NOT_REACHED:
        return (
            "the hub could not be reached, and the model is not in the local cache: check the "
            "spelling and the network (HF_HUB_OFFLINE cuts it off), or give a local folder"
        )
    if "EntryNotFoundError" in kinds:
        return "the hub knows the model, but it has no such file: check the file's spelling"
    if "gguf" in name.lower() and ":" not in name:
        return f"if it holds GGUF files, name one of them: model='{name}:file.gguf'"
    return "check the spelling and the network, or give a local folder"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
