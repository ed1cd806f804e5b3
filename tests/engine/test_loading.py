"""Folders and names: what loads works, what does not is refused with the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
)

from langchain_pos.engine import Constraint, Engine
from langchain_pos.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from tests.support.tiny import ids, tiny_model
from tests.support.tokenizers import EOS, byte_level

PROMPT = ids(12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a network, wherever it runs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def edit(folder: Path, **changes: object) -> None:
    """Change the folder's config.json; None takes a field away."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def drop_tokenizer(folder: Path) -> None:
    """Remove what `save_pretrained` of a tokenizer writes."""
    for path in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        path.unlink()


def test_a_folder_loads_and_answers_as_the_model_in_memory(saved: Path) -> None:
    """What was saved comes back, by path as text, and says what it is."""
    engine = Engine.load(str(saved), device="cpu")
    memory = Engine(tiny_model(), byte_level())
    assert engine.eos_token_ids == {0}
    engine.eos_token_ids = memory.eos_token_ids = frozenset()
    assert engine.generate(PROMPT, max_new_tokens=9) == memory.generate(PROMPT, max_new_tokens=9)
    said = engine.describe()
    assert said["model"] == str(saved)
    assert (said["device"], said["dtype"], said["layers"]) == ("cpu", "float32", "3")
    assert said["attention"] == "langchain_pos_folded (by_layer_type mask, in parts)"


def test_dtype_and_attention_are_the_callers(saved: Path) -> None:
    """A named dtype and attention implementation are used; "auto" takes the checkpoint's."""
    engine = Engine.load(str(saved), dtype="bfloat16", attn_implementation="eager", device="cpu")
    assert (engine.describe()["dtype"], engine.model.dtype) == ("bfloat16", torch.bfloat16)
    assert engine.describe()["attention"].startswith("eager")
    assert engine.decode_branches(PROMPT, [[5, 6], [7]], max_new_tokens=6)


def test_shards_are_put_together(tmp_path: Path) -> None:
    """Weights in several files load; without one of them nothing is made up."""
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    byte_level().save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    engine = Engine.load(str(tmp_path), device="cpu")
    expected = Engine(model, byte_level()).generate(PROMPT, max_new_tokens=6)
    assert engine.generate(PROMPT, max_new_tokens=6).token_ids == expected.token_ids
    shards[1].unlink()
    with pytest.raises(ModelLoadError, match=shards[1].name):
        Engine.load(str(tmp_path), device="cpu")


def test_pickled_weights_only_when_asked_for(folder: Path) -> None:
    """Without safetensors the remedy names the setting; with it, either kind loads."""
    expected = Engine.load(str(folder), device="cpu").generate(PROMPT, max_new_tokens=6)
    same = Engine.load(str(folder), device="cpu", use_safetensors=False)
    assert same.generate(PROMPT, max_new_tokens=6) == expected
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"no \*\.safetensors file.*use_safetensors=False"):
        Engine.load(str(folder), device="cpu")
    pickled = Engine.load(str(folder), device="cpu", use_safetensors=False)
    assert pickled.generate(PROMPT, max_new_tokens=6) == expected


def truncate(folder: Path) -> None:
    """Cut the weights' end off."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def scribble(folder: Path) -> None:
    """Put something else where the weights were."""
    (folder / "model.safetensors").write_bytes(b"no weights at all")


def lose_a_tensor(folder: Path) -> None:
    """Save the weights without one of them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def lose_the_config(folder: Path) -> None:
    """Remove the configuration."""
    (folder / "config.json").unlink()


def break_the_config(folder: Path) -> None:
    """Make the configuration unreadable."""
    (folder / "config.json").write_text("{")


def break_the_tokenizer(folder: Path) -> None:
    """Make the tokenizer unreadable."""
    (folder / "tokenizer.json").write_text("{}")


