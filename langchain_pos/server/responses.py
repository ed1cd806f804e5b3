"""Answers in OpenAI's form, whole and as chunks of a stream: the chunks add up to the whole.

Thoughts, plans, and the branches of the paper's form are `reasoning_content`, as DeepSeek and vLLM
have it. Two extensions stand beside `choices`, where ordinary clients do not look: `reasoning`, the
whole `ReasoningResult` (on an answer, and on the chunk that has the finish reason), and
`reasoning_delta`, what a stage or branch has just written:

    {"stage": "plan", "text": "####Ann"}                              raw skeleton
    {"stage": "plan", "block": 0, "titles": ["Ann", "Ben"], "form": "paper"}   it is there
    {"stage": "expand", "block": 0, "branch": 1, "title": "Ben", "text": " GPA"}
    {"stage": "expand", "block": 0, "branch": 1, "title": "Ben", "finish_reason": "stop"}
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.messages import AIMessageChunk

from langchain_pos.chat_models.output import UNFINISHED
from langchain_pos.server.errors import ApiError

if TYPE_CHECKING:
    from langchain_core.outputs import ChatGenerationChunk

    from langchain_pos.results.result import ReasoningChunk

Json = dict[str, Any]


class AnswerWriter:
    """Writes one answer from what the chat model yields.

    Args:
        model: the name that the request gave.
        include_usage: end the stream with a chunk that has the usage.
    """

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        self._head: Json = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._opened = False
        self._plans = 0
        self._calls: list[Json] = []
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self.last: AIMessageChunk | None = None

    # ---------------------------------------------------------------------- stream

    def write(
        self, piece: ReasoningChunk | None, written: Sequence[ChatGenerationChunk]
    ) -> Iterator[Json]:
        """The chunks of the stream for a piece of reasoning and the message chunks it gives."""
        if not self._opened:
            self._opened = True
            yield self._chunk({"role": "assistant", "content": ""})
        if piece is not None and (news := self._reasoning(piece)) is not None:
            yield self._chunk({}, reasoning_delta=news)
        for chunk in written:
            if isinstance(chunk.message, AIMessageChunk):
                yield from self._said(chunk.message)

    def close(self) -> Iterator[Json]:
        """The last chunks: the finish reason, and the usage if it was asked for.

        Raises:
            ApiError: the model has written no text.
        """
        metadata = self._metadata()
        choice = {"finish_reason": metadata["finish_reason"], "logprobs": metadata.get("logprobs")}
        yield self._chunk({}, choice, reasoning=metadata["reasoning"])
        if self._include_usage:
            yield self._as("chat.completion.chunk") | {"choices": [], "usage": self._usage()}

    def _chunk(self, delta: Json, choice: Json | None = None, **extension: Any) -> Json:
        choice = choice or {}
        whole = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}
        chunk = self._as("chat.completion.chunk") | {"choices": [whole | choice]}
        return chunk | ({"usage": None} if self._include_usage else {}) | extension

    def _said(self, message: AIMessageChunk) -> Iterator[Json]:
        if thought := message.additional_kwargs.get("reasoning_content"):
            self._thoughts.append(thought)
            yield self._chunk({"reasoning_content": thought})
        if message.text:
            self._texts.append(message.text)
            yield self._chunk({"content": message.text})
        for call in message.tool_call_chunks:
            if (call["args"] or "").startswith(UNFINISHED):
                # As a call, no client could send it back; as text, all of them can.
                text = (call["args"] or "").removeprefix(UNFINISHED)
                self._texts.append(text)
                yield self._chunk({"content": text})
                continue
            fields = {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"] or "", "arguments": call["args"] or ""},
            }
            yield self._chunk({"tool_calls": [{"index": len(self._calls), **fields}]})
            self._calls.append(fields)
        if message.chunk_position == "last":
            self.last = message

    def _reasoning(self, piece: ReasoningChunk) -> Json | None:
        place = len(piece.blocks) - 1
        if piece.stage == "plan" and piece.delta:
            return {"stage": "plan", "text": piece.delta}
        if piece.stage == "plan" and len(piece.blocks) > self._plans:
            self._plans = len(piece.blocks)
            plan = piece.blocks[-1].plan
            return {"stage": "plan", "block": place, "titles": plan.titles, "form": plan.form}
        if piece.stage == "expand" and piece.branch is not None:
            branch = piece.blocks[-1].branches[0]
            place_of = {
                "stage": "expand",
                "block": place,
                "branch": branch.index,
                "title": branch.title,
            }
            ended = {"finish_reason": branch.finish_reason}
            return place_of | ({"text": piece.delta} if piece.delta else ended)
        return None

    # ----------------------------------------------------------------------- whole

    def whole(self) -> Json:
        """The whole answer.

        Raises:
            ApiError: the model has written no text.
        """
        metadata = self._metadata()
        text = "".join(self._texts)
        message: Json = {
            "role": "assistant",
            "content": None if self._calls and not text else text,
            "refusal": None,
        }
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": metadata["finish_reason"],
            "logprobs": metadata.get("logprobs"),
        }
        answer = self._as("chat.completion") | {"choices": [choice], "usage": self._usage()}
        return answer | {"reasoning": metadata["reasoning"]}

    # ------------------------------------------------------------------------ both

    def _as(self, kind: str) -> Json:
        return {"id": self._head["id"], "object": kind, **self._head}

    def _metadata(self) -> Json:
        metadata = self._last().response_metadata
        if "error" in metadata:
            raise ApiError(
                500,
                f"there is no answer: {metadata['error']}; rephrase the question, or set a "
                "temperature",
                "no_answer",
                reasoning=metadata["reasoning"],
            )
        return metadata

    def _usage(self) -> Json:
        usage = self._last().usage_metadata
        if usage is None:
            raise RuntimeError("the chat model gave no usage")
        return {
            "prompt_tokens": usage["input_tokens"],
            "completion_tokens": usage["output_tokens"],
            "total_tokens": usage["total_tokens"],
            "prompt_tokens_details": {
                "cached_tokens": usage.get("input_token_details", {}).get("cache_read", 0)
            },
            "completion_tokens_details": {
                "reasoning_tokens": usage.get("output_token_details", {}).get("reasoning", 0)
            },
        }

    def _last(self) -> AIMessageChunk:
        if self.last is None:
            raise RuntimeError("the chat model ended its answer without a last chunk")
        return self.last
