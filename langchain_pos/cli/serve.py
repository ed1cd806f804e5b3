"""`langchain-pos serve`: the chat model as an OpenAI-compatible HTTP server."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from langchain_pos.cli.options import (
    BudgetOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    QuantizationOption,
    exit_codes,
    quiet_libraries,
    say,
)
from langchain_pos.embedded import SHIPPED_MODEL_NOTE
from langchain_pos.errors import InvalidRequestError


def serve(
    model: ModelOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but a local one requires an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Key that clients must send; several, separated by commas, for callers that "
            "take turns. The environment hides it from `ps`.",
        ),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="Model name for clients; by default its own.")
    ] = None,
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Requests answered at once; others wait.")
    ] = 16,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Maximum number of requests that may wait.")
    ] = 64,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens that a request may ask for.")
    ] = 4096,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Largest request, in bytes.")] = 2
    * 2**20,
    max_stored_bytes: Annotated[
        int, typer.Option(min=0, help="Bytes of responses kept for previous_response_id.")
    ] = 64 * 2**20,
    request_seconds: Annotated[
        float, typer.Option(min=0.001, help="Seconds allowed for a whole answer.")
    ] = 600,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds to finish running answers on shutdown.")
    ] = 30,
    max_branches: Annotated[
        int, typer.Option(min=2, help="Maximum number of steps in one plan.")
    ] = 64,
    max_branch_tokens: BudgetOption = None,
    max_slots: Annotated[
        int | None, typer.Option(min=1, help="KV-cache slots; half of the free memory if omitted.")
    ] = None,
    page: Annotated[
        bool,
        typer.Option("--page/--no-page", help="A page at / to ask and watch branches grow."),
    ] = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: QuantizationOption = None,
    device_map: Annotated[
        str | None,
        typer.Option(help="auto, balanced, …: transformers spreads a model over several GPUs."),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run several replicas of the model on Ray Serve.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Fixed number of replicas; one per GPU if omitted.")
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option(min=1, help="Scale replicas with the load, from this number …")
    ] = None,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="… to this one.")] = None,
    gpus_per_replica: Annotated[
        float | None, typer.Option(min=0, help="GPUs per replica; 1 if omitted and there are GPUs.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; one on this machine if omitted.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Serve the model over HTTP, with OpenAI's API and a page.

    The API: /v1/chat/completions, /v1/responses, /v1/models. The page: /.

    SIGTERM or Ctrl+C refuses new requests and finishes running ones; a second one stops at once.
    """
    with exit_codes(debug):
        from langchain_pos.chat_models.base import ChatParallelReasoning
        from langchain_pos.server.admission import ServerLimits
        from langchain_pos.server.process import bind, make_server

        scaling = {
            "replicas": replicas,
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "gpus_per_replica": gpus_per_replica,
            "address": ray_address,
        }
        scaling = {name: value for name, value in scaling.items() if value is not None}
        if scaling and not ray:
            named = ", ".join("--ray-address" if n == "address" else _option(n) for n in scaling)
            raise InvalidRequestError(f"{named} applies to replicas; add --ray")
        quiet_libraries()
        given = {
            "model": model,
            "max_branches": max_branches,
            "max_branch_tokens": max_branch_tokens,
            "max_slots": max_slots,
            "device": device,
            "dtype": dtype,
            "quantization": quantization,
            "model_kwargs": {"device_map": device_map} if device_map is not None else None,
        }
        chat = ChatParallelReasoning(**{k: v for k, v in given.items() if v is not None})
        asked: dict[str, Any] = {
            "host": host,
            "api_key": None if api_key is None else [key.strip() for key in api_key.split(",")],
            "limits": ServerLimits(
                max_concurrency=max_concurrency,
                max_queue=max_queue,
                max_tokens=max_tokens,
                max_body_bytes=max_body_bytes,
                max_stored_bytes=max_stored_bytes,
                request_seconds=request_seconds,
                drain_seconds=drain_seconds,
            ),
            "model_name": served_model_name,
            "page": page,
        }
        with ExitStack() as stack:
            if ray:
                from langchain_pos.server.replicas.launch import ray_server
                from langchain_pos.server.replicas.options import RayOptions

                options = RayOptions.of(**scaling)
                server = stack.enter_context(ray_server(chat, options=options, **asked))
            else:
                server = make_server(chat, **asked)
            socket = bind(host, port)
            name = f"[{host}]" if ":" in host else host
            url = f"http://{name}:{socket.getsockname()[1]}"
            if model is None:
                say(f"{SHIPPED_MODEL_NOTE}. --model names your own")
            say(f"{url}/v1 serves {server.model_name}" + (f"; to watch it: {url}/" if page else ""))
            server.run(sockets=[socket])


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
