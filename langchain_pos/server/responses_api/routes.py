"""The routes of the Responses API, around the response to the chat completion that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from langchain_pos.engine.scheduler.fair_queue import Caller
from langchain_pos.server.admission import read_body, read_deadline
from langchain_pos.server.errors import ApiError
from langchain_pos.server.responses_api.events import ResponseWriter
from langchain_pos.server.responses_api.requests import ResponseRequest, as_asked, own_name
from langchain_pos.server.responses_api.store import ResponseStore, Stored
from langchain_pos.server.service import Errand

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Message, Receive, Scope, Send

    from langchain_pos.server.responses_api.input import Json
    from langchain_pos.server.service import Served

RESPONSES = "/v1/responses"


def add_responses(app: FastAPI, service: Served) -> None:
    """Let an app answer at `/v1/responses`."""
    store = ResponseStore(service.gate.limits.max_stored_bytes)

    def stored(request: Request, response_id: str) -> Stored:
        found = store.get(request.state.account, response_id)
        if found is None:
            raise _not_found(response_id)
        return found

    @app.post(RESPONSES)
    async def _respond(request: Request) -> Response:
        seconds = read_deadline(request)
        asked = ResponseRequest.read(await read_body(request, service.gate.limits))
        service.known(asked.model)
        account = request.state.account
        history: tuple[Json, ...] = ()
        if asked.previous_response_id is not None:
            previous = store.get(account, asked.previous_response_id)
            if previous is None:
                raise _no_previous(asked.previous_response_id)
            history = previous.items
        chat, body = asked.as_chat(history)

        def keep(response: Json) -> None:
            if asked.store is not False:
                items = (*history, *asked.items, *response["output"])
                response["store"] = store.keep(account, response, items)

        try:
            caller = Caller(account, chat.on_behalf_of)
            answer = service.answer(Errand(chat, body, caller, seconds))
        except ApiError as error:
            raise as_asked(error) from error
        return Translated(answer, ResponseWriter(asked), keep, stream=bool(asked.stream))

    @app.get(RESPONSES + "/{response_id}")
    async def _retrieve(request: Request, response_id: str) -> Response:
        return JSONResponse(stored(request, response_id).response)

    @app.delete(RESPONSES + "/{response_id}")
    async def _delete(request: Request, response_id: str) -> Response:
        stored(request, response_id)
        store.forget(request.state.account, response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})


class Translated(Response):
    """The response to a chat completion, said as the Responses API says it.

    Args:
        inner: that response; the client's connection, time and errors are its own matter.
        writer: writes the events, or the whole.
        keep: called with the response when it is complete.
        stream: whether it was asked for as a stream.
    """

    def __init__(
        self,
        inner: Response,
        writer: ResponseWriter,
        keep: Callable[[Json], None],
        *,
        stream: bool,
    ) -> None:
        super().__init__()
        self._inner = inner
        self._writer = writer
        self._keep = keep
        self._streams = stream
        self._started: Message = {}
        self._rest = b""  # of what the inner response has sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; an error that comes before anything is sent is raised."""

        async def translated(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._started = message
                self._streams = self._streams and message["status"] == 200
                if self._streams:
                    await send(message)
                    await _send_events(send, self._writer.begin())
                return
            self._rest += message.get("body", b"")
            more = message.get("more_body", False)
            if self._streams:
                while b"\n\n" in self._rest:
                    event, _, self._rest = self._rest.partition(b"\n\n")
                    await self._translate(event.removeprefix(b"data: "), send)
                if not more:
                    await _send(send, b"", more=False)
            elif not more:
                await self._whole()(scope, receive, send)

        try:
            await self._inner(scope, receive, translated)
        except ApiError as error:
            raise as_asked(error) from error

    async def _translate(self, data: bytes, send: Send) -> None:
        if data == b"[DONE]":
            *events, last = self._writer.end()
            self._keep(self._writer.response)
            last["response"]["store"] = self._writer.response["store"]
            await _send_events(send, [*events, last])
            await send(
                {"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True}
            )
            return
        chunk = json.loads(data)
        if "error" in chunk:
            await _send_events(send, self._writer.fail(_renamed(chunk["error"])))
        else:
            await _send_events(send, self._writer.take(chunk))

    def _whole(self) -> Response:
        status, answer = self._started["status"], json.loads(self._rest)
        if status != 200:
            headers = {
                name.decode(): value.decode()
                for name, value in self._started["headers"]
                if name.lower() not in (b"content-length", b"content-type")
            }
            answer["error"] = _renamed(answer["error"])
            return JSONResponse(answer, status_code=status, headers=headers)
        response = self._writer.whole(answer)
        self._keep(response)
        return JSONResponse(response)


async def _send_events(send: Send, events: Iterable[Json]) -> None:
    for event in events:
        await _send(send, f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _renamed(error: Json) -> dict[str, Any]:
    """An error of a replica, with the name that its field has here."""
    if (param := error.get("param")) is None:
        return error
    message = error["message"].replace(param, own_name(param), 1)
    return {**error, "param": own_name(param), "message": message}


def _no_previous(response_id: str) -> ApiError:
    return ApiError(
        400,
        f"the response {response_id[:80]!r} does not exist: it was never stored, or has been "
        "dropped since; send the whole history as the input",
        "previous_response_not_found",
        param="previous_response_id",
    )


def _not_found(response_id: str) -> ApiError:
    return ApiError(
        404,
        f"the response {response_id[:80]!r} does not exist: it was never stored, or has been "
        "dropped since",
        "not_found",
        param="response_id",
    )
