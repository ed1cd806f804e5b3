"""Receivers of completions as they arrive from a server: cut, passed on, inspected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_pos.engine.completion import FinishReason, TokenUsage
from langchain_pos.engine.tokenization.stopping import StoppedText, TextEnd
from langchain_pos.errors import PlanFormatError

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import Outline
    from langchain_pos.reasoning.form import OpenedStep


@dataclass
class Written:
    """One completion as the server wrote it.

    Attributes:
        text: as received; some servers leave the stop text at its end.
        finish_reason: "stop" or "length"; None while it is being written, or if the caller stopped
            early.
        stop: the stop text that ended it, if the server reports it; None also for EOS.
        usage: as reported by the server; None if it has not been.
        cached_tokens: tokens of the prompt that were in the server's prefix cache.
        chunks: pieces of text received.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    usage: TokenUsage | None = None
    cached_tokens: int = 0
    chunks: int = 0


class Sink(ABC):
    """Receives one completion as it arrives.

    Attributes:
        written: received since the last `begin`.
        usage: the final token counts.
    """

    def __init__(self) -> None:
        self.written = Written()
        self.usage = TokenUsage()

    def begin(self) -> None:
        """A completion begins, for the first time or again."""
        self.written = Written()

    @abstractmethod
    def take(self, piece: str) -> bool:
        """Take a piece of text; returns whether to continue."""

    @property
    def may_restart(self) -> bool:
        """Whether it may still restart, because no text has been passed on."""
        return not self.written.chunks


class TextSink(Sink):
    """Receives the text of a branch, or of a sequential answer.

    Args:
        on_text: receives the pieces; None holds them back.
        stop: texts that end it; they are cut off here, whether or not the server does.
        strip: see `StoppedText`.
        end: a further rule by which it ends; then the request is cancelled.
        restartable: whether it may restart although text has been passed on.
    """

    def __init__(
        self,
        on_text: Callable[[str], None] | None,
        *,
        stop: tuple[str, ...],
        strip: bool | str = True,
        end: TextEnd | None = None,
        restartable: bool = False,
    ) -> None:
        super().__init__()
        self._end = end
        self._on_text = on_text
        self._stop = stop
        self._strip = strip
        self._restartable = restartable
        self._text = StoppedText(stop, strip=strip, end=end)

    def begin(self) -> None:
        """See `Sink`."""
        super().begin()
        self._text = StoppedText(self._stop, strip=self._strip, end=self._end)

    def take(self, piece: str) -> bool:
        """See `Sink`."""
        if self._text.stopped is not None:  # the server goes on after a stop text
            return False
        self._say(self._text.push(piece))
        return self._end is None or self._text.stopped is None

    def close(self) -> str:
        """End the text and return all of it."""
        self._say(self._text.flush(cut=self.finish_reason == "length"))
        return self._text.text

    @property
    def may_restart(self) -> bool:
        """See `Sink`."""
        return self._restartable or self._on_text is None or not self._text.text

    @property
    def finish_reason(self) -> FinishReason:
        """How it ended."""
        if self._text.stopped is not None:  # found in the very last token of the budget, too
            return "stop"
        return self.written.finish_reason or "stop"

    def _say(self, piece: str) -> None:
        if piece and self._on_text is not None:
            self._on_text(piece)


class PassageSink(TextSink):
    """Receives a conclusion or a sequential answer, and stops it where it opens a block.

    Args:
        on_text: receives the pieces.
        stop: texts that end it.
        strip: remove whitespace at both ends.
        restartable: see `TextSink`.
        opens: given the text so far, the step in it that opens a block; None where none may.

    Attributes:
        opened: the step that opens one.
    """

    def __init__(
        self,
        on_text: Callable[[str], None],
        *,
        stop: tuple[str, ...],
        strip: bool,
        restartable: bool,
        opens: Callable[[str], OpenedStep | None] | None,
    ) -> None:
        super().__init__(on_text, stop=stop, strip=strip, restartable=restartable)
        self._opens = opens
        self.opened: OpenedStep | None = None

    def take(self, piece: str) -> bool:
        """See `Sink`."""
        goes_on = super().take(piece)
        if self._opens is not None:
            self.opened = self._opens(self.text)
        return goes_on and self.opened is None

    @property
    def text(self) -> str:
        """What has been passed on so far."""
        return self._text.text


class SkeletonSink(Sink):
    """Receives a skeleton. May restart at any time: it passes on raw text, not the plan.

    Args:
        outline: the plan's form and bounds.
        stop: the terminator, if the server does not know where a skeleton ends.
    """

    may_restart = True

    def __init__(self, outline: Outline, *, stop: tuple[str, ...]) -> None:
        super().__init__()
        self.stop = stop
        self._outline = outline
        self._text = StoppedText(stop)
        self._bounds = outline.skeleton.bounds(outline.max_tokens)

    def begin(self) -> None:
        """See `Sink`."""
        super().begin()
        self._text = StoppedText(self.stop)
        self._bounds = self._outline.skeleton.bounds(self._outline.max_tokens)

    def take(self, piece: str) -> bool:
        """See `Sink`."""
        if self._text.stopped is not None:
            return False
        if text := self._text.push(piece):
            self._outline.on_text(text)
        self._bounds.note(self._outline.skeleton.begin + self._text.text, self.written.chunks)
        return not self._bounds.over

    def whole(self) -> str:
        """The skeleton with its terminator, which servers cut off or models omit.

        Raises:
            PlanFormatError: the budget ended before two steps were complete.
        """
        skeleton, rest = self._outline.skeleton, self._text.flush()
        text = self._text.text
        full, end = skeleton.begin + text, ""
        if self.written.finish_reason != "stop" and self._text.stopped is None:
            if not skeleton.is_plan(full) and not self._bounds.over:
                raise PlanFormatError("the skeleton was not closed within its budget", text=text)
            end = skeleton.close(full)
        elif not text.rstrip().endswith(skeleton.end) and (self.stop or not text):
            # A server need not say whether it was EOS or the terminator. A nonblank text without
            # steps is not an outline unless the terminator is seen.
            known = self._text.stopped or self.written.stop
            end = skeleton.end if known or skeleton.has_steps(full) or not text.strip() else ""
        if rest or end:
            self._outline.on_text(rest + end)
        return text + end
