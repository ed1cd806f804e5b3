"""Before stage 1: a model that thinks does so first, within a budget of its own.

    <think>                 the prompt opens it, or the model does
    …                       its thoughts: reasoning content, and no part of the answer
    </think>                written by the model, or for it when the budget ends

The plan, or the answer, stands after it. A question is thought about once: what is tried again, or
answered sequentially after all, begins with the same thoughts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.reasoning.chat_template import THOUGHT, THOUGHT_END
from langchain_pos.reasoning.decoder import Passage
from langchain_pos.reasoning.form import OpenedStep
from langchain_pos.reasoning.spans import Ending

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import Decoder, Trunk
    from langchain_pos.reasoning.question import Question

_CLOSE = f"\n{THOUGHT_END}\n\n"


async def think(decoder: Decoder, question: Question, trunk: Trunk) -> None:
    """Have the model's thoughts settled on a trunk that has nothing but a prompt.

    Args:
        decoder: writes.
        question: what is asked.
        trunk: ends with the prompt; afterwards, with the end of the thoughts if there are any.

    Raises:
        ParallelReasoningError: nothing can be written.
    """
    if trunk.thinks is False:
        return
    progress = question.progress
    opens = not trunk.thinks  # whether the mark is still to be written
    if progress.thoughts is not None:
        if progress.thoughts or not opens:
            trunk.settle(f"{THOUGHT}\n" * opens + progress.thoughts + _CLOSE)
        return
    alone = not progress.in_span
    if alone:
        progress.open("plan", [])
    heard = _Thoughts(progress.thought_text, opens=opens)
    written = await decoder.write(
        trunk,
        Passage(
            max_tokens=decoder.budget.thoughts,
            seed=derive_seed(question.seed, "thoughts"),
            stop=(THOUGHT_END,),
            on_text=heard.push,
            strip=False,
            opened=_other_text if opens else None,
        ),
    )
    if written.failure is not None:
        raise written.failure
    progress.thoughts = heard.thought
    if alone:
        progress.close(Ending(heard.thought))
    if opens and not written.text.lstrip().startswith(THOUGHT):  # it answers at once
        trunk.keep(written, 0)
        return
    trunk.keep(written, len(written.text.rstrip()))
    trunk.settle(_CLOSE)


def _other_text(text: str) -> OpenedStep | None:
    """Text with which a model answers instead of thinking."""
    begun = text.lstrip()
    thinks = begun.startswith(THOUGHT) or THOUGHT.startswith(begun)
    return None if thinks else OpenedStep("", 0)


class _Thoughts:
    """Passes on what is thought, without the mark that opens it and white space around it.

    Attributes:
        thought: so far.
    """

    def __init__(self, pass_on: Callable[[str], None], *, opens: bool) -> None:
        self._pass_on = pass_on
        self._mark = THOUGHT if opens else ""
        self._text = ""
        self.thought = ""

    def push(self, piece: str) -> None:
        """Take a piece."""
        self._text += piece
        begun = self._text.lstrip()
        if not begun.startswith(self._mark):
            return
        thought = begun.removeprefix(self._mark).strip()
        if new := thought[len(self.thought) :]:
            self._pass_on(new)
            self.thought = thought
