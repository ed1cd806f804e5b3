"""The server's routes: /v1/chat/completions, /v1/responses, /v1/models, /health, /metrics, a page.

    Guard            host, API key; counts requests by status      (auth)
      └─ create_app  reads a request, hands it to whoever answers  (requests)
           └─ Service, ChatResponse   the chat model, as OpenAI's  (service, responses)
    responses_api    /v1/responses, said as a chat completion and back
    Gate             who is answered, who waits, who is refused    (admission)
      └─ FairQueue   whose turn it is                  (engine.scheduler.fair_queue)
    PosServer        uvicorn that drains before it ends            (process)

Requests share the engine's forward passes: each is a `ChatCall`, and one thread drives for all.
Several replicas share one front door in `replicas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from langchain_pos.engine.scheduler.fair_queue import Caller
from langchain_pos.server.admission import ServerLimits, read_body, read_deadline
from langchain_pos.server.auth import Guard, error_response, keys_of
from langchain_pos.server.errors import ApiError, api_error
from langchain_pos.server.page import PAGE_PATHS, add_page
from langchain_pos.server.requests import ChatRequest
from langchain_pos.server.responses_api.routes import RESPONSES, add_responses
from langchain_pos.server.service import Errand, Served, Service

if TYPE_CHECKING:
    from langchain_pos.chat_models.base import ChatParallelReasoning

ANSWERS = "/v1/chat/completions"


def create_app(
    chat: ChatParallelReasoning,
    *,
    api_key: str | Sequence[str] | None = None,
    limits: ServerLimits | None = None,
    model_name: str | None = None,
    page: bool = True,
) -> FastAPI:
    """The server as an ASGI application. `app.state.service` is what its routes share.

    Args:
        chat: answers; its settings are the defaults and bounds of requests. The model is loaded
            here if it is not.
        api_key: asked for on every path but `/health` and the page's; of several, one: each is a
            caller of its own. None answers without one, and only requests addressed to a loopback
            name.
        limits: bounds.
        model_name: what clients call the model; by default the hub name, or the folder's.
        page: whether `/` is a page to ask on, which shows the branches while they are written.

    Raises:
        ModelLoadError, UnsupportedModelError: it cannot serve.
    """
    keys = keys_of(api_key)
    return app_of(Service(chat, model_name, limits or ServerLimits()), api_keys=keys, page=page)


def app_of(service: Served, *, api_keys: Sequence[str] = (), page: bool = True) -> FastAPI:
    """The application over whoever answers; see `create_app`."""
    app = FastAPI(openapi_url=None)
    app.state.service = service
    app.add_middleware(
        Guard,
        paths=(ANSWERS, RESPONSES),
        requests=service.metrics.requests,
        api_keys=api_keys,
        public=PAGE_PATHS if page else frozenset(),
    )
    if page:
        add_page(app, wants_key=bool(api_keys))
    add_responses(app, service)

    @app.exception_handler(Exception)
    async def _fault(_: Request, raised: Exception) -> Response:
        return error_response(api_error(raised))

    @app.exception_handler(ApiError)
    async def _refused(_: Request, raised: Exception) -> Response:
        return error_response(api_error(raised))

    @app.exception_handler(HTTPException)
    async def _no_route(request: Request, raised: Exception) -> Response:
        status = getattr(raised, "status_code", 404)
        return error_response(
            ApiError(
                status,
                f"{request.method} {request.url.path} does not exist; available are POST {ANSWERS} "
                f"and {RESPONSES}, GET /v1/models, /health and /metrics"
                + (", and a page at /" if page else ""),
                "not_found" if status == 404 else "method_not_allowed",
            )
        )

    @app.post(ANSWERS)
    async def _answer(request: Request) -> Response:
        seconds = read_deadline(request)
        body = await read_body(request, service.gate.limits)
        asked = ChatRequest.read(body)
        service.known(asked.model)
        caller = Caller(request.state.account, asked.on_behalf_of)
        return service.answer(Errand(asked, body, caller, seconds))

    @app.get("/v1/models")
    async def _models() -> dict[str, Any]:
        return {"object": "list", "data": [service.model()]}

    @app.get("/v1/models/{model:path}")
    async def _model(model: str) -> dict[str, Any]:
        service.known(model)
        return service.model()

    @app.get("/health")
    async def _health() -> Response:
        health = await service.health()
        return JSONResponse(health, status_code=200 if health["status"] == "ok" else 503)

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(await service.metrics_text(), media_type="text/plain; version=0.0.4")

    return app
