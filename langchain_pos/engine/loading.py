"""Model and tokenizer by folder or hub name: checked, placed, and probed before they serve.

What a configuration says about a model is not enough to serve it, so every model is probed as well
(`probing.py`). What fails is refused with the reason; it is never wrong in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from langchain_pos.engine import attention
from langchain_pos.engine.cache.mixers import (
    has_attention,
    has_state,
    keeps_state,
    layer_types,
    wrap_mixers,
)
from langchain_pos.engine.cpu.dtypes import dtype_on_a_cpu
from langchain_pos.engine.cpu.threads import limit_threads
from langchain_pos.engine.cpu.weight_packing import check_quantization, require_quantization
from langchain_pos.engine.forward.alibi import place_biases
from langchain_pos.engine.forward.forward_pass import MaskForm
from langchain_pos.engine.gguf import unpack
from langchain_pos.engine.probing import probe, takes_parts
from langchain_pos.engine.sources import Source, explain, locate
from langchain_pos.errors import ModelLoadError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ISOLATABLE = {"full_attention", "sliding_attention", "moe", "mlp"}
_PROBE_WINDOW = 4


def choose_device(device: str) -> torch.device:
    """Name to device; "auto" is the first CUDA device, else Apple's MPS, else the CPU.

    Raises:
        ModelLoadError: the device does not exist here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        kind = device.lower().split(":")[0]
        if kind in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ModelLoadError(
                f"device={device!r} cannot be used: PyTorch finds no CUDA GPU here; give "
                "'cpu', or 'auto' for the best that is there"
            ) from error
        named = "PyTorch calls it 'cuda'; " if kind == "gpu" else ""
        raise ModelLoadError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); {named}allowed "
            "are 'auto', 'cpu', and what PyTorch offers on this machine, such as 'cuda:0' or 'mps'"
        ) from error
    return chosen


def check_int8_settings(
    quantization: str,
    device: str,
    dtype: str,
    pack_weights: bool | None,
    model_kwargs: Mapping[str, Any],
) -> None:
    """Refuse what goes with no weights of eight bits, before anything is loaded.

    Raises:
        ModelLoadError: a setting contradicts it, or its name is unknown.
    """
    check_quantization(quantization)
    others = [name for name in ("quantization_config", "device_map") if name in model_kwargs]
    if others:
        raise ModelLoadError(
            f"quantization={quantization!r} and {others[0]} exclude each other; give one"
        )
    if pack_weights is False:
        raise ModelLoadError(
            f"quantization={quantization!r} keeps weights packed, and pack_weights=False forbids "
            "it; leave one of them out"
        )
    if dtype == "float16":
        raise ModelLoadError(
            f"quantization={quantization!r} computes in 'float32' or 'bfloat16', not in "
            "dtype='float16'"
        )
    placed = choose_device(device)
    if placed.type != "cpu":
        raise ModelLoadError(
            f"quantization={quantization!r} is for CPUs, and device={device!r} is {placed}; give "
            "device='cpu', or model_kwargs={'quantization_config': …}"
        )


