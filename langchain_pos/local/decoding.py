"""Questions put to this package's own engine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_pos.local.decoder import LocalDecoder

if TYPE_CHECKING:
    from langchain_pos.engine.engine import Engine
    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.reasoning.budget import Budget
    from langchain_pos.reasoning.question import Question
    from langchain_pos.results.result import ReasoningResult


class LocalDecoding:
    """Questions put to an engine; see `reasoning.decoder.Decoding`.

    Args:
        engine: the model.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def folder(self) -> Path | None:
        """The folder that the model was loaded from; None if it was not a folder."""
        name = self._name
        return Path(name) if name and Path(name).is_dir() else None

    @property
    def model_name(self) -> str:
        """The folder's name or the hub name; empty if the model has neither."""
        return self.folder.name if self.folder is not None else self._name

    @property
    def _name(self) -> str:
        return str(getattr(self.engine.model, "name_or_path", "") or "")

    def decoder(self, question: Question) -> LocalDecoder:
        """See `Decoding`."""
        return LocalDecoder(self.engine, question)

    def submit(
        self,
        reason: Callable[[Pending[ReasoningResult]], Coroutine[Any, Any, ReasoningResult]],
        *,
        budget: Budget | None,
        caller: Hashable | None,
    ) -> Pending[ReasoningResult]:
        """See `Decoding`. Raises `OutOfSlotsError` if the question can never fit."""
        if budget is None:
            raise ValueError("a local question has a budget before it is queued")
        return self.engine.scheduler.submit(reason, reserve=budget.reserve, caller=caller)
