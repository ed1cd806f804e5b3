"""What people write at a constructor, in the names that it has."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

_BUDGETS = ("max_new_tokens", "num_predict", "max_output_tokens", "max_completion_tokens")
_MODELS = ("model_name", "model_id", "model_path", "repo_id")
_FOR_TRANSFORMERS = ("device_map", "quantization_config")
_QUANTISED = ("load_in_4bit", "load_in_8bit")


def known_names(fields: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields under the names that the constructor knows.

    Args:
        fields: as they were given.
        known: names of the constructor.

    Raises:
        ValueError: a name is unknown; the message has the one that is like it.
    """
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in known:
            _set(found, name, _value(name, value))
        elif name in _BUDGETS:
            _set(found, "max_tokens", value)
        elif name == "torch_dtype":
            _set(found, "dtype", _value("dtype", value))
        elif name in _MODELS:
            _set(found, "model", value)
        elif name in _FOR_TRANSFORMERS:
            _for_transformers(found, name, value)
        elif name in _QUANTISED:
            if value:
                _for_transformers(found, "quantization_config", {name: True})
        else:
            raise ValueError(f"unknown field {name!r}; {_hint(name, known)}")
    return found


def _for_transformers(found: dict[str, Any], name: str, value: Any) -> None:
    found["model_kwargs"] = {**found.get("model_kwargs", {}), name: value}


def _set(found: dict[str, Any], name: str, value: Any) -> None:
    if name == "model_kwargs":
        value = {**found.get(name, {}), **value} if isinstance(value, dict) else value
    elif name in found:
        raise ValueError(f"{name!r} is given twice, under two names; give it once")
    found[name] = value


def _value(name: str, value: Any) -> Any:
    """A device's number or a torch dtype as the name that it has."""
    if name == "device" and isinstance(value, int) and not isinstance(value, bool):
        return f"cuda:{value}" if value >= 0 else "cpu"
    if name in ("device", "dtype") and type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    return value


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else "leave it out"
