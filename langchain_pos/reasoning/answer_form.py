"""What a caller of the reasoner may want beyond a question and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_pos.engine.constraints import Constraint
    from langchain_pos.engine.sampling import Logprobs


@dataclass(frozen=True)
class AnswerForm:
    """How a question is put to the model, and the form of what it concludes.

    Attributes:
        encode: token ids of the prompt, given what is asked in place of the question; None puts
            the request's messages through the model's chat template.
        constraint: the language that the conclusion, or the ordinary answer, must belong to.
        logprobs: told how likely each token of the ordinary answer was.
    """

    encode: Callable[[str], list[int]] | None = None
    constraint: Constraint | None = None
    logprobs: Logprobs | None = None


PLAIN = AnswerForm()
