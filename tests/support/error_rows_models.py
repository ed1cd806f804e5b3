"""What `test_errors_table.py` tries for models and what breaks while an answer is written."""

from __future__ import annotations

import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, RwkvConfig, RwkvForCausalLM

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.errors import (
    InvalidRequestError,
    MissingExtraError,
    ModelLoadError,
    NonFiniteLogitsError,
    OutOfSlotsError,
    RequestCancelled,
    UnsupportedModelError,
)
from tests.support.error_rows import ROWS, Outcome, row
from tests.support.gguf_files import write_gguf
from tests.support.scripted import (
    STUDENTS,
    Halt,
    Script,
    byte_level,
    random_llm,
    scripted_llm,
    tiny_model,
    wait_to_be_cancelled,
)

__all__ = ["ROWS"]

# ------------------------------------------------------------------- the model


def save(folder: Path, *, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A tiny model with its tokenizer in a folder."""
    tiny_model().save_pretrained(folder)
    (tokenizer or byte_level()).save_pretrained(folder)
    return folder


def not_loaded(said: str, **fields: Any) -> BaseException:
    """The error of a question to a model that cannot be loaded."""
    llm = ParallelReasoningLLM(**fields)
    with pytest.raises(ModelLoadError, match=said) as caught:
        llm.invoke("Who?")
    with pytest.raises(ModelLoadError):  # and again: nothing half loaded is kept
        llm.invoke("Who?")
    return caught.value


@row("wrong-prompts-file")
def _(folder: Path) -> Outcome:
    save(folder)
    (folder / "parallel_reasoning.json").write_text('{"plan": "no place for it"}')
    return not_loaded("parallel_reasoning.json", model=str(folder))


@row("unknown-model")
def _(folder: Path) -> Outcome:
    return not_loaded("no such folder", model=str(folder / "nothing" / "here"))


@row("unknown-hub-name")
def _(folder: Path, patch: pytest.MonkeyPatch) -> Outcome:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return not_loaded("the hub name 'nobody/nothing'.*spelling", model="nobody/nothing")


@row("gguf-not-there")
def _(folder: Path) -> Outcome:
    return not_loaded("there is no such file at", model=str(folder / "x.gguf"))


@row("gguf-several")
def _(folder: Path) -> Outcome:
    for name in ("a.gguf", "b.gguf"):
        (folder / name).write_bytes(b"")
    return not_loaded("a.gguf, b.gguf", model=str(folder))


@row("gguf-damaged")
def _(folder: Path) -> Outcome:
    file = folder / "x.gguf"
    file.write_bytes(b"not at all")
    not_loaded("is not a GGUF file", model=str(file))
    file.write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    return not_loaded("damaged or cut off", model=str(file))


@row("gguf-unreadable")
def _(folder: Path) -> Outcome:
    file = write_gguf(folder / "x.gguf", architecture="oddity")
    return not_loaded("'oddity', quantisation F32", model=str(file))


@row("no-gguf")
def _(folder: Path, patch: pytest.MonkeyPatch) -> Outcome:
    file = write_gguf(folder / "x.gguf")
    patch.setattr("langchain_pos.engine.gguf.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match="pip install gguf accelerate") as caught:
        ParallelReasoningLLM(model=str(file)).invoke("Who?")
    return caught.value


@row("no-safetensors")
def _(folder: Path) -> Outcome:
    (save(folder) / "model.safetensors").unlink()
    return not_loaded("save_pretrained", model=str(folder))


@row("corrupt-weights")
def _(folder: Path) -> Outcome:
    weights = save(folder) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"not at all")
    not_loaded("present and complete", model=str(folder))
    weights.write_bytes(whole[: len(whole) // 2])
    return not_loaded("present and complete", model=str(folder))


@row("missing-weights")
def _(folder: Path) -> Outcome:
    weights = save(folder) / "model.safetensors"
    tensors = load_file(weights)
    name = next(key for key in tensors if "q_proj" in key)
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    return not_loaded(re.escape(name), model=str(folder))


@row("unknown-device")
def _(folder: Path) -> Outcome:
    not_loaded("float32", model=str(save(folder)), dtype="float31")
    return not_loaded("'auto'", model=str(folder), device="abacus")


@row("quantization")
def _(folder: Path) -> Outcome:
    name = str(save(folder))
    not_loaded("allowed are 'int8' and None", model=name, quantization="int4")
    return not_loaded("pack_weights=False", model=name, quantization="int8", pack_weights=False)


@row("unsupported-architecture")
def _() -> Outcome:
    config = RwkvConfig(vocab_size=512, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(UnsupportedModelError, match="rwkv") as caught:
        ParallelReasoningLLM.from_model(RwkvForCausalLM(config), byte_level())
    return caught.value


@row("no-eos")
def _() -> Outcome:
    backend = type(byte_level().backend_tokenizer).from_str(byte_level().backend_tokenizer.to_str())
    llm = random_llm(PreTrainedTokenizerFast(tokenizer_object=backend), allow_decline=False)
    assert llm.engine.eos_token_ids == frozenset()
    result = llm.invoke("Who?")
    assert {b.finish_reason for b in result.branches} <= {"length", "error", "stop"}
    assert result.conclusion
    assert llm.invoke("Who?", mode="sequential").finish_reason == "length"
    return result


@row("no-chat-template")
def _() -> Outcome:
    llm, script = scripted_llm(STUDENTS)
    assert not llm.engine.tokenizer.chat_template
    result = llm.invoke("Who?")
    assert script.passes[0][0].text == "Question: Who?\n\nAnswer:\n"
    return result


@row("refusing-chat-template")
def _() -> Outcome:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level().backend_tokenizer, eos_token=byte_level().eos_token
    )
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    llm, script = scripted_llm(STUDENTS, tokenizer=tokenizer)
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        llm.invoke("Who?")
    assert script.passes == []
    return caught.value


@row("no-pickle")
def _() -> Outcome:
    with pytest.raises(TypeError, match="make it with model=") as caught:
        pickle.dumps(scripted_llm(STUDENTS)[0])
    assert pickle.loads(pickle.dumps(ParallelReasoningLLM(model="a/b"))).model == "a/b"
    return caught.value


# -------------------------------------------------------- while it is written


def raised(kind: type[BaseException], llm: ParallelReasoningLLM, **settings: Any) -> BaseException:
    """The error of a question, after which nothing is held and another model's pass works."""
    with pytest.raises(kind) as caught:
        llm.invoke("Who?", **settings)
    assert llm.engine.slots_in_use == 0
    return caught.value


@row("nan-in-plan")
def _() -> Outcome:
    llm, _ = scripted_llm({"Answer:\n": f"Le{Script.NAN}"})
    raised(NonFiniteLogitsError, llm, mode="sequential")
    return raised(NonFiniteLogitsError, llm)


@row("nan-in-branch")
def _() -> Outcome:
    llm, _ = scripted_llm({**STUDENTS, "####Ann:": f" GPA{Script.NAN}"})
    result = llm.invoke("Who?")
    ann, ben = result.branches
    assert (ann.text, ann.finish_reason, "NaN" in str(ann.error)) == ("GPA", "error", True)
    assert (ben.finish_reason, result.finish_reason) == ("stop", "stop")
    return result


@row("nan-in-conclusion")
def _() -> Outcome:
    llm, _ = scripted_llm({**STUDENTS, "####%%%%\n": Script.NAN})
    result = llm.invoke("Who?")
    assert (result.finish_reason, "NaN" in str(result.error)) == ("error", True)
    assert [b.finish_reason for b in result.branches] == ["stop", "stop"]
    return result


@row("empty-branch")
def _() -> Outcome:
    llm, _ = scripted_llm({**STUDENTS, "####Ann:": "\n"})
    result = llm.invoke("Who?")
    assert result.branches[0].finish_reason == "error"
    assert "without writing any text" in str(result.branches[0].error)
    return result


@row("empty-conclusion")
def _() -> Outcome:
    llm, _ = scripted_llm({"Answer:\n": ""})
    ordinary = llm.invoke("Who?", mode="sequential")
    assert (ordinary.finish_reason, bool(ordinary.error)) == ("error", True)
    llm, _ = scripted_llm({**STUDENTS, "####%%%%\n": ""})
    result = llm.invoke("Who?")
    assert (result.finish_reason, bool(result.error)) == ("error", True)
    return result


@row("budget-ends")
def _() -> Outcome:
    llm, _ = scripted_llm({**STUDENTS, "####Ann:": " …", "####%%%%\n": "…"})
    result = llm.invoke("Who?")
    assert result.branches[0].finish_reason == result.finish_reason == "length"
    assert result.conclusion
    return result


def failing(error: Exception) -> tuple[ParallelReasoningLLM, Script]:
    """A model whose 20th pass fails once."""
    llm, script = scripted_llm(STUDENTS)

    def before() -> None:
        if len(script.passes) == 20:
            script.before = lambda: None
            raise error

    script.before = before
    return llm, script


@row("out-of-memory")
def _() -> Outcome:
    for kind in (MemoryError("no memory"), torch.OutOfMemoryError("CUDA out of memory")):
        llm, _ = failing(kind)
        error = raised(OutOfSlotsError, llm)
        assert llm.invoke("Who?").conclusion == "name: Ben"
    llm, _ = failing(MemoryError("no memory"))
    outcomes = llm.batch(["Who?", {"question": "Who?", "steps": ["Ann"]}], return_exceptions=True)
    assert sorted(isinstance(outcome, OutOfSlotsError) for outcome in outcomes) == [False, True]
    return error


@row("model-fails")
def _() -> Outcome:
    llm, _ = failing(RuntimeError("a bug in the model's own code"))
    error = raised(RuntimeError, llm)
    assert llm.invoke("Who?").conclusion == "name: Ben"
    return error


def cancelled_in(stage: str) -> Outcome:
    """The next question's answer after a stream was closed in a stage."""
    llm, script = scripted_llm(STUDENTS)
    wait_to_be_cancelled(llm, script, stage)
    chunks = llm.stream("Who?")
    next(chunk for chunk in chunks if chunk.stage == stage and chunk.delta)
    assert llm.engine.slots_in_use > 0
    chunks.close()  # type: ignore[attr-defined]
    assert llm.engine.slots_in_use == 0
    return llm.invoke("Who?")


@row("cancel-plan")
def _() -> Outcome:
    return cancelled_in("plan")


@row("cancel-expand")
def _() -> Outcome:
    return cancelled_in("expand")


@row("cancel-conclude")
def _() -> Outcome:
    return cancelled_in("conclude")


@row("cancelled-elsewhere")
def _() -> Outcome:
    llm, script = scripted_llm(STUDENTS)
    halt = Halt(script, at=3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(llm.invoke, "Who?")
        halt.inside.wait()
        llm.engine.scheduler._live[0].cancel()
        halt.go_on.set()
        with pytest.raises(RequestCancelled) as caught:
            waiting.result()
    assert llm.engine.slots_in_use == 0
    return caught.value


@row("two-threads")
def _() -> Outcome:
    llm, _ = scripted_llm(STUDENTS)
    both = threading.Barrier(2)

    def ask(_: int) -> ReasoningResult:
        both.wait()
        return llm.invoke("Who?")

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, range(2))
    assert first.text == second.text
    assert llm.engine.slots_in_use == 0
    return first
