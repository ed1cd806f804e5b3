"""What callbacks see of a question's run."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import BaseCallbackHandler


class Recorder(BaseCallbackHandler):
    """Keeps what it hears of the question's own run, and the data of custom events."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.custom: list[tuple[str, Any]] = []
        self.starts: list[dict[str, Any]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        if kwargs["parent_run_id"] is None:
            self.seen.append("start")
            self.starts.append(kwargs)

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        if kwargs["parent_run_id"] is None:
            self.seen.append("end")

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        if kwargs["parent_run_id"] is None:
            self.seen.append(f"error: {type(error).__name__}")

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.custom.append((name.removeprefix("parallel_reasoning_"), data))
