"""Text that a sequence writes after a lead, which was settled before and only written again."""

from __future__ import annotations

from collections.abc import Callable


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
