"""The chunks of a chat completion as the Responses API's typed events, and as a whole response.

    created, in_progress, (an item: added, deltas, done) …, completed | incomplete | failed

Items come one after the other, because clients put deltas of items that are open together into one
block each. So the skeleton comes first, then each branch in the plan's order: the first one live,
the others as soon as all before them have ended. In native form the list is the answer, and its
branches are no items.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from langchain_pos.results.data import BODY_PLACEHOLDER, END_MARK, STEP_MARK, Block
from langchain_pos.server.responses_api.output import (
    Called,
    Event,
    Json,
    OutputItem,
    Said,
    Status,
    Thought,
)

if TYPE_CHECKING:
    from langchain_pos.server.responses_api.requests import ResponseRequest


class ResponseWriter:
    """Writes one response.

    Args:
        asked: the request; what it set is repeated in the response.

    Attributes:
        response: as far as it has come.
    """

    def __init__(self, asked: ResponseRequest) -> None:
        self.response: Json = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **_repeated(asked),
        }
        self._sequence = 0
        self._open: OutputItem | None = None
        self._said = False  # text of the answer has begun
        self._skeleton = ""  # written behind text, so that it waits for its plan
        self._branches: _Branches | None = None
        self._finish_reason = "stop"
        self._logprobs: list[Json] = []

    # ----------------------------------------------------------------------- stream

    def begin(self) -> Iterator[Json]:
        """The first events."""
        for status in ("created", "in_progress"):
            yield self._event((status, {"response": self._so_far()}))

    def take(self, chunk: Json) -> Iterator[Json]:
        """The events for a chunk of the chat completion."""
        yield from map(self._event, self._take(chunk))

    def end(self) -> Iterator[Json]:
        """The last events; `response` is complete before the very last one."""
        if not self._said and not self.response["output"] and not isinstance(self._open, Called):
            yield from map(self._event, self._write(Said, ""))
        cut = self._finish_reason == "length"
        status: Status = "incomplete" if cut else "completed"
        yield from map(self._event, self._close(status))
        self.response |= {"status": status, "completed_at": None if cut else int(time.time())}
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._event((status, {"response": self._so_far()}))

    def fail(self, error: Json) -> Iterator[Json]:
        """The events for an error in the stream.

        Args:
            error: as `ApiError.body` has it. OpenAI's clients raise it where they meet it under
                this name, so it stands there besides its fields.
        """
        named = {name: error[name] for name in ("code", "message", "param")}
        yield {"type": "error", "sequence_number": self._sequence, **named, "error": error}
        self._sequence += 1
        failed = {"code": error["code"], "message": error["message"]}
        self.response |= {"status": "failed", "error": failed}
        yield self._event(("failed", {"response": self._so_far()}))

    # ------------------------------------------------------------------------ whole

    def whole(self, answer: Json) -> Json:
        """A whole chat completion as a whole response."""
        for chunk in _as_chunks(answer):
            for _ in self.take(chunk):
                pass
        for _ in self.end():
            pass
        return self.response

    # ------------------------------------------------------------------------ items

    def _take(self, chunk: Json) -> Iterator[Event]:
        if (news := chunk.get("reasoning_delta")) is not None:
            yield from self._think(news)
        if chunk.get("reasoning") is not None:
            self.response["reasoning_result"] = chunk["reasoning"]
        if chunk.get("usage") is not None:
            self.response["usage"] = _usage(chunk["usage"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                yield from self._write(Said, delta["content"])
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            self._finish_reason = choice["finish_reason"] or self._finish_reason
            self._logprobs = (choice.get("logprobs") or {}).get("content") or []

    def _think(self, news: Json) -> Iterator[Event]:
        if news["stage"] == "plan" and "text" in news:
            if self._said:
                self._skeleton += news["text"]
            else:
                yield from self._write(Thought, news["text"])
        elif news["stage"] == "plan":
            native = news["form"] == "native"
            self._branches = None if native else _Branches(news["titles"])
            self._skeleton = "" if native else self._skeleton
        elif self._branches is not None:
            if self._skeleton:
                yield from self._write(Thought, self._skeleton)
                self._skeleton = ""
            yield from self._branch(self._branches, news)

    def _branch(self, branches: _Branches, news: Json) -> Iterator[Event]:
        if not branches.begun:
            branches.begun = True
            yield from self._begin(Thought())
            yield from self._write(Thought, branches.texts[0])
        branch, text = news["branch"], news.get("text", "")
        branches.texts[branch] += text
        if branch == branches.current and text:
            yield from self._write(Thought, text)
        if "finish_reason" in news:
            branches.ended[branch] = news["finish_reason"]
        while (reason := branches.ended.get(branches.current)) is not None:
            yield from self._close("completed" if reason == "stop" else "incomplete")
            branches.current += 1
            if branches.current < len(branches.texts):
                yield from self._begin(Thought())
                yield from self._write(Thought, branches.texts[branches.current])

    def _call(self, call: Json) -> Iterator[Event]:
        yield from self._begin(Called(call["id"], call["function"]["name"]))
        yield from self._write(Called, call["function"]["arguments"])

    def _write(self, kind: type[Thought | Said | Called], text: str) -> Iterator[Event]:
        """Text for an item of a kind: of the one that is open, or of a new one."""
        if not isinstance(self._open, kind):
            yield from self._begin(kind())  # type: ignore[call-arg]  # a call is open by then
        self._said = self._said or kind is Said
        if text and self._open is not None:
            yield from self._placed(self._open.write(text))

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        yield from self._close()
        self._open = item
        yield from self._placed(item.begin())

    def _close(self, status: Status = "completed") -> Iterator[Event]:
        if (item := self._open) is not None:
            logprobs = self._logprobs if isinstance(item, Said) else None
            yield from self._placed(item.end(status, logprobs))
            self.response["output"].append(item.item)
            self._open = None

    def _placed(self, events: Iterator[Event]) -> Iterator[Event]:
        place = len(self.response["output"])
        return ((kind, {"output_index": place, **fields}) for kind, fields in events)

    def _event(self, event: Event) -> Json:
        kind, fields = event
        self._sequence += 1
        number = self._sequence - 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}

    def _so_far(self) -> Json:
        return {**self.response, "output": list(self.response["output"])}


class _Branches:
    """The branches of a plan, as far as they have come."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.texts = [f"{title}: " for title in titles]
        self.ended: dict[int, str] = {}
        self.current = 0
        self.begun = False


