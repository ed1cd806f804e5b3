"""Weights of eight bits: nearly the same results, rows that stay independent, no silent loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from langchain_pos import ParallelReasoningLLM
from langchain_pos.engine.cpu import matrices
from langchain_pos.engine.cpu.matrices import (
    Int8Matrix,
    Matrix,
    Missing,
    WidenedInt8Matrix,
    quantise,
    split,
)
from langchain_pos.engine.cpu.weight_packing import (
    multiplies_int8,
    require_quantization,
    widens_int8,
)
from langchain_pos.engine.engine import Engine
from langchain_pos.errors import ModelLoadError, UnsupportedModelError
from tests.support.tiny import ids, tiny_engine, tiny_model
from tests.support.tokenizers import byte_level

runs_here = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not multiplies_int8(),
    reason="this processor or PyTorch does not multiply integers of eight bits",
)

widens_here = pytest.mark.skipif(not widens_int8(), reason="this processor has no AVX2")
KINDS = [
    pytest.param(Int8Matrix, marks=runs_here),
    pytest.param(WidenedInt8Matrix, marks=widens_here),
]
NAMES = [
    pytest.param("int8", marks=widens_here),
    pytest.param("int8_weight_only", marks=widens_here),
]


def model() -> PreTrainedModel:
    """A tiny one, in float32."""
    return tiny_model(vocab_size=len(byte_level()))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A tiny model and its tokenizer."""
    model().save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    return str(tmp_path)


def test_weights_and_states_are_kept_to_half_a_scale() -> None:
    """Of a channel and of a row; a row of zeros stays zeros, and a channel too."""
    torch.manual_seed(1)
    weight = torch.randn(7, 33) * torch.logspace(-3, 3, 7)[:, None]
    weight[2] = 0
    whole, scales = quantise(weight)
    assert (whole * scales[:, None] - weight).abs().le(scales[:, None] * 0.501).all()
    halves, scales = split(weight)
    upper, lower = (halves.int() - 128).chunk(2)
    assert ((128 * upper + lower) * scales - weight).abs().le(scales * 0.501).all()
    assert scales.ravel().allclose(weight.abs().amax(-1) / (127 * 128))