def default_quantization(model: PreTrainedModel) -> str | None:
    """For a model to which eight bits are enough: "int8", if that is fast on this machine.

    That is one from a GGUF file of quantised weights, which unpacked would take two to eight times
    the file's memory and be no more exact, and one whose config says `eight_bits_suffice`, as the
    shipped one's does. Not with AMX, whose matrix units multiply bfloat16: which is faster there is
    not measured.
    """
    enough = getattr(model, "was_quantised", False) or getattr(
        model.config, "eight_bits_suffice", False
    )
    if not enough or torch.cpu._is_amx_tile_supported() or model.device.type != "cpu":
        return None
    try:
        require_quantization("int8", model)
    except ModelLoadError:  # nobody has asked for it
        return None
    return "int8"


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        name: a folder, a GGUF file, a name on the Hugging Face hub, or `hub-name:file.gguf`.
            A GGUF file is unpacked first, which takes minutes once; see `engine/gguf.py`.
        dtype: "auto" (the checkpoint's, but float32 on a processor that does not compute in
            bfloat16), or a torch dtype's name such as "bfloat16".
        device: see `choose_device`. Not looked at when `device_map` is given.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that comes with the model. Off: it can do anything.
        use_safetensors: accept weights in safetensors only; pickled ones can run code.
        model_kwargs: for `from_pretrained`, such as `device_map` or `quantization_config`.

    Raises:
        ModelLoadError: nothing can be loaded from there, with the reason and the remedy.
        MissingExtraError: a GGUF file is to be unpacked, and a package is missing.
        UnsupportedModelError: its architecture cannot isolate branches.
    """
    source = locate(name, revision)
    if source.is_folder and use_safetensors and not list(Path(source.name).glob("*.safetensors")):
        raise ModelLoadError(
            f"{source.name} holds no *.safetensors file. Save the weights with "
            "model.save_pretrained(folder), or pass use_safetensors=False if you trust pickled "
            "weights (loading them can run code)"
        )
    wanted = getattr(torch, dtype, None) if dtype else None
    if dtype != "auto" and not (isinstance(wanted, torch.dtype) and wanted.is_floating_point):
        raise ModelLoadError(
            f"dtype={dtype!r} is not one that a model can have; allowed are 'auto', 'float32', "
            "'bfloat16' and 'float16'"
        )
    placed = None if "device_map" in model_kwargs else choose_device(device)
    unpacked = None
    if source.gguf is not None:
        unpacked = unpack(source.gguf, beside=not source.from_hub, check=refuse_state)
        if unpacked.folder is None and model_kwargs:
            raise ModelLoadError(
                f"{', '.join(model_kwargs)} cannot be used on {source.gguf}, whose unpacked form "
                "could not be saved anywhere; make room on the disk, or set XDG_CACHE_HOME to a "
                "writable folder"
            )
        source, revision = Source(str(unpacked.folder or source.gguf), is_folder=True), None
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        if unpacked is not None and unpacked.folder is None:
            model, tokenizer, missing = unpacked.model, unpacked.tokenizer, set()
            if dtype == "auto" and placed == torch.device("cpu"):
                dtype = dtype_on_a_cpu(model.dtype)
            model.to(dtype=model.dtype if dtype == "auto" else getattr(torch, dtype))
        else:
            config = AutoConfig.from_pretrained(source.name, **common)
            refuse_state(config)
            tokenizer = AutoTokenizer.from_pretrained(source.name, **common)
            quantised = getattr(
                config, "quantization_config", model_kwargs.get("quantization_config")
            )
            if dtype == "auto" and placed == torch.device("cpu") and quantised is None:
                dtype = dtype_on_a_cpu(getattr(config, "dtype", None))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.name,
                dtype=dtype,
                use_safetensors=True if use_safetensors else None,  # None: either kind
                output_loading_info=True,
                **common,
                **model_kwargs,
            )
            model, missing = loaded[0], loaded[1]["missing_keys"]
        if placed is not None:
            model.to(placed)
        if model.device.type == "cpu":
            limit_threads()
    except UnsupportedModelError:
        raise
    except Exception as error:  # transformers, safetensors and the hub raise a dozen kinds
        raise ModelLoadError(explain(source, error)) from error
    # What is missing, transformers fills with random weights and an empty tokenizer.
    if missing:
        names = sorted(missing)
        reason = f"{', '.join(names[:3])} ({len(names)} in all) missing from the weights"
        raise ModelLoadError(explain(source, ValueError(reason)))
    if not set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
        reason = "there is no tokenizer, or an empty one"
        raise ModelLoadError(explain(source, ValueError(reason)))
    if unpacked is not None:
        model.name_or_path = model.config._name_or_path = name
        model.unpacked_from, model.was_quantised = unpacked.origin, unpacked.is_quantised
    return model, tokenizer


def refuse_state(config: Any) -> None:
    """Refuse what cannot be isolated, as far as the configuration says.

    Raises:
        UnsupportedModelError: some layer is of another kind, or it is not a decoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{config.model_type} is an encoder-decoder; a decoder-only model is needed"
        )
    types = set(layer_types(config))
    strange = sorted(kind for kind in types - _ISOLATABLE if not keeps_state(kind))
    if strange:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of type {', '.join(strange)}: what such a layer sees "
            "or carries from token to token cannot be taken apart, so branches would leak into one "
            "another. Full and sliding-window attention are supported, and layers whose running "
            "state lies in transformers' own cache layers"
        )