def ask_for_code(folder: Path) -> None:
    """Make it a model that comes with code of its own."""
    edit(folder, model_type="theirs", auto_map={"AutoConfig": "configuration_theirs.Theirs"})
    (folder / "configuration_theirs.py").write_text("raise SystemExit('it ran')")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncate, "safetensors"),
        (scribble, "safetensors"),
        (lose_a_tensor, r"up_proj.*missing"),
        (lose_the_config, "config.json"),
        (break_the_config, "config.json"),
        (lambda folder: edit(folder, hidden_size=48), "size|shape"),
        (lambda folder: edit(folder, model_type=None, architectures=None), "model_type"),
        (lambda folder: edit(folder, model_type="no_such_model"), "no_such_model"),
        (lambda folder: edit(folder, model_type="vit", architectures=None), "vit|ViT"),
        (drop_tokenizer, "tokenizer"),
        (break_the_tokenizer, "tokenizer"),
        (ask_for_code, "trust_remote_code=True if you trust"),
    ],
)
def test_spoilt_folders_are_refused(
    folder: Path, spoil: Callable[[Path], object], said: str
) -> None:
    """The error names the folder, what is wrong with it, and what to do."""
    spoil(folder)
    with pytest.raises(ModelLoadError, match=said) as caught:
        Engine.load(str(folder), device="cpu")
    assert str(folder) in str(caught.value)
    assert "Remedy" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-such-org/no-such-model", "hub name 'no-such-org/no-such-model'.*check the spelling"),
        ("no-such-model", "hub name 'no-such-model'.*or give a local folder"),
        ("no such/model!", "no such folder"),
        ("no--such/model", "no such folder"),
        ("no-such/model.git", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("./no-such-folder", "no such folder"),
        ("~/no-such-folder", "no such folder"),
        ("pyproject.toml", "is a file, but not a GGUF file"),
        ("https://example.com/model", "no such folder"),
        ("", "no such folder"),
        ("~nobody-here/model", "cannot be looked up"),
        ("x" * 5000, "cannot be looked up"),
    ],
)
def test_unknown_names_are_refused(name: str, said: str) -> None:
    """What is neither a folder nor to be had from the hub is named, without a network."""
    with pytest.raises(ModelLoadError, match=said):
        Engine.load(name, device="cpu")


def test_a_similar_name_beside_it_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a folder and for a GGUF file; what cannot be a model is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "small").mkdir(parents=True)
    (tmp_path / "models" / "smell.txt").touch()
    (tmp_path / "models" / "small-q4.gguf").touch()
    for name, meant in (("./models/smal", "small"), (f"{tmp_path}/models/smll/", "small")):
        with pytest.raises(ModelLoadError, match=f"no such folder; did you mean '.*{meant}'"):
            Engine.load(name, device="cpu")
    with pytest.raises(ModelLoadError, match=r"did you mean 'models/small-q4\.gguf'"):
        Engine.load("models/smal-q4.gguf", device="cpu")


@pytest.mark.parametrize("dtype", ["float7", "int64", "no dtype", "torch.float32", "Tensor", ""])
def test_impossible_dtypes(saved: Path, dtype: str) -> None:
    """The error names what was given and what is allowed."""
    with pytest.raises(ModelLoadError, match=f"dtype='{dtype}'.*'bfloat16'"):
        Engine.load(str(saved), dtype=dtype)


@pytest.mark.parametrize("device", ["cuda:77", "quantum", "cpu:x", ""])
def test_impossible_devices(saved: Path, device: str) -> None:
    """The error names what was given and what is allowed, before weights are read."""
    with pytest.raises(ModelLoadError, match=f"device='{device}' cannot be used.*'cpu'"):
        Engine.load(str(saved), device=device)


def test_what_no_mask_isolates_is_refused_before_its_weights_are_read(folder: Path) -> None:
    """A model with layers of a strange kind, by its configuration; an encoder-decoder likewise."""
    AutoConfig.for_model("llama4_text", num_hidden_layers=4).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="layers of type chunked_attention"):
        Engine.load(str(folder), device="cpu")
    AutoConfig.for_model("t5", d_model=32).save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match="t5 is an encoder-decoder; a decoder-only"):
        Engine.load(str(folder), device="cpu")


def test_an_encoder_decoder_in_memory_is_refused() -> None:
    """Also one that is already loaded."""
    config = AutoConfig.for_model("t5", d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        Engine(AutoModelForSeq2SeqLM.from_config(config), byte_level())


def test_a_tokenizer_without_eos_or_chat_template(folder: Path) -> None:
    """Neither is needed: a sequence then ends at its budget or a stop sequence."""
    drop_tokenizer(folder)
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer)
    bare.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
    engine = Engine.load(str(folder), device="cpu")
    # The class that transformers takes for this family adds an EOS that the model does not know.
    assert engine.eos_token_ids == frozenset()
    assert engine.generate(PROMPT, max_new_tokens=7).finish_reason == "length"
    bound = engine.generate(PROMPT, max_new_tokens=7, constraint=Constraint("regex", "[0-9]{3}"))
    assert (bound.finish_reason, len(bound.text)) == ("stop", 3)


