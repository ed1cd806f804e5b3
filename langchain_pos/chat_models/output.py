"""The reasoner's chunks as LangChain messages: branches as reasoning, the conclusion as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.messages.utils import message_chunk_to_message

from langchain_pos.chat_models.reading_order import ReadingOrder
from langchain_pos.chat_models.tool_calling import CallText, ToolCallReader
from langchain_pos.results.data import END_MARK, Block, BranchResult, Plan
from langchain_pos.results.result import ReasoningChunk

if TYPE_CHECKING:
    from langchain_pos.reasoning.branch_schema import BranchSchema
    from langchain_pos.reasoning.reasoner import Reasoning
    from langchain_pos.results.result import ReasoningResult

PROVIDER = "langchain_pos"
UNFINISHED = "unfinished: "
"""Before the text of a call that is cut or does not fit its schema: without it, langchain-core
would read the arguments as far as they go."""


_ATTEMPTS = re.compile(f"(?<={re.escape(END_MARK)})")


class MessageWriter:
    """Turns the chunks of one answer into message chunks; they add up to the message.

    The plan is written as reasoning from its first token, as the model writes it. A branch reads
    `title: body`. With `blocks` every branch is a reasoning block of its own and
    grows while it is written, beside the others. Without, `additional_kwargs["reasoning_content"]`
    takes them as they are finished, in the plan's order, and the content is the text alone.
    In native form the whole answer is the text: its list is what was asked for.

    Args:
        blocks: write content blocks (`output_version="v1"`).
        calls: finds tool calls in the text; None where there can be none.
        schemas: what the arguments of each tool must be.
        deltas: whether text comes piece by piece, so that what a skeleton follows came before it;
            otherwise it is written after that.

    Attributes:
        called: whether it has written a whole, valid call.
        call_errors: what is wrong with other calls, by their ids.
    """

    def __init__(
        self,
        *,
        blocks: bool,
        calls: ToolCallReader | None,
        schemas: Mapping[str, BranchSchema] = MappingProxyType({}),
        deltas: bool = True,
    ) -> None:
        self.call_errors: dict[str, str] = {}
        self._schemas = schemas
        self._blocks = blocks
        self._calls = calls
        self._next_index = 0  # of the next content block
        self._places: list[int] = []  # content block of each branch of the last plan
        self._text_index: int | None = None
        self._deltas = deltas
        self._held: list[str] = []  # skeletons, until it is known what they follow
        self._thoughts_index: int | None = None
        self._outline = ""  # of the skeleton that is being written
        self._outline_index = 0
        self._plans = 0
        self._order: ReadingOrder | None = None  # of an answer in native form
        self._written_text = ""  # of the conclusion after the last plan
        self._finished: dict[int, BranchResult] = {}
        self._ended: set[int] = set()
        self._waiting = 0  # the first branch that has not been written, without blocks
        self.called = False

    def write(self, chunk: ReasoningChunk) -> Iterator[AIMessageChunk]:
        """The message chunks that a chunk stands for; may be none."""
        if chunk.thoughts:
            if self._thoughts_index is None:
                self._thoughts_index = self._new_index()
            yield from self._think(chunk.thoughts, self._thoughts_index)
        elif chunk.stage == "plan" and chunk.delta:
            self._held.append(chunk.delta)
            if self._deltas:
                yield from self._skeletons()
        elif chunk.stage == "plan" and len(chunk.blocks) > self._plans:
            yield from self._plan(chunk.blocks)
        elif chunk.stage == "expand":
            branch = chunk.blocks[-1].branches[0]
            yield from self._branch(branch, ended=not chunk.delta)
        elif chunk.stage == "conclude" and not chunk.conclusion:
            yield from self._skeletons()
        elif chunk.stage == "conclude":
            if self._order is not None and not self._written_text:
                yield from self._answer("\n\n")
            self._outline = ""
            self._written_text += chunk.conclusion
            yield from self._answer(chunk.conclusion)
            yield from self._skeletons()

    def close(
        self, reasoning: Reasoning, result: ReasoningResult, **metadata: Any
    ) -> AIMessageChunk:
        """The last chunk: what is still held back, usage and metadata."""
        last = list(self._written(self._calls.close())) if self._calls is not None else []
        chunk = AIMessageChunk(content=[] if self._blocks else "")
        for piece in last:
            chunk += piece
        chunk.chunk_position = "last"
        chunk.usage_metadata = _usage(reasoning, result)
        found = _metadata(result) | metadata
        if self.called and found["finish_reason"] == "stop":
            found["finish_reason"] = "tool_calls"
        if self.call_errors:
            found["call_errors"] = self.call_errors
        chunk.response_metadata = found
        return chunk

    # -------------------------------------------------------------------- reasoning

    def _skeletons(self) -> Iterator[AIMessageChunk]:
        """Write what is held of skeletons; each attempt at one is a block."""
        for text in _ATTEMPTS.split("".join(self._held)):
            if text and (not self._outline or self._outline.endswith(END_MARK)):
                if self._outline or self._thoughts_index is not None:
                    yield from self._gap()
                self._outline, self._outline_index = "", self._new_index()
            if text:
                self._outline += text
                yield from self._think(text, self._outline_index)
        self._held.clear()

    def _gap(self) -> Iterator[AIMessageChunk]:
        """Ends a line of reasoning where it is all one text."""
        if not self._blocks and not self._outline.endswith("\n"):
            yield self._reasoning("\n")

    def _plan(self, blocks: tuple[Block, ...]) -> Iterator[AIMessageChunk]:
        plan = blocks[-1].plan
        if plan.form == "native":
            if not plan.preamble and not self._plans:  # no text comes before the skeleton
                yield from self._skeletons()
            yield from self._list(plan)
        elif self._plans:  # the conclusion so far has become the preamble of a further block
            rest = plan.preamble.removeprefix(self._written_text)
            if plan.preamble:
                yield from self._answer(rest + "\n\n")
        yield from self._skeletons()
        if self._outline:
            yield from self._gap()
        self._outline = ""
        self._plans, self._written_text = len(blocks), ""
        if self._order is not None:
            return
        self._text_index = None
        self._finished, self._ended, self._waiting = {}, set(), 0
        self._places = [self._new_index() for _ in plan.steps]
        if self._blocks:
            for step, place in zip(plan.steps, self._places, strict=True):
                yield from self._think(f"{step.title}: ", place)

    def _list(self, plan: Plan) -> Iterator[AIMessageChunk]:
        """A list begins, after what has been written of its lead-in."""
        rest = plan.preamble.removeprefix(self._written_text)
        if rest and self._plans and not self._written_text:
            rest = f"\n\n{rest}"
        self._order = ReadingOrder(plan)
        gap = plan.between if plan.preamble or self._plans else ""
        yield from self._answer(f"{rest}{gap}{self._order.begin()}")

    def _branch(self, branch: BranchResult, *, ended: bool) -> Iterator[AIMessageChunk]:
        if self._order is not None:
            if piece := self._order.take(branch, ended=ended):
                yield from self._answer(piece)
            return
        if self._blocks:
            if branch.text:
                yield from self._think(branch.text, self._places[branch.index])
            return
        known = self._finished.get(branch.index)
        text = (known.text if known else "") + branch.text
        branch = branch.model_copy(update={"text": text})
        self._finished[branch.index] = branch
        if ended:
            self._ended.add(branch.index)
        while self._waiting in self._ended:
            done = self._finished[self._waiting]
            self._waiting += 1
            yield self._reasoning(f"{done.title}: {done.text}\n")

    def _think(self, text: str, index: int) -> Iterator[AIMessageChunk]:
        if self._blocks:
            block = {"type": "reasoning", "reasoning": text, "index": index}
            yield AIMessageChunk(content=[block])
        else:
            yield self._reasoning(text)

    def _reasoning(self, text: str) -> AIMessageChunk:
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})

    # ----------------------------------------------------------------------- answer

    def _answer(self, text: str) -> Iterator[AIMessageChunk]:
        if self._calls is None:
            yield self._text(text)
        else:
            yield from self._written(self._calls.push(text))

    def _written(self, pieces: Iterator[str | CallText]) -> Iterator[AIMessageChunk]:
        for piece in pieces:
            yield self._text(piece) if isinstance(piece, str) else self._call(piece)

    def _text(self, text: str) -> AIMessageChunk:
        if not self._blocks:
            return AIMessageChunk(content=text)
        if self._text_index is None:
            self._text_index = self._new_index()
        return AIMessageChunk(content=[{"type": "text", "text": text, "index": self._text_index}])

    def _call(self, call: CallText) -> AIMessageChunk:
        error = self._wrong_with(call)
        self.called = self.called or error is None
        if error is not None:
            self.call_errors[call.id] = error
        args = call.args if error is None else f"{UNFINISHED}{call.args}"
        chunk = tool_call_chunk(name=call.name, args=args, id=call.id, index=self._new_index())
        self._text_index = None
        return AIMessageChunk(content=[] if self._blocks else "", tool_call_chunks=[chunk])

    def _wrong_with(self, call: CallText) -> str | None:
        if not call.whole:
            return "the answer ended before this call was complete"
        try:
            if (schema := self._schemas.get(call.name)) is not None:
                schema.parse(call.args)
        except ValueError as error:
            return f"the arguments do not fit the schema of {call.name}: {error}"
        return None

    def _new_index(self) -> int:
        self._next_index += 1
        return self._next_index - 1


def whole_message(chunks: list[AIMessageChunk]) -> AIMessage:
    """The sum of all chunks as a plain message."""
    total = chunks[0] if len(chunks) == 1 else chunks[0] + chunks[1:]
    message = message_chunk_to_message(total)
    if not isinstance(message, AIMessage):
        raise TypeError(f"chunks of an answer add up to {type(message).__name__}")
    if isinstance(message.content, list):
        message.content = [
            {key: value for key, value in block.items() if key != "index"}
            if isinstance(block, dict)
            else block
            for block in message.content
        ]
    # What core parses leniently, for streams, is read here as it stands.
    message.tool_calls = [
        tool_call(name=call["name"], args=json.loads(written["args"] or "{}"), id=call["id"])
        for call, written in zip(message.tool_calls, _whole_calls(total), strict=True)
    ]
    errors = message.response_metadata.pop("call_errors", {})
    for call in message.invalid_tool_calls:
        call["error"] = errors.get(call["id"])
    return message


def _whole_calls(total: AIMessageChunk) -> list[Any]:
    whole = {call["id"] for call in total.tool_calls}
    return [chunk for chunk in total.tool_call_chunks if chunk["id"] in whole]


def _usage(reasoning: Reasoning, result: ReasoningResult) -> UsageMetadata:
    usage = UsageMetadata(
        input_tokens=result.usage.input_tokens,
        output_tokens=result.usage.output_tokens,
        total_tokens=result.usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=result.cached_tokens),
    )
    tokens = reasoning.progress.stage_tokens
    native = any(block.plan.form == "native" for block in result.blocks)
    thought = tokens["plan"] + (0 if native else tokens["expand"])
    usage["output_token_details"] = OutputTokenDetails(reasoning=thought)
    return usage


def _finish_reason(result: ReasoningResult) -> str:
    """Of the whole text: a branch that its budget cut leaves a gap in it, wherever it ends."""
    cut = any(branch.finish_reason == "length" for branch in result.branches)
    return "length" if cut and result.finish_reason == "stop" else result.finish_reason


def _metadata(result: ReasoningResult) -> dict[str, Any]:
    reasoning = result.model_dump(mode="json")
    found = {
        "model_name": result.model_name,
        "model_provider": PROVIDER,
        "finish_reason": _finish_reason(result),
        "mode": result.mode,
        "timings": reasoning["timings"] | {"total": result.timings.total},
        "forward_passes": reasoning["forward_passes"] | {"total": result.forward_passes.total},
        "drafts": reasoning["drafts"],
        "reasoning": reasoning,
    }
    optional = {"error": result.error, "fallback_reason": result.fallback_reason}
    return found | {name: value for name, value in optional.items() if value is not None}
