"""What people write at a constructor or a call, in the names that it has."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import ValidationError

from langchain_pos.errors import InvalidRequestError

_ELSEWHERE = {
    **dict.fromkeys(
        ("max_new_tokens", "num_predict", "max_output_tokens", "max_completion_tokens"),
        "max_tokens",
    ),
    **dict.fromkeys(("model_name", "model_id", "model_path", "repo_id"), "model"),
    "torch_dtype": "dtype",
}
_FOR_TRANSFORMERS = ("device_map", "quantization_config")
_QUANTISED = ("load_in_4bit", "load_in_8bit")


def known_names(fields: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields under the names that the constructor or the call knows.

    Args:
        fields: as they were given.
        known: names of the constructor or the call.

    Raises:
        InvalidRequestError: a name is unknown, or given twice.
    """
    found: dict[str, Any] = {}
    for given, value in fields.items():
        name = given if given in known else _ELSEWHERE.get(given, given)
        if name in known:
            _set(found, name, _value(name, value))
        elif name in _FOR_TRANSFORMERS and "model_kwargs" in known:
            _for_transformers(found, name, value)
        elif name in _QUANTISED and "model_kwargs" in known:
            if value:
                _for_transformers(found, "quantization_config", {name: True})
        else:
            hint = did_you_mean(given, known) or f"leave it out; allowed are {', '.join(known)}"
            raise InvalidRequestError(f"unknown setting {given!r}; {hint}")
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A question with the known name that is like an unknown one, if there is one."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else None


def wrong_fields(error: ValidationError) -> str:
    """What is wrong with which field, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors(include_url=False)
    )


def _for_transformers(found: dict[str, Any], name: str, value: Any) -> None:
    found["model_kwargs"] = {**found.get("model_kwargs", {}), name: value}


def _set(found: dict[str, Any], name: str, value: Any) -> None:
    if name == "model_kwargs":
        value = {**found.get(name, {}), **value} if isinstance(value, dict) else value
    elif name in found:
        raise InvalidRequestError(f"{name!r} is given twice, under two names; give it once")
    found[name] = value


def _value(name: str, value: Any) -> Any:
    """A device's number or a torch dtype as the name that it has."""
    if name == "device" and isinstance(value, int) and not isinstance(value, bool):
        return f"cuda:{value}" if value >= 0 else "cpu"
    if name in ("device", "dtype") and type(value).__module__ == "torch":
        return str(value).removeprefix("torch.")
    return value