def two_layers(features: int, dtype: torch.dtype) -> list[nn.Linear]:
    """Of 160 and 48 channels, the first with a bias."""
    torch.manual_seed(2)
    sizes = ((160, True), (48, False))
    return [nn.Linear(features, size, bias=bias).to(dtype) for size, bias in sizes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_yields_the_same_bits_whatever_rows_are_beside_it(
    dtype: torch.dtype, kind: type[Matrix]
) -> None:
    """Alone, among a few and among many, even among rows that are a thousand times larger."""
    layers = two_layers(96, dtype)
    matrix = kind(layers)
    most = 300 if kind is Int8Matrix else matrices._WIDENED_ROWS  # then another kernel sums
    states = torch.randn(1, most, 96).to(dtype)
    states[:, 17:] *= 1000
    with torch.inference_mode():
        together = matrix.of_all(states)
        for some in (1, 2, 3, 8, 16, 17, 33, most - 1):
            for few, all_of_them in zip(matrix.of_all(states[:, :some]), together, strict=True):
                assert torch.equal(few, all_of_them[:, :some])
        for layer, found in zip(layers, together, strict=True):
            expected = layer(states)
            assert found.dtype == dtype
            assert (found - expected).float().norm() < 0.01 * expected.float().norm()


@widens_here
@pytest.mark.parametrize("features", [33, 40, 96])
@pytest.mark.parametrize("rows", [1, 5, 200])
def test_weights_are_widened_by_any_kernel_alike(
    features: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For few rows and for many; and where rows of weights end in the midst of what one reads."""
    layers = two_layers(features, torch.float32)
    matrix, states = WidenedInt8Matrix(layers), torch.randn(rows, features)
    found = torch.cat(matrix.of_all(states), dim=-1)
    exact = torch.cat([layer(states) for layer in layers], dim=-1)
    assert (found - exact).norm() < 0.01 * exact.norm()
    monkeypatch.setattr(matrices, "_WIDENED_ROWS", 0 if rows < 100 else 1000)
    other = torch.cat(matrix.of_all(states), dim=-1)
    assert (found - other).abs().max() <= 2**-7 * exact.abs().max()  # bfloat16, rounded once


@widens_here
def test_states_may_be_views() -> None:
    """The kernel reads where it wants to: it gets states that are aligned and in order."""
    matrix = WidenedInt8Matrix(two_layers(64, torch.bfloat16))
    plain = torch.randn(4, 64).bfloat16()
    shifted = torch.empty(4 * 64 + 1).bfloat16()[1:].view(4, 64).copy_(plain)
    wide = torch.zeros(4, 72).bfloat16()[:, :64].copy_(plain)
    turned = plain.T.contiguous().T
    (expected, _) = matrix.of_all(plain)
    for states in (shifted, wide, turned):
        assert torch.equal(matrix.of_all(states)[0], expected)


@widens_here
def test_scales_are_those_that_the_kernel_knows() -> None:
    """A scale that was rounded after the weights would be wrong by up to 0.4 percent."""
    torch.manual_seed(4)
    weight = torch.randn(50, 64)
    _, scales = quantise(weight, torch.bfloat16)
    assert torch.equal(scales, scales.bfloat16().float())
    layer = nn.Linear(64, 50, bias=False)
    layer.weight.data = weight
    matrix = WidenedInt8Matrix([layer])
    (columns,) = matrix.of_all(torch.eye(64))
    bound = scales[:, None] * 0.501 + weight.abs() * 2**-8  # what a bfloat16 result may lose
    assert ((columns.T - weight).abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_stays_so_and_alone(kind: type[Matrix]) -> None:
    """The engine ends its request with an error; an answer from rounded infinities is none."""
    torch.manual_seed(3)
    matrix = kind([nn.Linear(32, 8)])
    states = torch.randn(3, 32)
    states[1, 4] = torch.nan
    states[2, 4] = torch.inf
    with torch.inference_mode():
        (found,) = matrix.of_all(states)
        (alone,) = matrix.of_all(states[:1])
    assert not found[1:].isfinite().any()
    assert torch.equal(found[:1], alone)


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_in_company_is_the_branch_alone(name: str) -> None:
    """Beside siblings, and beside others than these."""
    engine = tiny_engine(quantization=name)
    prefix, openings = ids(40), [[7, 8], [9], [11, 12, 13]]
    together = engine.decode_branches(prefix, openings, max_new_tokens=12)
    for opening, branch in zip(openings, together, strict=True):
        (alone,) = engine.decode_branches(prefix, [opening], max_new_tokens=12)
        assert alone.token_ids == branch.token_ids
    others = engine.decode_branches(prefix, [openings[0], [40], [41, 42]], max_new_tokens=12)
    assert others[0].token_ids == together[0].token_ids


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_model_says_so_and_cannot_be_saved(folder: str, tmp_path: Path, name: str) -> None:
    """The field of the runnable is enough; its logits are nearly the unquantised model's."""
    llm = ParallelReasoningLLM(model=folder, device="cpu", quantization=name)
    count = 7 * model().config.num_hidden_layers + 1
    meant = name if multiplies_int8() else "int8_weight_only"
    assert llm.engine.describe()["weights"] == f"{count} layers packed in {meant}"
    token_ids = torch.tensor([ids(30)])
    with torch.inference_mode():
        expected = Engine.load(folder, device="cpu").model(token_ids).logits
        found = llm.engine.model(token_ids).logits
    assert (found - expected).norm() < 0.1 * expected.norm()
    with pytest.raises(RuntimeError, match="without quantization"):
        llm.engine.model.save_pretrained(tmp_path / "again")
    llm.close()


@widens_here
def test_a_model_that_reads_its_weights_itself_is_refused(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not there can be neither read nor replaced by something else in silence."""
    weight = Missing((2, 3), torch.bfloat16)
    assert (weight.shape, weight.dtype, weight.device.type) == ((2, 3), torch.bfloat16, "cpu")
    original = Qwen2Attention.forward

    def reads_weights(self: Qwen2Attention, *args: Any, **kwargs: Any) -> Any:
        states, *rest = original(self, *args, **kwargs)
        return states + self.o_proj.weight[0].sum() * 0, *rest

    monkeypatch.setattr(Qwen2Attention, "forward", reads_weights)
    with pytest.raises(UnsupportedModelError, match="eight bits only"):
        Engine.load(folder, device="cpu", quantization="int8")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization": "int4"}, "allowed are 'int8', 'int8_weight_only' and None"),
        ({"pack_weights": False}, "pack_weights=False forbids it"),
        ({"dtype": "float16"}, "'float32' or 'bfloat16'"),
        ({"device": "meta"}, "is for CPUs"),
        ({"quantization_config": object()}, "exclude each other"),
        ({"device_map": "auto"}, "exclude each other"),
    ],
)
def test_settings_that_contradict_it_are_refused(settings: dict[str, Any], said: str) -> None:
    """Before anything is loaded, with what to do."""
    with pytest.raises(ModelLoadError, match=said):
        Engine.load("no/such-model", **{"device": "cpu", "quantization": "int8", **settings})


def test_models_and_processors_without_use_for_it_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the reason: another device, no instructions for it, weights of another kind."""
    name = "langchain_pos.engine.cpu.weight_packing.multiplies_int8"
    monkeypatch.setattr(name, lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert require_quantization("int8", nn.Sequential(nn.Linear(2, 2))) == "int8"
    with pytest.raises(ModelLoadError, match="is unknown"):
        require_quantization("int4", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelLoadError, match="on meta"):
        require_quantization("int8", nn.Sequential(nn.Linear(2, 2)).to("meta"))
    with pytest.raises(ModelLoadError, match=r"weights in torch\.float16"):
        require_quantization("int8", nn.Sequential(nn.Linear(2, 2)).half())
    monkeypatch.setattr(name, lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert require_quantization("int8", nn.Sequential(nn.Linear(2, 2))) == "int8_weight_only"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(ModelLoadError, match=r"AVX2 \(or, faster, AVX512-VNNI\)"):
        require_quantization("int8", nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_what_the_processor_multiplies_is_asked_and_tried(
    has: bool, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that is faked: it may have instructions that oneDNN is kept from using."""
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(_is_vnni_supported=lambda: has))
    monkeypatch.setattr("langchain_pos.engine.cpu.weight_packing.sums_exactly", lambda: exact)
    assert multiplies_int8() is (has and exact)


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE_VNNI"])
def test_sums_that_overflow_are_noticed(limit: str) -> None:
    """In a process of its own, whose oneDNN may use no more than that."""
    if not torch.cpu._is_vnni_supported():
        pytest.skip("this processor has no instructions to be kept from")
    code = "from langchain_pos.engine.cpu.matrices import sums_exactly; print(sums_exactly())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(limit != "AVX2")