def _refuse_model(model: PreTrainedModel) -> None:
    """Refuse what only the model's class tells."""
    kind = model.config.model_type
    if getattr(model, "_is_stateful", False) and not has_state(model.config):
        raise UnsupportedModelError(
            f"{kind} keeps a running state in tensors of its own. States are supported where they "
            "lie in transformers' cache layers, so that every branch can be given one"
        )
    text = model.config.get_text_config(decoder=True)
    if place_biases(model) or not has_attention(model.config):
        return
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if getattr(text, "alibi", False) or not takes_positions:
        raise UnsupportedModelError(
            f"{kind} takes no positions: it counts the tokens in the cache instead (ALiBi or the "
            "like), but branches share positions, so they would not be what they are alone. "
            "Supported is ALiBi that the model makes in a method of its own, such as Bloom's"
        )


@dataclass(frozen=True)
class Found:
    """How a model passes the probe.

    Attributes:
        mask_form: how it takes its mask.
        slot_bytes: bytes that the keys and values of one token take.
        in_parts: whether it can be attended to in parts; see `forest/parts.py`.
    """

    mask_form: MaskForm
    slot_bytes: int
    in_parts: bool = False


def prepare(model: PreTrainedModel, attn_implementation: str) -> Found:
    """Set the attention implementation and find the mask form that pass the probe.

    Args:
        model: a transformers causal language model; put in eval mode.
        attn_implementation: "auto" tries ours, then
            "sdpa", then "eager"; otherwise that one.

    Raises:
        UnsupportedModelError: nothing passes, with what went wrong in each try.
    """
    refuse_state(model.config)
    _refuse_model(model)
    attention.register()
    model.eval()
    try:
        wrap_mixers(model)
    except Exception as error:  # whatever it trips over is the finding
        raise UnsupportedModelError(
            f"{model.config.model_type} has layers with a running state, and they do not run with "
            f"transformers' own cache layers: {' '.join(str(error).split())[:300]}"
        ) from error
    if attn_implementation != "auto":
        names = [attn_implementation]
    else:
        names = [attention.FOLDED, "sdpa"] if getattr(model, "_supports_sdpa", False) else []
        names += ["eager"]
    text = model.config.get_text_config(decoder=True)
    forms: list[MaskForm] = ["single"]
    if getattr(text, "layer_types", None):
        forms.insert(0, "by_layer_type")
    failures = []
    original = model.config._attn_implementation
    for name in names:
        for form in forms:
            try:
                model.set_attn_implementation(name)
                with _short_window(text):
                    slot_bytes = probe(model, form)
                    in_parts = name == attention.FOLDED and takes_parts(model, form)
            except Exception as error:  # noqa: BLE001  whatever it trips over is the finding
                failures.append(f"{name}, {form} mask: {' '.join(str(error).split())[:200]}")
                continue
            return Found(form, slot_bytes, in_parts)
    model.set_attn_implementation(original)
    raise UnsupportedModelError(
        f"{model.config.model_type} does not keep branches apart. Tried: " + "; ".join(failures)
    )


@contextmanager
def _short_window(config: Any) -> Iterator[None]:
    """A sliding window that a few tokens overrun, for the model's own mask as well as for ours."""
    width = getattr(config, "sliding_window", None)
    if not width:
        yield
        return
    config.sliding_window = min(width, _PROBE_WINDOW)
    try:
        yield
    finally:
        config.sliding_window = width