def _as_chunks(answer: Json) -> Iterator[Json]:
    """A whole chat completion as if it had been streamed; retries of the plan are not in it."""
    result = answer["reasoning"]
    for place, data in enumerate(result["blocks"]):
        block = Block.model_validate(data)
        plan: Json = {"stage": "plan", "titles": block.plan.titles, "form": block.plan.form}
        if result["plan_attempts"] and (text := _skeleton(block, first=not place)):
            yield {"choices": [], "reasoning_delta": {"stage": "plan", "text": text}}
        yield {"choices": [], "reasoning_delta": plan}
        for branch in block.branches:
            news = {"stage": "expand", "branch": branch.index, "text": branch.text}
            ended = {"finish_reason": branch.finish_reason}
            yield {"choices": [], "reasoning_delta": news | ended}
    (choice,) = answer["choices"]
    message = choice["message"]
    delta = {"content": message["content"], "tool_calls": message.get("tool_calls")}
    yield {**answer, "choices": [{**choice, "delta": delta}]}


def _skeleton(block: Block, *, first: bool) -> str:
    """What stage 1 wrote; in native form it shows where it stands before the answer."""
    plan = block.plan
    if plan.form == "native":
        return "" if plan.preamble or not first else plan.written(["..."] * len(plan.steps))
    steps = "\n".join(f"{STEP_MARK}{title}:{BODY_PLACEHOLDER}" for title in plan.titles)
    return "\n".join(part for part in (plan.preamble, steps, END_MARK) if part)


def _usage(usage: Json) -> Json:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
    }


def _repeated(asked: ResponseRequest) -> Json:
    """What a response repeats of its request."""
    given = asked.model_dump(exclude_none=True)
    same = (
        *("instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p"),
        *("user", "safety_identifier", "prompt_cache_key"),
    )
    return {
        "model": asked.model,
        **{name: given.get(name) for name in same},
        "background": False,
        "max_tool_calls": None,
        "metadata": given.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": asked.store is not False,
        "text": {"format": {"type": "text"}} | given.get("text", {}),
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_logprobs": given.get("top_logprobs", 0),
        "truncation": "disabled",
    }
