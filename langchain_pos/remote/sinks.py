"""What becomes of a completion as it comes from a server: cut, told, looked at."""

from __future__ import annotations

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
        text: as it came; some servers leave the stop text at its end.
        finish_reason: "stop" or "length"; None while it is being written, or where the caller broke
            it off.
        stop: the stop text that ended it, where the server tells; None also for EOS.
        usage: as the server tells it; None where it has not.
        cached_tokens: tokens of the prompt that the server had read before.
        chunks: pieces of text that came.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    usage: TokenUsage | None = None
    cached_tokens: int = 0
    chunks: int = 0


class Sink:
    """Takes one completion as it comes.

    Attributes:
        written: what came since the last `begin`.
        usage: what it has cost in the end.
    """

    def __init__(self) -> None:
        self.written = Written()
        self.usage = TokenUsage()

    def begin(self) -> None:
        """A completion begins, for the first time or anew."""
        self.written = Written()

    def take(self, piece: str) -> bool:
        """Take a piece of text; says whether to go on."""
        raise NotImplementedError

    @property
    def may_restart(self) -> bool:
        """Whether it may still begin anew, because nobody has been told of what was written."""
        return not self.written.chunks


class TextSink(Sink):
    """Takes the text of a branch, or of an ordinary answer.

    Args:
        tell: is told the pieces; None holds them back.
        stop: texts that end it; they are cut off here, whether or not the server has.
        strip: see `StoppedText`.
        end: a further rule by which it ends; then it is broken off.
        restartable: whether it may begin anew although something has been told.
    """

    def __init__(
        self,
        tell: Callable[[str], None] | None,
        *,
        stop: tuple[str, ...],
        strip: bool | str = True,
        end: TextEnd | None = None,
        restartable: bool = False,
    ) -> None:
        super().__init__()
        self._end = end
        self._tell = tell
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
        self._say(self._text.push(piece))
        return self._end is None or self._text.stopped is None

    def close(self) -> str:
        """The whole text; nothing more comes."""
        self._say(self._text.flush())
        return self._text.text

    @property
    def may_restart(self) -> bool:
        """See `Sink`."""
        return self._restartable or self._tell is None or not self._text.text

    @property
    def finish_reason(self) -> FinishReason:
        """How it ended."""
        if self._text.stopped is not None:  # found in the very last token of the budget, too
            return "stop"
        return self.written.finish_reason or "stop"

    def _say(self, piece: str) -> None:
        if piece and self._tell is not None:
            self._tell(piece)


class PassageSink(TextSink):
    """Takes a conclusion or a sequential answer, and breaks it off where it opens a block.

    Args:
        tell: is told the pieces.
        stop: texts that end it.
        strip: leave out white space at both ends.
        restartable: see `TextSink`.
        opens: given the text so far, the step in it that opens a block; None where none may.

    Attributes:
        opened: the step that opens one.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        stop: tuple[str, ...],
        strip: bool,
        restartable: bool,
        opens: Callable[[str], OpenedStep | None] | None,
    ) -> None:
        super().__init__(tell, stop=stop, strip=strip, restartable=restartable)
        self._opens = opens
        self.opened: OpenedStep | None = None

    def take(self, piece: str) -> bool:
        """See `Sink`."""
        super().take(piece)
        if self._opens is not None:
            self.opened = self._opens(self.text)
        return self.opened is None

    @property
    def text(self) -> str:
        """What has been passed on so far."""
        return self._text.text


class SkeletonSink(Sink):
    """Takes a skeleton. May begin anew at any time: what is told of it is raw text, not the plan.

    Args:
        outline: what is written.
        stop: the terminator, where the server does not know where a skeleton ends.
    """

    may_restart = True

    def __init__(self, outline: Outline, *, stop: tuple[str, ...]) -> None:
        super().__init__()
        self.stop = stop
        self._outline = outline
        self._text = StoppedText(stop)

    def begin(self) -> None:
        """See `Sink`."""
        super().begin()
        self._text = StoppedText(self.stop)

    def take(self, piece: str) -> bool:
        """See `Sink`."""
        if told := self._text.push(piece):
            self._outline.on_text(told)
        return True

    def whole(self) -> str:
        """The skeleton with its end: the terminator, which servers cut off, or which is missing.

        Raises:
            PlanFormatError: the budget ended before two steps were there.
        """
        skeleton, rest = self._outline.skeleton, self._text.flush()
        text = self._text.text
        full, end = skeleton.begin + text, ""
        if self.written.finish_reason == "length" and self._text.stopped is None:
            if not skeleton.is_plan(full):
                raise PlanFormatError("the skeleton was not closed within its budget", text=text)
            end = skeleton.close(full)
        elif not text.rstrip().endswith(skeleton.end) and (self.stop or not text):
            # Whether it was EOS or the terminator, a server need not say. A text that has no
            # steps, and is more than blanks, is no outline unless the terminator is seen.
            known = self._text.stopped or self.written.stop
            end = skeleton.end if known or skeleton.has_steps(full) or not text.strip() else ""
        if rest or end:
            self._outline.on_text(rest + end)
        return text + end
