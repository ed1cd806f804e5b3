"""A scripted chat model in Qwen's template, and calls as it writes them."""

from __future__ import annotations

from typing import Any

from tests.support.chat_templates import QWEN, tokenizer_with
from tests.support.scripted_chat import scripted_chat


def qwen_chat(rules: dict[str, Any], **fields: Any) -> Any:
    """A scripted chat model in Qwen's template, and its script."""
    return scripted_chat(rules, tokenizer=tokenizer_with(QWEN), **fields)


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
