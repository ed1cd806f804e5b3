"""Weights of eight bits: nearly the same results, rows that stay independent, no silent loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from langchain_pos import ParallelReasoningLLM
from langchain_pos.engine.cpu.int8_kernel import GROUP, Kernel, compiled
from langchain_pos.engine.cpu.matrices import Int8Matrix, Missing, quantise
from langchain_pos.engine.cpu.weight_packing import require_quantization
from langchain_pos.engine.engine import Engine
from langchain_pos.errors import ModelLoadError, UnsupportedModelError
from tests.support.compilers import compiles_here
from tests.support.tiny import ids, tiny_engine, tiny_model
from tests.support.tokenizers import byte_level

runs_here = pytest.mark.skipif(not compiles_here(), reason="no AVX2, no Linux or no C compiler")


def model() -> PreTrainedModel:
    """A tiny one, in float32."""
    return tiny_model(vocab_size=len(byte_level()))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A tiny model and its tokenizer."""
    model().save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    return str(tmp_path)


def test_weights_are_kept_to_half_a_scale() -> None:
    """Of their group; a group of zeros stays zeros."""
    torch.manual_seed(1)
    weight = torch.randn(7, 3 * GROUP) * torch.logspace(-3, 3, 7)[:, None]
    weight[2, GROUP : 2 * GROUP] = 0
    whole, scales = quantise(weight)
    each = scales.repeat_interleave(GROUP, dim=-1)
    assert (whole * each - weight).abs().le(each * 0.501).all()
    assert scales.allclose(weight.view(7, 3, GROUP).abs().amax(-1) / 127)


def two_layers(features: int, dtype: torch.dtype) -> list[nn.Linear]:
    """Of 160 and 47 channels, the first with a bias."""
    torch.manual_seed(2)
    sizes = ((160, True), (47, False))
    return [nn.Linear(features, size, bias=bias).to(dtype) for size, bias in sizes]


