"""GGUF files: unpacked to what was packed, kept, and refused by name where they cannot be read."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from langchain_pos.engine import Engine, gguf, loading, sources
from langchain_pos.engine.gguf_header import read_header
from langchain_pos.engine.loading import load
from langchain_pos.errors import MissingExtraError, ModelLoadError, UnsupportedModelError
from tests.support.gguf_files import TEMPLATE, real_model, tiny_llama, write_gguf
from tests.support.tokenizers import byte_level

PROMPT = [5, 9, 30, 77, 41]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in F32."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def file(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its own, and a user's cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    (tmp_path / "models").mkdir()
    return Path(shutil.copy2(written, tmp_path / "models"))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were unpacked, not taken from where they are kept."""
    seen: list[Path] = []
    convert = gguf._convert

    def counted(file: Path, *rest: Any) -> Any:
        seen.append(file)
        return convert(file, *rest)

    monkeypatch.setattr(gguf, "_convert", counted)
    return seen


def test_what_was_packed_comes_back(file: Path) -> None:
    """Weights, tokenizer and chat template are those that were written."""
    model, tokenizer = load(str(file), device="cpu")
    expected = tiny_llama().state_dict()
    assert model.dtype == torch.float32
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.chat_template == TEMPLATE
    text = "The quick brown fox: 人工智能"
    assert tokenizer.encode(text) == byte_level().encode(text)
    assert tokenizer.eos_token == byte_level().eos_token


def test_the_second_load_takes_what_is_kept(file: Path, conversions: list[Path]) -> None:
    """Unpacked once, beside the file; the same answer from there, by file and by folder."""
    first = Engine.load(str(file), device="cpu")
    second = Engine.load(str(file), device="cpu")
    by_folder = Engine.load(str(file.parent), device="cpu")
    assert conversions == [file]
    answers = [e.generate(PROMPT, max_new_tokens=8) for e in (first, second, by_folder)]
    assert answers[0] == answers[1] == answers[2]
    assert {path.name for path in file.parent.iterdir()} == {file.name, f"{file.name}.unpacked"}


def test_unpacking_is_announced_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a warning, which is seen where logging is not set up; a later load has nothing to say."""
    for _ in range(2):
        load(str(file), device="cpu")
    [said] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert f"unpacking {file}" in said


def test_quantised_weights_become_bfloat16(tmp_path: Path) -> None:
    """Q8_0 is unpacked to bfloat16, near what was packed, and the description says all of it."""
    file = write_gguf(tmp_path / "tiny.gguf", quantised=True)
    engine = Engine.load(str(file), device="cpu", dtype="bfloat16")
    said = engine.describe()
    assert said["model"] == str(file)
    assert said["gguf"] == (f"{file} (llama, Q8_0), unpacked to 0.00 GB in {file}.unpacked")
    expected = tiny_llama().state_dict()
    for name, tensor in load(str(file), device="cpu", dtype="bfloat16")[0].state_dict().items():
        torch.testing.assert_close(tensor.float(), expected[name], atol=0.03, rtol=0.03)


def touch(file: Path) -> None:
    """Another file by the same name."""
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def lose(file: Path) -> None:
    """A kept folder without its weights."""
    (Path(f"{file}.unpacked") / "model.safetensors").unlink()


def cut(file: Path) -> None:
    """A kept folder with weights that were cut off."""
    weights = Path(f"{file}.unpacked") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])


def unfinish(file: Path) -> None:
    """A kept folder whose writing was broken off before its note."""
    (Path(f"{file}.unpacked") / "gguf.json").unlink()


@pytest.mark.parametrize("spoil", [touch, lose, cut, unfinish])
def test_what_is_not_this_file_whole_is_unpacked_anew(
    spoil: Callable[[Path], None], file: Path, conversions: list[Path]
) -> None:
    """Another time of the file, a lost or cut file, a half-written folder: none is used."""
    load(str(file), device="cpu")
    spoil(file)
    load(str(file), device="cpu")
    load(str(file), device="cpu")
    assert len(conversions) == 2


def test_a_write_that_breaks_off_leaves_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a disk that fills up the model still answers, a line says so, and no half is left."""
    model_type = type(tiny_llama())

    def full(self: Any, folder: Path) -> None:
        (Path(folder) / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_type, "save_pretrained", full)
    with caplog.at_level(logging.WARNING):
        engine = Engine.load(str(file), device="cpu")
    assert engine.generate(PROMPT, max_new_tokens=3).token_ids
    assert "No space left" in caplog.text
    assert "unpacked at every load" in caplog.text
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with pytest.raises(ModelLoadError, match=r"device_map cannot be used on .*make room"):
        Engine.load(str(file), device_map="cpu")


