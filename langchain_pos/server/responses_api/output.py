"""Items of an answer while they are written, and the events that say so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal
from uuid import uuid4

Json = dict[str, Any]
Status = Literal["completed", "incomplete"]
Event = tuple[str, Json]
"""An event's type and its own fields."""


class OutputItem(ABC):
    """An item; its events are to be sent in the order of `begin`, `write`, `end`.

    Attributes:
        item: as the answer has it.
    """

    prefix: ClassVar[str]

    def __init__(self, **fields: Any) -> None:
        self.item: Json = {"id": f"{self.prefix}_{uuid4().hex}", "status": "in_progress", **fields}

    @abstractmethod
    def begin(self) -> Iterator[Event]:
        """It is there, and empty."""

    @abstractmethod
    def write(self, text: str) -> Iterator[Event]:
        """It grows by a text."""

    @abstractmethod
    def end(self, status: Status, logprobs: list[Json] | None = None) -> Iterator[Event]:
        """It is complete, or was cut."""


class _TextItem(OutputItem):
    """An item with one part, which is text."""

    field: ClassVar[str]
    part: ClassVar[str]
    text: ClassVar[str]
    index: ClassVar[str]

    def __init__(self, bare: Json, **fields: Any) -> None:
        super().__init__(**fields, **{self.field: []})
        self._part: Json = {**bare, "text": ""}
        self._place: Json = {"item_id": self.item["id"], self.index: 0}

    def begin(self) -> Iterator[Event]:
        """See `OutputItem`."""
        yield "output_item.added", {"item": self.item}
        yield f"{self.part}.added", {**self._place, "part": self._part}

    def write(self, text: str) -> Iterator[Event]:
        """See `OutputItem`."""
        self._part = {**self._part, "text": self._part["text"] + text}
        yield f"{self.text}.delta", {**self._place, "delta": text, **self._beside([])}

    def end(self, status: Status, logprobs: list[Json] | None = None) -> Iterator[Event]:
        """See `OutputItem`."""
        beside = self._beside(logprobs or [])
        self._part = {**self._part, **beside}
        text = {"text": self._part["text"], **beside}
        yield f"{self.text}.done", {**self._place, **text}
        yield f"{self.part}.done", {**self._place, "part": self._part}
        self.item = {**self.item, "status": status, self.field: [self._part]}
        yield "output_item.done", {"item": self.item}

    def _beside(self, logprobs: list[Json]) -> Json:
        """What stands beside a text."""
        return {}


class Thought(_TextItem):
    """A skeleton, or a branch: a reasoning item, as whose summary every client shows it."""

    prefix, field, index = "rs", "summary", "summary_index"
    part, text = "reasoning_summary_part", "reasoning_summary_text"

    def __init__(self) -> None:
        super().__init__({"type": "summary_text"}, type="reasoning")


class Said(_TextItem):
    """The text of the answer."""

    prefix, field, index = "msg", "content", "content_index"
    part, text = "content_part", "output_text"

    def __init__(self) -> None:
        bare = {"type": "output_text", "annotations": [], "logprobs": []}
        super().__init__(bare, type="message", role="assistant")

    def _beside(self, logprobs: list[Json]) -> Json:
        return {"logprobs": logprobs}


class Called(OutputItem):
    """A call of a function.

    Args:
        call_id: that its output must name.
        name: of the function.
    """

    prefix = "fc"

    def __init__(self, call_id: str, name: str) -> None:
        super().__init__(type="function_call", call_id=call_id, name=name, arguments="")
        self._place: Json = {"item_id": self.item["id"]}

    def begin(self) -> Iterator[Event]:
        """See `OutputItem`."""
        yield "output_item.added", {"item": self.item}

    def write(self, text: str) -> Iterator[Event]:
        """See `OutputItem`."""
        self.item = {**self.item, "arguments": self.item["arguments"] + text}
        yield "function_call_arguments.delta", {**self._place, "delta": text}

    def end(self, status: Status, logprobs: list[Json] | None = None) -> Iterator[Event]:
        """See `OutputItem`."""
        arguments = {"arguments": self.item["arguments"]}
        yield "function_call_arguments.done", {**self._place, **arguments}
        self.item = {**self.item, "status": status}
        yield "output_item.done", {"item": self.item}
