"""Tiny models of many families, with random weights that make attention matter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 384
WINDOW = 6
"""Sliding windows are narrower than any test's prompt."""
TRAINED = 64
"""Positions that the first of two sets of RoPE frequencies covers."""

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    # Tied to its input, a random model says the same token again and again.
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


@dataclass(frozen=True)
class Family:
    """A configuration, and what is particular about it.

    Attributes:
        name: how the table calls it.
        model_type: transformers' name of the family.
        settings: beyond or instead of the common ones.
        eager_only: transformers has no other attention for it.
    """

    name: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    eager_only: bool = False

    def model(self, seed: int = 0, **settings: Any) -> PreTrainedModel:
        """A model in fp32, the same for the same seed."""
        torch.manual_seed(seed)
        merged = {**_BASE, **self.settings, **settings}
        config = AutoConfig.for_model(self.model_type, **merged)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        scatter(model, seed)
        return model


def scatter(model: torch.nn.Module, seed: int = 0, std: float = 0.25) -> None:
    """Draw all weights anew, so large that every layer and position counts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.copy_(std * noise)
            else:  # norms stay near what they were, biases become more than zero
                parameter.add_(0.1 * noise)


_EAGER_ONLY = {"gemma2", "gpt_oss", "granite_swa", "vaultgemma"}
_EAGER_ONLY |= {"mamba", "mamba2", "falcon_mamba"}


def _f(name: str, model_type: str | None = None, **settings: Any) -> Family:
    return Family(name, model_type or name, settings, name in _EAGER_ONLY)


_HEAD = {"head_dim": 8}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "num_key_value_heads": None}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_PER_LAYER = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
_MIX = {"sliding_window": WINDOW, "layer_types": _MIXED}
_LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": TRAINED,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": TRAINED,
        "short_factor": [1.0, 1.1, 1.3, 1.5],
        "long_factor": [1.5, 3.0, 7.0, 20.0],
    },
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}

SUPPORTED = [
    _f("llama"),
    _f("qwen2"),
    _f(
        "qwen2 (sliding)",
        "qwen2",
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    _f("qwen2_moe", **_EXPERTS, shared_expert_intermediate_size=16),
    _f("qwen3", **_HEAD),
    _f("qwen3_moe", **_HEAD, **_EXPERTS),
    _f("mistral", sliding_window=WINDOW),
    _f("mistral (full)", "mistral", sliding_window=None),
    _f("ministral", **_MIX, **_HEAD),
    _f("ministral3", **_HEAD),
    _f("mixtral", **_LOCAL),
    _f("mixtral (sliding)", "mixtral", **_LOCAL, sliding_window=WINDOW),
    _f("gemma", **_HEAD),
    _f("gemma2", **_HEAD, sliding_window=WINDOW, query_pre_attn_scalar=8),
    _f("gemma3_text", **_HEAD, **_MIX, query_pre_attn_scalar=8),
    _f("gemma4_text", **_HEAD, **_MIX, **_PER_LAYER, global_head_dim=16),
    _f("vaultgemma", **_HEAD, sliding_window=WINDOW),
    _f("phi", num_key_value_heads=4),
    _f("phi3", pad_token_id=0),
    _f("phi3 (sliding)", "phi3", pad_token_id=0, sliding_window=WINDOW),
    _f("phi3 (longrope)", "phi3", pad_token_id=0, **_LONGROPE),
    _f("phimoe", num_local_experts=4, sliding_window=WINDOW),
    _f(
        "phimoe (longrope)",
        "phimoe",
        num_local_experts=4,
        rope_parameters=_LONGROPE["rope_parameters"] | {"short_mscale": 1.1, "long_mscale": 1.6},
    ),
    _f("llama (dynamic)", "llama", rope_parameters=_DYNAMIC),
    _f("olmo"),
    _f("olmo2"),
    _f("olmo3", **_MIX),
    _f("olmoe", num_experts=4, num_experts_per_tok=2),
    _f("granite"),
    _f("granitemoe", **_LOCAL),
    _f("granite_swa", **_MIX),
    _f("cohere"),
    _f("cohere2", **_MIX),
    _f("gpt2", **_GPT2),
    _f("gpt_bigcode", **_GPT2),
    _f("gpt_neox", num_key_value_heads=None),
    _f("gpt_oss", **_HEAD, **_MIX, **_LOCAL),
    _f("gptj", **_GPT2, rotary_dim=4),
    _f("codegen", **_GPT2, rotary_dim=4),
    _f("starcoder2"),
    _f("starcoder2 (sliding)", "starcoder2", sliding_window=WINDOW),
    _f("stablelm"),
    _f("smollm3", pad_token_id=0),
    _f("glm", **_HEAD, pad_token_id=0),
    _f("glm4", **_HEAD, pad_token_id=0),
    _f("glm4_moe", **_HEAD, **_ROUTED),
    _f("opt", word_embed_proj_dim=32, ffn_dim=48, num_key_value_heads=None),
    _f("exaone4", **_MIX, **_HEAD),
    _f("ernie4_5", **_HEAD),
    _f("hunyuan_v1_dense", **_HEAD),
    _f("nemotron", **_HEAD),
    _f("seed_oss", **_HEAD),
    _f("helium", **_HEAD),
    _f("arcee", **_HEAD),
    _f("apertus", **_HEAD),
    _f("persimmon", num_key_value_heads=None),
    _f("biogpt", num_key_value_heads=None),
    _f("falcon", new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    _f("falcon (multi-query)", "falcon", multi_query=True, alibi=False),
    _f("deepseek_v2", **_LATENT, **_ROUTED),
    _f("deepseek_v3", **_LATENT, **_ROUTED),
    _f("minicpm3", **_LATENT),
    _f("llama4_text", **_HEAD, num_local_experts=4, layer_types=["full_attention"] * 3),
    _f("nanochat", **_HEAD),
    _f("bitnet"),
    _f("jetmoe", num_local_experts=4, kv_channels=8),
    _f("bloom", n_layer=3, n_head=4),
    _f("mpt", d_model=32, n_heads=4, n_layers=3, max_seq_len=512),
    _f("xglm", d_model=32, ffn_dim=48, num_layers=3, attention_heads=4),
    _f("ctrl", num_key_value_heads=None),
    _f("doge"),
    _f("diffllama"),
    _f("cwm", **_HEAD, bos_token_id=1, eos_token_id=2),
    _f("gemma3n_text", **_HEAD, **_PER_LAYER, sliding_window=WINDOW, num_kv_shared_layers=0),
    _f(
        "gemma3n_text (shared)",
        "gemma3n_text",
        **_HEAD,
        **_PER_LAYER,
        sliding_window=WINDOW,
        num_hidden_layers=6,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 3,
    ),
    _f(
        "modernbert-decoder",
        sliding_window=WINDOW,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        **dict.fromkeys(("cls_token_id", "sep_token_id"), 0),
    ),
]

_CONV = ["conv", "full_attention", "conv"]
_LINEAR = ["linear_attention", "linear_attention", "full_attention"]
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_SHARED = {"shared_expert_intermediate_size": 16}
_MAMBA2 = {
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 16,
}

STATEFUL = [
    _f("lfm2", layer_types=_CONV),
    _f("lfm2_moe", layer_types=_CONV, **_EXPERTS, num_dense_layers=1),
    _f("qwen3_5", "qwen3_5_text", **_HEAD, layer_types=_LINEAR, **_DELTA),
    _f(
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        **_HEAD,
        **_EXPERTS,
        **_SHARED,
        layer_types=_LINEAR,
        **_DELTA,
    ),
    _f("qwen3_next", **_HEAD, **_EXPERTS, **_SHARED, layer_types=_LINEAR, **_DELTA),
    _f(
        "olmo_hybrid",
        layer_types=["linear_attention", "full_attention"] * 2,
        num_hidden_layers=4,
        **_DELTA,
    ),
    _f(
        "kimi_linear",
        **{**_LATENT, "q_lora_rank": None},
        **_HEAD,
        **_EXPERTS,
        layer_types=_LINEAR,
        mlp_layer_types=["dense", "sparse", "sparse"],
        linear_head_dim=8,
        linear_num_heads=4,
        n_routed_experts=4,
    ),
    _f(
        "granitemoehybrid",
        layer_types=_LINEAR,
        **_MAMBA2,
        **_LOCAL,
        shared_intermediate_size=16,
    ),
    _f("bamba", attn_layer_indices=[2], **_MAMBA2),
    _f("falcon_h1", **_MAMBA2, **_HEAD, mamba_d_ssm=64),
    _f(
        "nemotron_h",
        **_HEAD,
        layers_block_type=["linear_attention", "moe", "full_attention", "linear_attention", "mlp"],
        num_hidden_layers=5,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=16,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
    ),
    _f(
        "jamba",
        num_hidden_layers=4,
        num_experts=2,
        attn_layer_period=4,
        attn_layer_offset=2,
        mamba_d_state=8,
    ),
    _f(
        "zamba2",
        layers_block_type=["linear_attention", "hybrid"] * 2,
        num_hidden_layers=4,
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=8,
        mamba_headdim=8,
        chunk_size=16,
        num_mem_blocks=1,
        attention_hidden_size=64,
        attention_head_dim=16,
        num_key_value_heads=4,
        adapter_rank=4,
    ),
    _f("minimax", layer_types=["linear_attention", "full_attention"] * 2, num_hidden_layers=4),
    # Without any attention.
    _f("mamba", state_size=8),
    _f("mamba2", state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=16),
    _f("falcon_mamba", state_size=8),
]
"""Families with layers that carry a state from token to token."""

SUPPORTED += STATEFUL

_POSITIONS = "takes no positions"
_DIFFERS = "differs from the branch alone"

REFUSED = [
    (_f("rwkv"), "keeps a running state in tensors of its own"),
    (_f("recurrent_gemma", lru_width=32, attention_window_size=64), "ask the cache for none"),
    (_f("falcon (alibi)", "falcon", alibi=True), _POSITIONS),
    # Its attention hides what lies in later slots than the query, whatever the mask says.
    (
        _f(
            "gpt_neo",
            attention_types=[[["global", "local"], 1], [["global"], 1]],
            num_layers=3,
            num_heads=4,
            window_size=256,
        ),
        _DIFFERS,
    ),
    # It names a window that it does not use, except to cut the cache.
    (_f("moshi", sliding_window=WINDOW), _DIFFERS),
    (_f("openai-gpt", **_GPT2), "does not keep branches apart"),
]
