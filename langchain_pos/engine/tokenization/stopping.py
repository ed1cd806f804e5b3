"""Text that arrives in pieces, cut where a stop sequence begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from langchain_pos.errors import InvalidRequestError


def check_stop(stop: Sequence[str]) -> None:
    """Refuse meaningless stop sequences.

    Raises:
        InvalidRequestError: one is empty, and would end every text at once; or they are a single
            string, whose letters would each be a stop sequence.
    """
    if isinstance(stop, str):
        raise InvalidRequestError(f"stop={stop!r} is a single text; give a list: [{stop!r}]")
    if not all(stop):
        raise InvalidRequestError(
            f"stop={list(stop)!r} has an empty text, which would end every answer before it "
            "begins; remove it"
        )


class TextEnd(Protocol):
    """A rule by which a text ends, where no fixed stop sequence says it."""

    def find(self, text: str) -> int | None:
        """Where the text ends; None where it does not (yet)."""

    def undecided(self, text: str) -> int:
        """How many characters at its end may yet turn out to lie after that place."""


class StoppedText:
    """Finds stop sequences in a text as it arrives.

    The return values of `push` and `flush` add up to `text`. A piece is held back while it may
    still become (part of) a stop sequence or, with `strip`, trailing whitespace.

    Args:
        stop: texts that end the sequence; they and what follows are left out.
        strip: leave out white space at both ends; of a text, these characters at the beginning
            (none if it is empty), and white space at the end.
        end: a further rule by which the text ends.

    Attributes:
        text: what has become certain.
        stopped: the stop sequence that has ended it; empty where `end` has.
    """

    def __init__(
        self, stop: Sequence[str] = (), *, strip: bool | str = False, end: TextEnd | None = None
    ) -> None:
        check_stop(stop)
        self._end = end
        self._stop = tuple(stop)
        self._begin = "" if strip is False else strip
        self._strip = strip is not False
        self._held = ""
        self.text = ""
        self.stopped: str | None = None

    def push(self, piece: str) -> str:
        """Add text; returns the text that has become certain."""
        if self.stopped is not None:
            return ""
        self._held += piece
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        ended = None if self._end is None else self._end.find(self.text + self._held)
        if ended is not None:
            found.append((max(ended - len(self.text), 0), ""))
        if found:
            at, self.stopped = min(found)
            rest, self._held = self._held[:at], ""
            return self._emit(rest.rstrip() if self._strip else rest)
        certain = len(self._held) - self._undecided()
        piece, self._held = self._held[:certain], self._held[certain:]
        return self._emit(piece)

    def flush(self, *, cut: bool = False) -> str:
        """End the sequence: text that was held back becomes certain, or is stripped.

        Args:
            cut: it ends at its budget. Then what `end` has not decided on, such as half of the next
                entry's mark, is left out.
        """
        rest, self._held = self._held, ""
        if self.stopped is not None:
            return ""
        if cut and self._end is not None:
            rest = rest[: max(len(rest) - self._end.undecided(self.text + rest), 0)]
        return self._emit(rest.rstrip() if self._strip else rest)

    def _undecided(self) -> int:
        """Number of characters at the end that may yet be stripped or cut."""
        keep = len(self._held) - len(self._held.rstrip()) if self._strip else 0
        if self._end is not None:
            keep = max(keep, min(self._end.undecided(self.text + self._held), len(self._held)))
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
                if self._held.endswith(stop[:length]):
                    head = self._held[:-length]
                    space = len(head) - len(head.rstrip()) if self._strip else 0
                    keep = max(keep, length + space)
                    break
        return keep

    def _emit(self, piece: str) -> str:
        if self._begin and not self.text:
            piece = piece.lstrip(None if self._begin is True else self._begin)
        self.text += piece
        return piece
