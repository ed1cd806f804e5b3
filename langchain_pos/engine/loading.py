"""Model and tokenizer by folder or hub name: checked, placed, and probed before they serve.

No mask can isolate branches in a model that keeps a running state, and not every model takes a
four-dimensional mask the same way. So every model is probed: three short branches in company
against the same branches alone, and siblings' keys and values overwritten. What fails is refused
with the reason; it is never wrong in silence.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from langchain_pos.engine import attention
from langchain_pos.engine.forward import ForwardPass, MaskForm
from langchain_pos.engine.segments import Ledger
from langchain_pos.errors import ModelLoadError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ISOLATABLE = {"full_attention", "sliding_attention"}


def choose_device(device: str) -> torch.device:
    """ "auto" is the first CUDA device, else Apple's MPS, else the CPU.

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
        raise ModelLoadError(
            f"device={device!r} cannot be used here ({str(error).splitlines()[0]}); allowed are "
            "'auto', 'cpu', and what torch offers on this machine, such as 'cuda' or 'cuda:1'"
        ) from error
    return chosen


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
        name: a folder, or a name on the Hugging Face hub.
        dtype: "auto" (the checkpoint's), or a torch dtype's name such as "bfloat16".
        device: see `choose_device`. Not looked at when `device_map` is given.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that comes with the model. Off: it can do anything.
        use_safetensors: accept weights in safetensors only; pickled ones can run code.
        model_kwargs: for `from_pretrained`, such as `device_map` or `quantization_config`.

    Raises:
        ModelLoadError: nothing can be loaded from there, with the reason and the remedy.
        UnsupportedModelError: its architecture cannot isolate branches.
    """
    where = Path(name).expanduser()
    source = str(where) if where.is_dir() else name
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    if where.is_file() or (not where.is_dir() and os.sep in name and name.count("/") != 1):
        raise ModelLoadError(
            f"model={name!r} is no folder; give a folder with config.json, or a hub name such as "
            "'Qwen/Qwen2.5-7B-Instruct'"
        )
    if where.is_dir() and use_safetensors and not list(where.glob("*.safetensors")):
        raise ModelLoadError(
            f"{source} holds no *.safetensors file. Save the weights with "
            "model.save_pretrained(folder), or pass use_safetensors=False if you trust pickled "
            "weights (loading them can run code)"
        )
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ModelLoadError(
            f"dtype={dtype!r} is no torch dtype; allowed are 'auto', 'float32', 'bfloat16', 'float16'"
        )
    placed = None if "device_map" in model_kwargs else choose_device(device)
    try:
        config = AutoConfig.from_pretrained(source, **common)
        refuse_state(config)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=use_safetensors, **common, **model_kwargs
        )
    except UnsupportedModelError:
        raise
    except Exception as error:  # transformers, safetensors and the hub raise a dozen kinds
        raise ModelLoadError(_explain(source, where.is_dir(), error)) from error
    if placed is not None:
        model = model.to(placed)
    return model, tokenizer


def _explain(source: str, is_folder: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    kind = f"the folder {source}" if is_folder else f"the hub name {source!r}"
    remedy = (
        "check that config.json, tokenizer.json and *.safetensors are there and whole"
        if is_folder
        else "check the spelling and the network, or give a local folder"
    )
    if "trust_remote_code" in reason:
        remedy = "it needs its own code: pass trust_remote_code=True if you trust its authors"
    return f"cannot load a model from {kind}: {type(error).__name__}: {reason}. Remedy: {remedy}"


def refuse_state(config: Any) -> None:
    """Refuse what no mask can isolate, as far as the configuration tells.

    Raises:
        UnsupportedModelError: some layer keeps a running state, or it is no decoder.
    """
    text = config.get_text_config(decoder=True)
    strange = sorted(set(getattr(text, "layer_types", None) or ()) - _ISOLATABLE)
    if strange:
        raise UnsupportedModelError(
            f"{config.model_type} has layers of type {', '.join(strange)}: what such a layer "
            "carries from token to token cannot be told apart by a mask, so branches would leak "
            "into one another. Models with full and sliding-window attention only are supported"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{config.model_type} is an encoder-decoder; a decoder-only model is needed"
        )


def prepare(model: PreTrainedModel, attn_implementation: str, max_slots: int) -> ForwardPass:
    """Find the attention implementation and mask form under which the model passes the probe.

    Args:
        model: a transformers causal language model.
        attn_implementation: "auto" tries ours, then "sdpa", then "eager"; otherwise that one.
        max_slots: slots that the forest may hold.

    Returns:
        a fresh forward pass, ready to serve.

    Raises:
        UnsupportedModelError: nothing passes, with what went wrong in each try.
    """
    refuse_state(model.config)
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModelError(
            f"{model.config.model_type} keeps a running state that every token passes through; "
            "no mask can isolate branches in it"
        )
    attention.register()
    model.eval()
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
                probe(model, form)
            except Exception as error:  # whatever the model's code trips over is the finding
                failures.append(f"{name}, {form} mask: {' '.join(str(error).split())[:200]}")
                continue
            forward = ForwardPass(model, max_slots=max_slots)
            forward.mask_form = form
            return forward
    model.set_attn_implementation(original)
    raise UnsupportedModelError(
        f"{model.config.model_type} does not keep branches apart. Tried: " + "; ".join(failures)
    )


@torch.inference_mode()
def probe(model: PreTrainedModel, form: MaskForm) -> None:
    """Three short branches in company against the same alone, and with siblings overwritten.

    Raises:
        UnsupportedModelError: a branch is not what it is alone.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(7)
    prefix, *branches = (
        torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        for length in (9, 3, 5, 2)
    )
    forward = ForwardPass(model)
    forward.mask_form = form
    ledger = Ledger()
    root = forward.forest.root(ledger)
    children = [forward.forest.fork(root, at=len(prefix)) for _ in branches]

    # 1. Openings of different lengths in one pass with the prefix, then one more token each.
    feeds = [(root, prefix), *((c, b[:-1]) for c, b in zip(children, branches, strict=True))]
    forward.run(feeds, [])
    last = [(child, branch[-1:]) for child, branch in zip(children, branches, strict=True)]
    company = forward.run(last, range(len(last)))
    if not forward.cache.layers:
        raise UnsupportedModelError("the model does not keep its keys and values in the cache")

    # 2. Each branch alone, by the model's own code without our cache and mask.
    spread = company.std().item()
    for row, branch in zip(company, branches, strict=True):
        ids = torch.tensor([[*prefix, *branch]], device=forward.device)
        alone = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        error = (row - alone).abs().max().item() / max(spread, 1e-6)
        allowed = 0.02 if model.dtype == torch.float32 else 0.5  # bfloat16 keeps 8 bits
        if not error < allowed:
            raise UnsupportedModelError(
                f"a branch in company differs from the branch alone by {error:.3g} of the "
                f"logits' spread ({allowed} is allowed)"
            )

    # 3. Siblings overwritten: not one bit of the first branch may change.
    forward.forest.truncate(children[0], children[0].end - 1)
    before = forward.run(last[:1], [0])
    forward.forest.truncate(children[0], children[0].end - 1)
    siblings = [slot for child in children[1:] for slot in child.slots]
    forward.cache.overwrite(siblings, 3.0)
    after = forward.run(last[:1], [0])
    if not torch.equal(before, after):
        raise UnsupportedModelError("a branch changes when its siblings' keys and values change")
