"""Packed weights: the same layers, only faster; nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from langchain_pos.engine.cpu.weight_packing import can_pack, pack
from langchain_pos.engine.engine import Engine
from langchain_pos.errors import UnsupportedModelError
from tests.support.tiny import tiny_model
from tests.support.tokenizers import byte_level

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN"
)
BF16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
DTYPE = torch.bfloat16 if BF16 else torch.float32
"""What this processor multiplies: the logic is the same in either."""


def half() -> PreTrainedModel:
    """A tiny model, in bfloat16 where that can be packed."""
    return tiny_model(vocab_size=len(byte_level())).to(DTYPE)


@pytest.mark.parametrize("dtype", sorted({DTYPE, torch.float32}, key=str), ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_a_packed_layer_computes_what_the_layer_computes(
    rows: int, bias: bool, dtype: torch.dtype
) -> None:
    """Up to the dtype's rounding, for any number of rows, alone and with others."""
    torch.manual_seed(rows)
    allowed = 0.02 if dtype == torch.bfloat16 else 1e-4
    states = torch.randn(1, rows, 96).to(dtype)
    parent = Projections([nn.Linear(96, size, bias=bias) for size in (160, 32, 48)])
    parent = parent.to(dtype)
    with torch.inference_mode():
        expected = [layer(states) for layer in parent.layers()]
        assert pack(parent) == 3
        assert len({layer.matrix for layer in parent.layers()}) == 1  # type: ignore[attr-defined]
        for layer, wanted in zip(parent.layers(), expected, strict=True):
            torch.testing.assert_close(layer(states), wanted, rtol=allowed, atol=allowed)
        latest = parent.layers()[0].matrix._latest  # type: ignore[attr-defined,union-attr]
        assert latest == (None, ()), "nothing is kept once all have read it"


class Projections(nn.Module):
    """Layers that read the same states; `order` says which is called when."""

    def __init__(self, layers: list[nn.Linear], order: str = "abc") -> None:
        super().__init__()
        self.a, self.b, self.c = layers
        self.order = order
        self.between = False  # write to the states between two layers

    def layers(self) -> list[nn.Module]:
        return [self.a, self.b, self.c]

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> list[torch.Tensor]:
        states = torch.ones(*input_ids.shape, self.a.in_features, dtype=self.a.weight.dtype)
        done = []
        for name in self.order:
            done.append(getattr(self, name)(states))
            if self.between:
                states += 1
        return done


def test_only_what_reads_the_same_states_becomes_one_matrix() -> None:
    """Not what is called again, never, apart, or with states that were written to meanwhile."""

    def matrices(order: str, *, between: bool = False) -> int:
        parent = Projections([nn.Linear(8, 8) for _ in range(3)], order).to(DTYPE)
        parent.between = between
        pack(parent)
        return len({layer.matrix for layer in parent.layers()})  # type: ignore[attr-defined]

    assert matrices("abc") == 1
    assert matrices("ab") == 2
    assert matrices("abca") == 2
    assert matrices("abc", between=True) == 3
    assert matrices("x") == 3  # the trial fails: each for itself


def test_parts_of_a_matrix_answer_in_any_order_for_any_states() -> None:
    """What one of them keeps for the others is never taken for other states."""
    torch.manual_seed(1)
    parent = Projections([nn.Linear(16, size) for size in (8, 24, 32)]).to(DTYPE)
    plain = [nn.Linear(16, layer.out_features) for layer in parent.layers()]  # type: ignore[arg-type]
    for copy, layer in zip(plain, parent.layers(), strict=True):
        copy.load_state_dict(layer.state_dict())
        copy.to(DTYPE)
    with torch.inference_mode():
        pack(parent)
        for _ in range(40):
            one, other = torch.randn(2, 1, 3, 16).to(DTYPE)
            for index in torch.randint(0, 3, (4,)).tolist():
                for states in (one, other, one):
                    found = parent.layers()[index](states)
                    torch.testing.assert_close(found, plain[index](states), rtol=0.02, atol=0.02)


def test_packing_takes_every_linear_layer_and_fuses_gated_mlps() -> None:
    """Attention, MLP and output layers; the logits stay what they were."""
    model = half().eval()
    ids = torch.randint(0, 90, (1, 600))
    with torch.inference_mode():
        before = model(ids).logits.float()
        count = pack(model)
        after = model(ids).logits.float()
    assert count == 7 * model.config.num_hidden_layers + 1
    layer = model.model.layers[0]
    assert type(layer.mlp).__name__ == "PackedQwen2MLP"
    assert layer.mlp.gate_proj.matrix is layer.mlp.up_proj.matrix
    attention = layer.self_attn
    assert attention.q_proj.matrix is attention.k_proj.matrix is attention.v_proj.matrix
    assert attention.o_proj.matrix is not attention.q_proj.matrix
    assert (before - after).norm() < 0.02 * before.norm()


