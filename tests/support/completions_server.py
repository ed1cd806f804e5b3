"""A scripted server with `/v1/completions` on loopback, ours, for tests of what goes wrong.

It follows the rules of `models.Script`: the model goes on with the text of that rule whose cue the
prompt ends with. A piece of text is a token. Stop texts are cut off, as most servers do.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel

from langchain_pos import OpenAICompletionsEngine, ParallelReasoningLLM, ReasoningResult
from langchain_pos.server import bind
from tests.support.scripted import BARE, SMALL

MODEL = "scripted"
ASKED = "Question: Who?\n\nAnswer:\n"
OUTLINE = "Let us see.\n####Ann:......\n####Ben:......\n####%%%%"


class Gpa(BaseModel):
    """What a branch finds."""

    gpa: int


@dataclass
class Reply:
    """What the server does with one request.

    Attributes:
        text: what the model writes.
        status: other than 200: refused with `body` and `headers`.
        cut_after: the connection breaks behind so many pieces.
        end_after: the stream ends, as if in good order, behind so many pieces.
        event: a line of the stream in place of the end.
        hold: wait for `Server.go_on` before the last piece.
        told_stop: tell which stop text ended it, as vLLM does.
        keep_stop: leave the stop text in, as transformers does.
        ignore_stop: write on after it, as transformers does with continuous batching.
        usage: tell it.
    """

    text: str = ""
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    end_after: int | None = None
    event: str | None = None
    hold: bool = False
    told_stop: bool = False
    keep_stop: bool = False
    ignore_stop: bool = False
    usage: bool = True


Rules = dict[str, str | Reply | list[str | Reply]]


def pieces(text: str) -> list[str]:
    """A text's tokens: words with the blanks before them, and line breaks."""
    return re.findall(r" *[^\s]{1,4}|\s", text)


class Server:
    """Follows rules, and keeps what it was asked.

    Attributes:
        rules: by what a prompt ends with; of a list, one for each time.
        asked: bodies of all requests for completions.
        headers: of the same.
        most: requests that were under way at once, at most.
        left: clients that went before the end.
    """

    def __init__(self, rules: Rules, **card: Any) -> None:
        self.rules = rules
        self.cards: list[dict[str, Any]] = [
            {"id": MODEL, "object": "model", "created": 0, "owned_by": "us", **card}
        ]
        self.models_status = 200
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = self.most = self.left = 0
        self.go_on = threading.Event()
        self.reached = threading.Event()
        self.url = ""
        self._seen: dict[str, int] = {}
        self.app = FastAPI()
        self.app.get("/v1/models")(self._models)
        self.app.post("/v1/completions")(self._completions)

    @property
    def prompts(self) -> list[Any]:
        """The prompts of all requests."""
        return [body["prompt"] for body in self.asked]

    def engine(self, **fields: Any) -> OpenAICompletionsEngine:
        """An engine on this server."""
        return OpenAICompletionsEngine(
            **{"base_url": self.url, "max_retries": 0, "timeout": 30, **fields}
        )

    def llm(self, engine: dict[str, Any] | None = None, **fields: Any) -> ParallelReasoningLLM:
        """A runnable on this server, with small budgets and bare prompts."""
        fields = {"prompts": BARE, **SMALL, **fields}
        return ParallelReasoningLLM(engine=self.engine(**(engine or {})), **fields)

    def at_rest(self) -> bool:
        """Nothing is under way any more; comes as soon as uvicorn has seen who left."""
        while self.under_way:
            time.sleep(0.005)
        return True

    def _models(self) -> dict[str, Any]:
        if self.models_status != 200:
            raise HTTPException(self.models_status, "no list")
        return {"object": "list", "data": self.cards}

    def _reply(self, prompt: str) -> Reply:
        fitting = [cue for cue in self.rules if prompt.endswith(cue)]
        if not fitting:
            return Reply(status=500, body={"error": {"message": f"no rule for {prompt!r}"}})
        cue = max(fitting, key=len)
        rule = self.rules[cue]
        if isinstance(rule, list):
            place = self._seen.get(cue, 0)
            self._seen[cue] = place + 1
            rule = rule[min(place, len(rule) - 1)]
        return Reply(rule) if isinstance(rule, str) else rule

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.times.append(time.monotonic())
        prompt = body["prompt"]
        reply = self._reply(prompt if isinstance(prompt, str) else "".join(map(chr, prompt)))
        if reply.status != 200:
            return JSONResponse(reply.body, reply.status, reply.headers)
        return StreamingResponse(self._stream(body, reply), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any], reply: Reply) -> AsyncIterator[str]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        whole = False
        try:
            text, stop = reply.text, None
            stops = () if reply.ignore_stop else body.get("stop", ())
            found = [(text.find(s), s) for s in stops if s in text]
            if found:
                at, stop = min(found)
                text = text[: at + len(stop)] if reply.keep_stop else text[:at]
            tokens = pieces(text)
            written = tokens[: body["max_tokens"]]
            length = len(written) < len(tokens)
            for place, piece in enumerate(written):
                if place == reply.cut_after:
                    raise ConnectionResetError
                if place == reply.end_after:
                    return
                if reply.hold and place == len(written) - 1:
                    self.reached.set()
                    while not self.go_on.is_set():
                        await asyncio.sleep(0.005)
                yield self._chunk({"index": 0, "text": piece, "finish_reason": None})
                await asyncio.sleep(0.001)
            if reply.event is not None:
                yield f"data: {reply.event}\n\n"
                return
            last = {"index": 0, "text": "", "finish_reason": "length" if length else "stop"}
            if reply.told_stop and not length:
                last["stop_reason"] = stop
            yield self._chunk(last)
            if reply.usage:
                prompt = body["prompt"]
                read = len(pieces(prompt)) if isinstance(prompt, str) else len(prompt)
                usage = {
                    "prompt_tokens": read,
                    "completion_tokens": len(written),
                    "total_tokens": read + len(written),
                    "prompt_tokens_details": {"cached_tokens": 1},
                }
                yield f"data: {json.dumps({**self._head(), 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
            whole = True
        finally:
            self.left += not whole
            self.under_way -= 1

    def _head(self) -> dict[str, Any]:
        return {"id": "x", "object": "text_completion", "created": 0, "model": MODEL}

    def _chunk(self, choice: dict[str, Any]) -> str:
        return f"data: {json.dumps({**self._head(), 'choices': [choice]})}\n\n"


@contextmanager
def serving(rules: Rules, **card: Any) -> Iterator[Server]:
    """A server that runs while inside."""
    scripted = Server(rules, **card)
    socket = bind("127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
    config = uvicorn.Config(scripted.app, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield scripted
    finally:
        scripted.go_on.set()
        server.should_exit = True
        server.force_exit = True
        thread.join()


def told(result: ReasoningResult) -> dict[str, Any]:
    """What a result says, without what it has cost."""
    data = result.model_dump(
        include={"blocks", "conclusion", "mode", "finish_reason", "fallback_reason", "error"}
    )
    for block in data["blocks"]:
        block["plan"].pop("pressure", None)  # which a server does not tell
        for branch in block["branches"]:
            del branch["started"], branch["ended"], branch["usage"]
    return data