def test_a_python_tokenizer_is_refused_before_any_work() -> None:
    """A slow tokenizer has no tokenizer.json; the remedy is to convert it."""

    class Slow(PreTrainedTokenizer):
        @property
        def vocab_size(self) -> int:
            return 5

        def get_vocab(self) -> dict[str, int]:
            return {}

    with pytest.raises(UnsupportedModelError, match="Slow is a Python tokenizer"):
        Engine(AutoModelForCausalLM.from_config(tiny_model().config), Slow())


def test_every_eos_of_model_and_tokenizer_ends_a_sequence() -> None:
    """Chat models name several; the tokenizer's own counts as well."""
    model = tiny_model()
    model.generation_config.eos_token_id = [7, 9]
    assert Engine(model, byte_level()).eos_token_ids == {7, 9, byte_level().eos_token_id}


def test_slots_follow_from_the_memory_that_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it, by the bytes that a token's keys and values really take."""
    asked = []

    def available(device: torch.device) -> int:
        asked.append(device)
        return 1000 * 4096

    monkeypatch.setattr("langchain_pos.engine.sizing.available_memory", available)
    # MiniCPM3 keeps one compressed vector for all heads.
    per_token = {"qwen2": 3 * 2 * 2 * 8 * 4, "gpt2": 3 * 2 * 4 * 8 * 4, "minicpm3": 3 * 24 * 4}
    for name, slot_bytes in per_token.items():
        engine = Engine(tiny_model(name), byte_level())
        assert engine.forward.forest.max_slots == max(1000 * 4096 // 2 // slot_bytes, 1024)
    assert asked == [torch.device("cpu")] * 3
    assert Engine(tiny_model(), byte_level(), max_slots=77).forward.forest.max_slots == 77


@pytest.mark.parametrize("device", ["gpu", "GPU:0"])
def test_a_gpu_is_called_cuda(saved: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that many have tried is answered with the one that is meant, if there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelLoadError, match=f"device='{device}' .*PyTorch calls it 'cuda'"):
        Engine.load(str(saved), device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:1"])
def test_without_a_gpu_none_is_advised(
    saved: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has just failed is no remedy."""

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "empty", fails)
    with pytest.raises(ModelLoadError, match="finds no CUDA GPU here; give 'cpu', or 'auto'") as no:
        Engine.load(str(saved), device=device)
    assert "such as" not in str(no.value)


def test_loading_keeps_to_the_containers_processors(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads are limited when a model is loaded for the CPU."""
    limited = []
    monkeypatch.setattr("langchain_pos.engine.loading.limit_threads", lambda: limited.append(1))
    Engine.load(str(saved), device="cpu")
    assert limited


def larger(*added: str) -> PreTrainedTokenizerFast:
    """The usual tokenizer, with tokens added at its end."""
    copied = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copied, eos_token=EOS)
    tokenizer.add_tokens(list(added))
    return tokenizer


def test_a_tokenizer_of_another_model_is_refused() -> None:
    """Ordinary tokens without an embedding would fail in the middle of some answer."""
    model = tiny_model(vocab_size=380)
    with pytest.raises(UnsupportedModelError, match=r"4 tokens, such as .* \(380\).* it has 380"):
        Engine(model, byte_level())


def test_added_tokens_that_the_model_lacks_are_never_written() -> None:
    """They do no harm where nothing asks for them; a constraint that does is refused by name."""
    engine = Engine(tiny_model(), larger("<extra>", "<more>"))
    free = Constraint("regex", "[0-9]{3}")
    assert len(engine.generate(PROMPT, max_new_tokens=9, constraint=free).text) == 3
    for kind, text in (
        ("regex", "a <extra> [0-9]"),
        ("regex", r"\<more\>"),
        ("ebnf", 'root ::= "x" "<extra>"'),
        ("json_schema", '{"enum": ["<more>"]}'),
    ):
        with pytest.raises(InvalidRequestError, match=f"this {kind} .*'<(extra|more)>'"):
            engine.generate(PROMPT, max_new_tokens=9, constraint=Constraint(kind, text))


@pytest.mark.parametrize(("computes", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_bfloat16_checkpoint_is_computed_in_what_the_processor_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch, computes: bool, dtype: str
) -> None:
    """Unless a dtype is named; the description says which the processor computes in."""
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    for module in ("cpu.dtypes", "engine"):
        name = f"langchain_pos.engine.{module}.computes_in_bfloat16"
        monkeypatch.setattr(name, lambda: computes)
    said = Engine.load(str(folder), device="cpu").describe()
    assert said["dtype"] == dtype
    assert dtype in said["processor"]
    named = Engine.load(str(folder), device="cpu", dtype="bfloat16", pack_weights=False)
    assert named.describe()["dtype"] == "bfloat16"
