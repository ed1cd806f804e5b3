"""What a conclusion is besides decoding: its text, the step that opens a further block.

Shared by whoever decodes: `concluding.py` in this process, `remote_reasoner.py` by asking a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from langchain_pos.engine.completion import FinishReason
from langchain_pos.results.data import STEP_MARK

OPENED_STEP = re.compile(
    r"^[ \t]*####[ \t]*(?P<title>[^\n:：]+?)[ \t]*[:：][ \t]*(?:\.{3}|…)[.…]*", re.MULTILINE
)
"""A step whose body is an ellipsis."""


@dataclass(frozen=True)
class Conclusion:
    """What stage 3 has written so far.

    Attributes:
        text: stripped at both ends.
        finish_reason: how it ended.
        error: what went wrong, when that is "error".
        title: of the first step of a further block, which it has just opened.
        opened: that step as it was written, from `####` on.
        gap: the white space between `text` and it.
        tokens: how many were written.
    """

    text: str
    finish_reason: FinishReason = "stop"
    error: str | None = None
    title: str | None = None
    opened: str = ""
    gap: str = ""
    tokens: int = 0


class Told:
    """Passes text on, except what may yet be dropped.

    White space waits until something follows it, and with `may_open` a line that begins with
    `####` waits until it is over, because it may turn out to be a step.
    """

    def __init__(self, tell: Callable[[str], None], *, may_open: bool) -> None:
        self._tell = tell
        self._may_open = may_open
        self._began = False
        self._held = ""

    def push(self, piece: str) -> None:
        """Take a piece."""
        whole = self._held + piece
        before, line_break, line = whole.rpartition("\n")
        mark = line.strip()[: len(STEP_MARK)]
        at_line_start = bool(line_break) or not self._began
        waits = self._may_open and at_line_start and STEP_MARK.startswith(mark)
        certain = (before if waits else whole).rstrip()
        self._held = whole[len(certain) :]
        if certain:
            self._began = True
            self._tell(certain)

    def flush(self) -> None:
        """All was only text."""
        self._may_open = False
        self.push("")