def test_no_room_is_seen_before_writing(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too little free space is named in gigabytes."""
    usage = shutil.disk_usage(file)._replace(free=10)
    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda _path: usage)
    load(str(file), device="cpu")
    assert "are needed, 0.0 GB are free" in caplog.text


def test_a_folder_that_cannot_be_written_leaves_it_to_the_users_cache(
    file: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where nothing may lie beside the file, the user's cache keeps it and serves the next load."""
    make = gguf.tempfile.mkdtemp

    def refusing(**where: Any) -> str:
        if where["dir"] == file.parent:
            raise PermissionError(13, "Permission denied")
        return make(**where)

    monkeypatch.setattr(gguf.tempfile, "mkdtemp", refusing)
    for _ in range(2):
        load(str(file), device="cpu")
    assert conversions == [file]
    [kept] = (tmp_path / "cache" / "langchain_pos" / "gguf").iterdir()
    assert (kept / "config.json").is_file()


@pytest.mark.parametrize(
    ("system", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "langchain_pos"),
        ("win32", "LOCALAPPDATA", "langchain_pos"),
        ("darwin", "HOME", "Library/Caches/langchain_pos"),
    ],
)
def test_the_users_cache_is_where_the_system_has_it(
    system: str, variable: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Linux, Windows and macOS each have their own place."""
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setenv(variable, str(tmp_path))
    assert gguf.user_cache() == tmp_path / expected


def pickled(file: Path) -> None:
    """Something else by that name."""
    file.write_bytes(b"PK\x03\x04 something else entirely")


def halved(file: Path) -> None:
    """Without its second half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def beheaded(file: Path) -> None:
    """Cut off inside its metadata."""
    file.write_bytes(file.read_bytes()[:200])


def stub(file: Path) -> None:
    """Cut off inside its first bytes."""
    file.write_bytes(b"GGUF\x03")


def emptied(file: Path) -> None:
    """Nothing at all."""
    file.write_bytes(b"")


def aged(file: Path) -> None:
    """As it was written years ago."""
    whole = bytearray(file.read_bytes())
    whole[4:8] = struct.pack("<I", 1)
    file.write_bytes(whole)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, r"is not a GGUF file: it begins with b'PK\\x03\\x04'"),
        (emptied, "is not a GGUF file"),
        (stub, "damaged or cut off: it ends inside its own header"),
        (beheaded, "damaged or cut off: its header cannot be read"),
        (halved, "damaged or cut off: it has .* bytes, its tensors need"),
        (aged, "version 1; versions 2 and 3"),
    ],
)
def test_spoilt_files_are_named(spoil: Callable[[Path], None], said: str, file: Path) -> None:
    """No GGUF, cut off at any place, or too old: each its own message, with the file's name."""
    spoil(file)
    with pytest.raises(ModelLoadError, match=said) as caught:
        load(str(file), device="cpu")
    assert str(file) in str(caught.value)


def test_an_architecture_that_transformers_cannot_read(tmp_path: Path) -> None:
    """It is refused by name, with its quantisation and what to do."""
    file = write_gguf(tmp_path / "odd.gguf", architecture="oddity")
    said = r"cannot unpack .*odd.gguf \(architecture 'oddity', quantisation F32\).*Remedy"
    with pytest.raises(ModelLoadError, match=said):
        load(str(file), device="cpu")


def test_a_type_that_nobody_knows(file: Path) -> None:
    """A tensor stored in a type with an unknown number is named."""
    whole = file.read_bytes()
    name = b"token_embd.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8
    file.write_bytes(whole[:at] + struct.pack("<I", 77) + whole[at + 4 :])
    with pytest.raises(ModelLoadError, match=r"stores token_embd\.weight in ggml's type 77"):
        load(str(file), device="cpu")


