"""What the writers of all three stages share: a question, its decoder, and what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_pos.reasoning.budget import LEAST_ROOM, Budget
from langchain_pos.reasoning.thinking import think

if TYPE_CHECKING:
    from langchain_pos.reasoning.decoder import Decoder, Trunk
    from langchain_pos.reasoning.prompts import Messages
    from langchain_pos.reasoning.question import Question


class StageWriter:
    """Has one stage of a question written.

    Args:
        decoder: writes.
        question: what is asked, and its bounds.
    """

    def __init__(self, decoder: Decoder, question: Question) -> None:
        self._decoder = decoder
        self._question = question
        self._settings = question.settings
        self._form = question.form
        self._schema = question.schema
        self._progress = question.progress
        self._seed = question.seed

    async def open(self, messages: Messages) -> Trunk:
        """A trunk that begins with a prompt, and what the model thinks before it answers."""
        self._progress.prompt(messages)
        trunk = self._decoder.open(messages)
        await think(self._decoder, self._question, trunk)
        return trunk


def share_out(decoder: Decoder, question: Question) -> Budget:
    """Set the decoder's budget to what the longest of the question's prompts leaves.

    Raises:
        ContextLengthError, OutOfSlotsError: too little is left for an answer.
    """
    prompts = [question.sequential_messages()]
    if question.settings.mode == "parallel":
        prompts.append(question.plan_messages())
    longest = max(map(decoder.prompt_tokens, prompts))
    limit = decoder.limit
    if limit is not None and limit - longest < LEAST_ROOM:
        raise decoder.too_long(longest, LEAST_ROOM)
    decoder.budget = Budget.within(
        limit, longest, question.settings, question.given, thinks=decoder.may_think
    )
    return decoder.budget
