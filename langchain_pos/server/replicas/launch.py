"""The server over several replicas on Ray Serve; `langchain-pos serve --ray` runs it.

    ray_server
      ├─ a Ray cluster       one of its own on this machine, or one that runs
      ├─ the deployment      Replica, once a GPU              (replica)
      └─ the front door      limits, queue, retries           (front)

The front door is the single server with its socket, key, limits and draining; only who answers is
another. Ray starts the replicas, checks their health, replaces those that die, adds and removes
them by load, and picks one for each request. Ray's own HTTP proxy is not used: it would answer 500
where another replica can answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_pos.errors import InvalidRequestError, MissingExtraError, ModelLoadError
from langchain_pos.server.admission import ServerLimits
from langchain_pos.server.auth import keys_of
from langchain_pos.server.errors import ApiError, logger
from langchain_pos.server.process import PosServer, server_of
from langchain_pos.server.replicas.front import Front, ReplicaLostError
from langchain_pos.server.replicas.options import DEPLOYMENT, RayOptions, Sizes
from langchain_pos.server.replicas.replica import Replica

if TYPE_CHECKING:
    from starlette.types import Message

    from langchain_pos.chat_models.base import ChatParallelReasoning

_APP = "langchain-pos"
_METRICS_SECONDS = 2.0
"""For replicas to report their metrics."""
_OBJECT_STORE_BYTES = 256 * 2**20
"""Long requests and answers pass through it; what does not fit goes to the disk."""


class RayReplica(Replica):
    """A replica that knows its name."""

    async def report(self) -> tuple[str, str]:
        """Its name, and what it counts."""
        from ray import serve

        return serve.get_replica_context().replica_id.unique_id, await self.metrics()


class RayReplicas:
    """The replicas of a deployment; see `Replicas`.

    Args:
        handle: of the deployment, a `DeploymentHandle`.
        app: its application.
    """

    def __init__(self, handle: Any, app: str) -> None:
        self._handle = handle
        self._answer = handle.options(method_name="answer", stream=True)
        self._app = app
        self._running = 0
        self._looked: float | None = None
        self._looking = asyncio.Lock()

    async def answer(self, body: bytes) -> AsyncGenerator[list[Message], None]:
        """What one of them answers; closing it cancels the work.

        Raises:
            ReplicaLostError: it has died.
            ApiError: there is none, and none can be started.
        """
        from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
        from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

        response = self._answer.remote(body)
        ended = False  # all that the client gets has come
        try:
            async for messages in response:
                ended = not messages[-1].get("more_body")
                yield messages
        except (
            RayActorError,
            WorkerCrashedError,
            ObjectLostError,
            ReplicaUnavailableError,
        ) as lost:
            raise ReplicaLostError(" ".join(str(lost).split())[:300]) from lost
        except DeploymentUnavailableError as error:
            raise ApiError(
                503,
                "no replica is running, and none can be started; the server's log says why",
                "no_replica",
                retry_after=30,
            ) from error
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ReplicaLostError("its work was cancelled there, not here") from cancelled
        finally:
            if not ended:
                response.cancel()

    async def running(self) -> int:
        """How many take requests, as Ray's controller knows it; asked once a second at most."""
        from ray import serve
        from ray.exceptions import RayError

        async with self._looking:
            if self._looked is None or time.monotonic() - self._looked > 1:
                try:
                    status = await asyncio.to_thread(serve.status)
                except RayError as error:  # the controller is replaced; replicas go on meanwhile
                    logger.warning("Ray Serve's controller does not answer: %s", error)
                else:
                    app = status.applications.get(self._app)
                    states = app.deployments[DEPLOYMENT].replica_states if app else {}
                    self._running = states.get("RUNNING", 0)
                self._looked = time.monotonic()
            return self._running

    async def metrics(self) -> Mapping[str, str]:
        """What those that answer in time count, by name."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        reported = self._handle.broadcast("report")
        try:
            reports = await reported.results_async(
                timeout_s=_METRICS_SECONDS, return_exceptions=True
            )
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("replicas reported no metrics: %s", error)
            return {}
        return dict(each for each in reports if not isinstance(each, BaseException))


@contextmanager
def ray_server(
    chat: ChatParallelReasoning,
    *,
    options: RayOptions | None = None,
    host: str = "127.0.0.1",
    api_key: str | Sequence[str] | None = None,
    limits: ServerLimits | None = None,
    model_name: str | None = None,
    page: bool = True,
) -> Iterator[PosServer]:
    """A server over replicas, ready to `run(sockets=[bind(host, port)])` while inside.

    Args:
        chat: what each replica makes its own of; its model must not be loaded here.
        options: how many replicas.
        host: see `make_server`.
        api_key: see `make_server`. It stays in this process.
        limits: `max_concurrency` is of each replica, the others of the whole.
        model_name: see `make_server`.
        page: see `make_server`.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidRequestError: more replicas than GPUs, a chat model that is loaded here; see also
            `make_server`.
        ModelLoadError: no replica could load the model, with its reason.
    """
    options, limits = options or RayOptions(), limits or ServerLimits()
    keys = keys_of(api_key, host)
    if chat.engines.identity is not None:
        raise InvalidRequestError(
            "this chat model was made from a model that is loaded here, and replicas load their "
            "own; make it with model=… (a folder or hub name)"
        )
    with _cluster(options.address) as own:
        import ray
        from ray import serve

        sizes = Sizes.of(options, ray.cluster_resources(), own=own)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        deployment = serve.deployment(RayReplica, **sizes.deployment(options, limits))
        try:
            handle = _deploy(deployment.bind(chat, limits, model_name))
            model = handle.model.remote().result()
            front = Front(RayReplicas(handle, _APP), model, limits, most=sizes.most)
            yield server_of(front, api_keys=keys, page=page)
        finally:
            if not own:
                serve.delete(_APP)


def _deploy(application: Any) -> Any:
    """Run an application; its handle.

    Raises:
        ModelLoadError: no replica could be made.
    """
    from ray import serve

    try:
        return serve.run(application, name=_APP, route_prefix=None)
    except RuntimeError as error:
        app = serve.status().applications.get(_APP)
        reason = app.deployments[DEPLOYMENT].message if app else str(error)
        raise ModelLoadError(f"no replica could be started: {_reason(reason)}") from error


def _reason(message: str) -> str:
    """The error at the end of a traceback that Ray gives as text."""
    lines = [line.strip() for line in message.splitlines()]
    errors = [line for line in lines if "Error: " in line or line.endswith("Error")]
    last = (errors or [" ".join(message.split())[-300:]])[-1]
    return re.sub(r"^langchain_pos\.errors\.\w+: ", "", last)


@contextmanager
def _cluster(address: str | None) -> Iterator[bool]:
    """Connect to a Ray cluster; yields whether it is this machine's, for this alone."""
    # Ray reads some of these when it is imported.
    private = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",  # they are in the files of the session
        # Seconds after which load is reported to the autoscaler.
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    }
    if address is None:
        private |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its ports on loopback, on Linux as well
            "RAY_AUTH_MODE": "token",  # and no other user of this machine gets through them
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
    added = {name: value for name, value in private.items() if name not in os.environ}
    os.environ.update(added)
    try:
        try:
            import ray
            import ray.serve
        except ImportError as error:
            raise MissingExtraError(
                f"replicas need {error.name}, which is not installed here; install it with "
                "`pip install 'ray[serve]' fastapi prometheus-client uvicorn`, which the extra "
                "`langchain-pos[ray]` holds"
            ) from error
        if ray.is_initialized():  # by who called us; it stays his
            yield False
            return
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        started = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            ray.init(
                address=address or "local",
                logging_level="WARNING",
                **(started if address is None else {}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InvalidRequestError(
                f"Ray cannot be reached at {address!r} ({error}); give the address of a running "
                "cluster, or none to start one here"
            ) from error
        try:
            yield address is None
        finally:
            ray.shutdown()
    finally:
        for name in added:
            os.environ.pop(name, None)