def test_an_architecture_with_a_running_state_is_refused_before_its_weights(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the configuration comes before minutes of unpacking."""

    def refuse(_config: Any) -> None:
        raise UnsupportedModelError("it keeps a running state")

    monkeypatch.setattr(loading, "refuse_state", refuse)
    with pytest.raises(UnsupportedModelError, match="running state"):
        load(str(file), device="cpu")
    assert not Path(f"{file}.unpacked").exists()


def test_missing_packages_name_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gguf the error holds a line that works; what is kept already loads without it."""
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else name)
    with pytest.raises(MissingExtraError, match=r"pip install gguf`.*langchain-pos\[gguf\]"):
        load(str(file), device="cpu")
    monkeypatch.undo()
    load(str(file), device="cpu")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    load(str(file), device="cpu")


def test_several_files_in_a_folder(file: Path) -> None:
    """Several are listed and none is guessed; with a config.json the folder is an ordinary one."""
    shutil.copy(file, file.with_name("other.gguf"))
    with pytest.raises(ModelLoadError, match=r"holds 2 GGUF files \(other.gguf, tiny.gguf\)"):
        load(str(file.parent), device="cpu")
    (file.parent / "config.json").write_text("{}")
    assert sources.locate(str(file.parent)).is_folder


def test_one_part_of_several_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is spread over files is named, with how to join them."""
    header = read_header(file)
    spread = type(header)(header.architecture, header.tensors, 3)
    monkeypatch.setattr(gguf, "read_header", lambda _file: spread)
    with pytest.raises(ModelLoadError, match=r"one of 3 parts.*--merge"):
        load(str(file), device="cpu")


def test_a_path_that_is_not_there_is_no_hub_name(tmp_path: Path) -> None:
    """A missing file says so, and how a file on the hub is named."""
    with pytest.raises(
        ModelLoadError, match=r"there is no such file at .*nothing.gguf.*hub-name:file"
    ):
        load(str(tmp_path / "nothing.gguf"), device="cpu")
    with pytest.raises(ModelLoadError, match=r"there is no such file at .*nothing.gguf"):
        load("some/nothing.gguf", device="cpu")


def test_a_file_on_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`hub-name:file.gguf` is fetched at its revision, and kept in the user's cache alone."""
    asked = []

    def fetched(*args: Any, **kwargs: Any) -> str:
        asked.append((args, kwargs))
        return str(file)

    monkeypatch.setattr(sources, "cached_file", fetched)
    name = "org/Tiny-GGUF:tiny.gguf"
    model, _ = load(name, device="cpu", revision="v2")
    assert asked == [(("org/Tiny-GGUF", "tiny.gguf"), {"revision": "v2"})]
    assert model.name_or_path == name
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert list((tmp_path / "cache" / "langchain_pos" / "gguf").glob("tiny-*/config.json"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("RepositoryNotFoundError", "the hub has no such model"),
        ("GatedRepoError", "the model is gated"),
        ("RevisionNotFoundError", "not this revision"),
        ("LocalEntryNotFoundError", "the hub could not be reached"),
        ("OfflineModeIsEnabled", "the hub could not be reached"),
        ("RemoteEntryNotFoundError", "has no such file"),
    ],
)
def test_unknown_and_not_reached_are_told_apart(kind: str, said: str) -> None:
    """Each of the hub's errors, however transformers wraps it, has its own remedy."""
    from huggingface_hub import errors

    error = OSError("We couldn't connect, or it does not exist")
    error.__cause__ = errors.__dict__[kind].__new__(errors.__dict__[kind])
    assert said in sources.explain(sources.Source("nobody/nothing"), error)


@pytest.mark.slow
def test_a_real_file_answers_as_its_unpacked_folder(
    tmp_path: Path, conversions: list[Path]
) -> None:
    """SmolLM2's GGUF writes, greedily, what its transformers folder writes; twice."""
    real = real_model("smollm2-135m-instruct")
    pytest.importorskip("gguf")
    file = Path(shutil.copy(real / "model.gguf", tmp_path))
    prompt = "List three fruits."
    answers = []
    for name in (file, file, real / "hf"):
        engine = Engine.load(str(name), device="cpu", dtype="float32")
        ids = engine.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        answers.append(engine.generate(ids, max_new_tokens=24))
    assert conversions == [file]
    assert answers[0] == answers[1] == answers[2]
    assert json.loads((Path(f"{file}.unpacked") / "gguf.json").read_text())["files"]