def test_a_gated_mlp_may_have_any_activation_but_does_nothing_else() -> None:
    """A forward that does more is left as it is."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=50,
        hidden_act="gelu",
    )
    model = LlamaForCausalLM(config).to(DTYPE).eval()
    states = torch.randn(1, 700, 32).to(DTYPE)
    with torch.inference_mode():
        before = model.model.layers[0].mlp(states)
        pack(model)
        after = model.model.layers[0].mlp(states)
    assert type(model.model.layers[0].mlp).__name__ == "PackedLlamaMLP"
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)

    class Other(type(half().model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model = half().eval()
    model.model.layers[0].mlp.__class__ = Other
    pack(model)
    assert type(model.model.layers[0].mlp) is Other
    assert type(model.model.layers[1].mlp).__name__ == "PackedQwen2MLP"


@pytest.mark.parametrize(
    ("dtype", "multiplies_bf16", "packs"),
    [
        (torch.bfloat16, True, True),
        (torch.bfloat16, False, False),  # oneDNN would convert it to float32 in each step
        (torch.float32, True, True),
        (torch.float32, False, True),
        (torch.float16, True, False),
    ],
    ids=str,
)
def test_what_is_packed_follows_from_dtype_and_processor(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, multiplies_bf16: bool, packs: bool
) -> None:
    """On a processor that is faked; a model elsewhere is never packed, nor without oneDNN."""
    flag = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: multiplies_bf16)
    monkeypatch.setattr(torch.ops, "mkldnn", flag)
    model = nn.Linear(2, 2).to(dtype)
    assert can_pack(model) is packs
    assert not can_pack(model.to("meta"))
    assert not can_pack(nn.Module())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(nn.Linear(2, 2).to(dtype))


def test_a_loaded_model_is_packed_and_a_given_one_is_not(tmp_path: Path) -> None:
    """Whoever holds the model himself may yet want to save or move it."""
    model = half()
    model.save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    assert Engine.load(str(tmp_path)).describe()["weights"].endswith("layers packed")
    assert Engine.load(str(tmp_path), pack_weights=False).describe()["weights"] == "as loaded"
    assert Engine(model, byte_level()).describe()["weights"] == "as loaded"
    model.save_pretrained(tmp_path / "again")


def test_a_packed_model_refuses_to_be_saved(tmp_path: Path) -> None:
    """Weights that are gone would be missing from the file."""
    engine = Engine(half(), byte_level(), pack_weights=True)
    with pytest.raises(RuntimeError, match="pack_weights=False"):
        engine.model.save_pretrained(tmp_path)


def test_a_model_that_does_not_bear_packing_is_loaded_again_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some model may use a layer's weight without calling the layer."""
    half().save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    original = Qwen2Attention.forward

    def reads_weights(self: Qwen2Attention, *args: Any, **kwargs: Any) -> Any:
        states, *rest = original(self, *args, **kwargs)
        return states + self.o_proj.weight[0].sum() * 0, *rest

    monkeypatch.setattr(Qwen2Attention, "forward", reads_weights)
    assert Engine.load(str(tmp_path)).describe()["weights"] == "as loaded"
    with pytest.raises(UnsupportedModelError):
        Engine(half(), byte_level(), pack_weights=True)


def test_branches_of_a_packed_model_are_isolated() -> None:
    """Siblings change nothing in a branch's tokens, packed or not."""
    engine = Engine(half(), byte_level(), pack_weights=True)
    prefix, openings = list(range(5, 45)), [[7, 8], [9], [11, 12, 13]]
    together = engine.decode_branches(prefix, openings, max_new_tokens=12)
    changed = engine.decode_branches(prefix, [openings[0], [40], [41, 42, 43]], max_new_tokens=12)
    assert changed[0].token_ids == together[0].token_ids


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_loaded_by_transformers_own_config(tmp_path: Path) -> None:
    """Its quantised layers stay as they are, though they call themselves bfloat16 `Linear`s."""
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    half().save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    quantized = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    engine = Engine.load(str(tmp_path), quantization_config=quantized)
    layers = engine.model.model.layers
    assert all(type(layer.mlp.up_proj) is nn.Linear for layer in layers)
    assert engine.describe()["probe"] == "passed"
    done = engine.decode_branches(list(range(5, 30)), [[7], [8, 9]], max_new_tokens=6)
    assert all(completion.token_ids for completion in done)
