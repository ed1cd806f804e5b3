"""Text from models and users, made safe to show."""

from __future__ import annotations

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def strip_control_characters(text: str) -> str:
    """`text` without control characters, so that no model can control the terminal."""
    return text.translate(_CONTROLS)
