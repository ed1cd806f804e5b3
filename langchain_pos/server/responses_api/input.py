"""Items of a request, and of earlier answers, as the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_pos.server.errors import ApiError

Json = dict[str, Any]

_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Parts of a content that are text, and where each has it."""


def as_messages(items: Iterable[Json]) -> list[Json]:
    """One message for each item; neighbours of one role are merged when the prompt is made.

    Raises:
        ApiError: 400, an item that no model here reads.
    """
    said = (_as_message(item, place) for place, item in enumerate(items))
    return [message for message in said if message is not None]


def _as_message(item: Json, place: int) -> Json | None:
    kind = item.get("type", "message" if "role" in item else None)
    match kind:
        case "message":
            return {"role": item.get("role"), "content": _content(item.get("content"))}
        case "function_call":
            function = {name: item.get(name) for name in ("name", "arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        case "function_call_output":
            content = _content(item.get("output"))
            return {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
        case "reasoning":  # thoughts of an earlier answer are not read again
            return None
    raise ApiError(
        400,
        f"the item {place} of the input is of type {str(kind)[:80]!r}; allowed are message, "
        "function_call, function_call_output and reasoning",
        "unsupported_value",
        param="input",
    )


def _content(content: Any) -> Any:
    """Texts as a chat completion's; what is none is left for it to refuse."""
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": part.get(_TEXTS[part["type"]], "")}
        if isinstance(part, dict) and part.get("type") in _TEXTS
        else part
        for part in content
    ]
