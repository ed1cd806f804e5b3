"""An answer as a text, for the output parsers of chains."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from langchain_core.runnables import Runnable, RunnableGenerator

from langchain_pos.results.result import ReasoningChunk, ReasoningResult


def as_text() -> Runnable[ReasoningResult, str]:
    """`str` of a result; while it streams, as much of it as is certain.

    Branches grow side by side, so they are certain when the conclusion begins.
    """
    return RunnableGenerator(_texts, _atexts, name="as_text")


class _Text:
    """What has been yielded of a stream."""

    def __init__(self) -> None:
        self._total: ReasoningChunk | None = None
        self._written = ""

    def add(self, piece: ReasoningResult) -> str:
        """Take a chunk, or a whole result; returns the text that has become certain."""
        if not isinstance(piece, ReasoningChunk):
            return str(piece)
        self._total = piece if self._total is None else self._total + piece
        return self._rest() if piece.stage == "conclude" else ""

    def close(self) -> str:
        """The stream has ended."""
        return self._rest()

    def _rest(self) -> str:
        text = "" if self._total is None else str(self._total)
        if self._written.startswith(text):  # an answer that has begun anew says it once more
            return ""
        rest, self._written = text.removeprefix(self._written), text
        return rest


def _texts(pieces: Iterator[ReasoningResult]) -> Iterator[str]:
    text = _Text()
    for piece in pieces:
        if news := text.add(piece):
            yield news
    if news := text.close():
        yield news


async def _atexts(pieces: AsyncIterator[ReasoningResult]) -> AsyncIterator[str]:
    text = _Text()
    async for piece in pieces:
        if news := text.add(piece):
            yield news
    if news := text.close():
        yield news