def as_defined(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """The product by its formula, in float64."""
    missing = -layer.in_features % GROUP
    whole, scales = quantise(nn.functional.pad(layer.weight.detach(), (0, missing)))
    groups = nn.functional.pad(states.float(), (0, missing)).unflatten(-1, (-1, GROUP))
    units = groups.abs().amax(-1, keepdim=True) / 127
    rounded = (groups / units.clamp(min=1e-30)).round() * units
    exact = whole.double() * scales.double().repeat_interleave(GROUP, dim=-1)
    out = rounded.flatten(-2).double() @ exact.T
    return out if layer.bias is None else out + layer.bias.double()


@runs_here
@pytest.mark.parametrize("features", [GROUP, 96, 5 * GROUP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_yields_the_same_bits_whatever_rows_are_beside_it(
    dtype: torch.dtype, features: int
) -> None:
    """Alone, among a few and among many, even among rows that are a thousand times larger."""
    layers = two_layers(features, dtype)
    matrix = Int8Matrix(layers)
    states = torch.randn(1, 300, features).to(dtype)
    states[:, 17:] *= 1000
    with torch.inference_mode():
        together = matrix.of_all(states)
        for some in (*range(1, 10), 16, 17, 33, 128, 129, 299):
            for few, all_of_them in zip(matrix.of_all(states[:, :some]), together, strict=True):
                assert torch.equal(few, all_of_them[:, :some])
        for layer, found in zip(layers, together, strict=True):
            expected = as_defined(layer, states)
            assert found.dtype == dtype
            # A state that is just between two whole numbers may be rounded to either.
            error = (found - expected).norm() / expected.norm()
            assert error < (1e-4 if dtype == torch.float32 else 3e-3)


@runs_here
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int) -> None:
    """Each takes panels while there are any: one, a few and many of them."""
    torch.manual_seed(3)
    layer, states = nn.Linear(GROUP, 3000), torch.randn(200, GROUP)
    (expected,) = Int8Matrix([layer]).of_all(states)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        (found,) = Int8Matrix([layer]).of_all(states)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


@runs_here
def test_any_instructions_give_the_same_bits() -> None:
    """So a processor with the newest ones tests what older processors run."""
    layers = two_layers(2 * GROUP, torch.float32)
    states = torch.randn(11, 2 * GROUP)
    states[3, 5] = 1e4  # its group's others are rounded to nothing
    states[4] = 127.0  # the largest sums that a pair can have
    layers[0].weight.data[:, :GROUP] = 0.5
    found = {}
    names = ("AVX2", "AVX-VNNI", "AVX512-VNNI")
    known = torch.cpu.get_capabilities()
    here = (known["avx2"], known["avx_vnni"], known["avx512_vnni"])
    for name, has in zip(names, here, strict=True):
        if has:
            matrix = Int8Matrix(layers)
            matrix._kernel = Kernel(compiled(), name)
            found[name] = torch.cat(matrix.of_all(states), dim=-1)
    assert "AVX2" in found
    for other in found.values():
        assert torch.equal(other, found["AVX2"])


@runs_here
def test_the_default_dtype_of_the_process_changes_nothing() -> None:
    """For a moment it is another one while transformers loads a model in another thread."""
    layers, states = two_layers(GROUP, torch.float32), torch.randn(3, GROUP)
    expected = torch.cat(Int8Matrix(layers).of_all(states), dim=-1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = torch.cat(Int8Matrix(layers).of_all(states), dim=-1)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


@runs_here
def test_states_that_it_cannot_read_are_refused() -> None:
    """Not read as something else, beyond their end; and no rows are no rows."""
    matrix = Int8Matrix(two_layers(GROUP, torch.float32))
    for states in (torch.randn(2, GROUP).half(), torch.randn(2, GROUP, device="meta")):
        with pytest.raises(RuntimeError, match="do not move or convert"):
            matrix.of_all(states)
    assert matrix.of_all(torch.empty(1, 0, GROUP))[0].shape == (1, 0, 160)


@runs_here
def test_states_may_be_views() -> None:
    """The kernel reads row after row: it gets states that are in order."""
    matrix = Int8Matrix(two_layers(64, torch.bfloat16))
    plain = torch.randn(4, 64).bfloat16()
    shifted = torch.empty(4 * 64 + 1).bfloat16()[1:].view(4, 64).copy_(plain)
    wide = torch.zeros(4, 72).bfloat16()[:, :64].copy_(plain)
    turned = plain.T.contiguous().T
    (expected, _) = matrix.of_all(plain)
    for states in (shifted, wide, turned):
        assert torch.equal(matrix.of_all(states)[0], expected)


@runs_here
def test_a_row_that_is_not_finite_stays_so_and_alone() -> None:
    """The engine ends its request with an error; an answer from rounded infinities is none."""
    torch.manual_seed(3)
    matrix = Int8Matrix([nn.Linear(32, 8)])
    states = torch.randn(3, 32)
    states[1, 4] = torch.nan
    states[2, 4] = -torch.inf
    with torch.inference_mode():
        (found,) = matrix.of_all(states)
        (alone,) = matrix.of_all(states[:1])
    assert not found[1:].isfinite().any()
    assert torch.equal(found[:1], alone)


@runs_here
def test_a_branch_in_company_is_the_branch_alone() -> None:
    """Beside siblings, and beside others than these."""
    engine = tiny_engine(quantization="int8")
    prefix, openings = ids(40), [[7, 8], [9], [11, 12, 13]]
    together = engine.decode_branches(prefix, openings, max_new_tokens=12)
    for opening, branch in zip(openings, together, strict=True):
        (alone,) = engine.decode_branches(prefix, [opening], max_new_tokens=12)
        assert alone.token_ids == branch.token_ids
    others = engine.decode_branches(prefix, [openings[0], [40], [41, 42]], max_new_tokens=12)
    assert others[0].token_ids == together[0].token_ids


@runs_here
def test_a_loaded_model_says_so_and_cannot_be_saved(folder: str, tmp_path: Path) -> None:
    """The field of the runnable is enough; its logits are nearly the unquantised model's."""
    llm = ParallelReasoningLLM(model=folder, device="cpu", quantization="int8")
    count = 7 * model().config.num_hidden_layers + 1
    assert llm.engine.describe()["weights"] == f"{count} layers packed in int8"
    token_ids = torch.tensor([ids(30)])
    with torch.inference_mode():
        expected = Engine.load(folder, device="cpu").model(token_ids).logits
        found = llm.engine.model(token_ids).logits
    assert (found - expected).norm() < 0.1 * expected.norm()
    with pytest.raises(RuntimeError, match="without quantization"):
        llm.engine.model.save_pretrained(tmp_path / "again")
    llm.close()


@runs_here
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
        ({"quantization": "int4"}, "allowed are 'int8' and None"),
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


@runs_here
def test_models_without_use_for_it_are_refused() -> None:
    """With the reason: another device, weights of another kind."""
    require_quantization("int8", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelLoadError, match="is unknown"):
        require_quantization("int4", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelLoadError, match="on meta"):
        require_quantization("int8", nn.Sequential(nn.Linear(2, 2)).to("meta"))
    with pytest.raises(ModelLoadError, match=r"weights in torch\.float16"):
        require_quantization("int8", nn.Sequential(nn.Linear(2, 2)).half())
