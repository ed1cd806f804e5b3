"""Text that a sequence writes after a lead, which was settled before and only written again."""

from __future__ import annotations

import json
from collections.abc import Callable

_NEW_LINE = 'root ::= {lead} [ \\t]? [ \\t]? ("\\n" {line}){may}'
"""After the lead the text ends at once if it may, or goes on with a line of its own."""
_ANY = "[^\\0]*"
_BEGUN = "[\\n]? [\\n]? [^{not_first} \\t\\n\\0] [^\\0]*"


class OwnText:
    """Leaves out the lead, and white space after it if told to.

    Args:
        lead: with which the sequence's text begins.
        pass_on: takes the pieces without it.
        strip: leave out white space between the lead and the rest.
    """

    def __init__(self, lead: str, pass_on: Callable[[str], None], *, strip: bool) -> None:
        self._lead = lead
        self._pass_on = pass_on
        self._strip = strip
        self._whole = ""

    def of(self, text: str) -> str:
        """What of a text is the sequence's own."""
        own = text[len(self._lead) :]
        return own.lstrip() if self._strip else own

    def push(self, piece: str) -> None:
        """Take a piece of the whole text."""
        before = len(self.of(self._whole))
        self._whole += piece
        if own := self.of(self._whole)[before:]:
            self._pass_on(own)


def line_after(lead: str, *, needed: bool, not_first: str) -> str:
    """The language of a text that begins a new line after the lead, or ends there.

    Args:
        lead: with which it begins.
        needed: it may not end there.
        not_first: characters that do not begin that line, as a grammar writes them in brackets.
    """
    return _NEW_LINE.format(
        lead=json.dumps(lead, ensure_ascii=False),
        line=_BEGUN.format(not_first=not_first) if needed or not_first else _ANY,
        may="" if needed else "?",
    )
