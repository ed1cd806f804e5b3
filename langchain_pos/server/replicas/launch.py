"""The server over several replicas on Ray Serve; `langchain-pos serve --ray` runs it.

    ray_server
      ├─ a Ray cluster       one of its own on this machine, or one that runs
      ├─ the deployment      Replica, once a GPU              (server_ray_replica.py)
      └─ the front door      limits, queue, retries           (server_ray_front.py)

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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langchain_pos.errors import InvalidRequestError, MissingExtraError, ModelLoadError
from langchain_pos.server.admission import ServerLimits
from langchain_pos.server.app import PosServer, keys_of, server_of
from langchain_pos.server.errors import ApiError, logger
from langchain_pos.server.replicas.front import Front, ReplicaLostError
from langchain_pos.server.replicas.replica import Replica

if TYPE_CHECKING:
    from starlette.types import Message

    from langchain_pos.chat_models.base import ChatParallelReasoning

_APP, _DEPLOYMENT = "langchain-pos", "Replica"
_HEALTH_SECONDS = 5.0
_LOAD = 0.75
"""Share of `max_concurrency` at which a replica counts as busy, for autoscaling."""
_LOOK_BACK_SECONDS = 15.0
"""Load is a mean over so long at least; Ray wants it above its interval of 10."""
_METRICS_SECONDS = 2.0
"""For replicas to tell their metrics."""
_OBJECT_STORE_BYTES = 256 * 2**20
"""Long requests and answers pass through it; what does not fit goes to the disk."""


class RayOptions(BaseModel):
    """How many replicas, and what each of them takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int | None = Field(default=None, ge=1)
    """As many, always; None: one for every `gpus_per_replica` GPUs, or one where there is none."""
    min_replicas: int | None = Field(default=None, ge=1)
    """With it or `max_replicas`, the number follows the load; at least 1."""
    max_replicas: int | None = Field(default=None, ge=1)
    """None: as many as there are GPUs for."""
    gpus_per_replica: float | None = Field(default=None, ge=0)
    """None: one where the cluster has GPUs, else none. Several for a model that `device_map`
    spreads; a part of one for small models."""
    cpus_per_replica: float | None = Field(default=None, gt=0)
    """None: an equal share of this machine's cores; 1 in a cluster that ran before. The threads
    of a replica on a CPU."""
    address: str | None = None
    """Of a Ray cluster that runs, or "auto"; None starts one on this machine, for it alone."""
    upscale_seconds: float = Field(default=10, ge=0)
    """Replicas must have been busy for so long before one is added."""
    downscale_seconds: float = Field(default=300, ge=0)
    """And idle for so long before one is taken away; it finishes its answers first."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        scaled = self.min_replicas is not None or self.max_replicas is not None
        if scaled and self.replicas is not None:
            raise ValueError(
                f"replicas={self.replicas} is fixed, and min_replicas or max_replicas let the "
                "number follow the load; give one or the other"
            )
        if (self.min_replicas or 1) > (self.max_replicas or self.min_replicas or 1):
            raise ValueError(
                f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}"
            )
        return self

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """The same, with our own error.

        Raises:
            InvalidRequestError: a value is not allowed.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            wrong = f"{where}={first['input']!r}: " if where else ""
            raise InvalidRequestError(wrong + first["msg"].removeprefix("Value error, ")) from error


@dataclass(frozen=True)
class Sizes:
    """What is asked of the cluster.

    Attributes:
        least: replicas at the start, and at least.
        most: replicas at most; the same as `least` where the number is fixed.
        gpus: of each replica.
        cpus: of each replica.
    """

    least: int
    most: int
    gpus: float
    cpus: float

    @classmethod
    def of(cls, options: RayOptions, resources: Mapping[str, float], *, own: bool) -> Sizes:
        """What options come to in a cluster.

        Args:
            options: see there.
            resources: what the cluster has, as `ray.cluster_resources()` tells.
            own: it is this machine alone, and nobody else's.

        Raises:
            InvalidRequestError: more is asked for than there can be.
        """
        there = resources.get("GPU", 0.0)
        gpus = options.gpus_per_replica
        if gpus is None:
            gpus = 1.0 if there else 0.0
        fit = max(int(there / gpus), 1) if gpus else 1
        if options.min_replicas is None and options.max_replicas is None:
            least = most = options.replicas or fit
        else:
            least = options.min_replicas or 1
            most = options.max_replicas or max(fit, least)
        if own and most * gpus > there:
            raise InvalidRequestError(
                f"{most} replicas with {gpus:g} GPUs each are asked for, and this machine has "
                f"{there:g}; ask for fewer, or for a part of a GPU each (--gpus-per-replica)"
            )
        cpus = options.cpus_per_replica
        if cpus is None:
            share = resources.get("CPU", 1.0) / most if own else 1.0
            cpus = float(int(share)) if share >= 1 else int(share * 1e4) / 1e4  # Ray counts so
        return cls(least, most, gpus, cpus)

    def deployment(self, options: RayOptions, limits: ServerLimits) -> dict[str, Any]:
        """Arguments of `serve.deployment`."""
        told: dict[str, Any] = {
            "name": _DEPLOYMENT,
            "ray_actor_options": {"num_gpus": self.gpus, "num_cpus": self.cpus},
            "max_ongoing_requests": limits.max_concurrency,
            "health_check_period_s": _HEALTH_SECONDS,
            "graceful_shutdown_timeout_s": limits.request_seconds,
            "graceful_shutdown_wait_loop_s": 0.2,
            "max_constructor_retry_count": 1,  # a wrong model is wrong the next time as well
            "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        }
        if self.least == self.most:
            return told | {"num_replicas": self.most}
        return told | {
            "autoscaling_config": {
                "min_replicas": self.least,
                "max_replicas": self.most,
                "target_ongoing_requests": max(_LOAD * limits.max_concurrency, 1.0),
                "upscale_delay_s": options.upscale_seconds,
                "downscale_delay_s": options.downscale_seconds,
                "look_back_period_s": max(options.upscale_seconds, _LOOK_BACK_SECONDS),
            }
        }


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
                "there is no replica, and none can be started; the server's log says why",
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
                    states = app.deployments[_DEPLOYMENT].replica_states if app else {}
                    self._running = states.get("RUNNING", 0)
                self._looked = time.monotonic()
            return self._running

    async def metrics(self) -> Mapping[str, str]:
        """What those that answer in time count, by name."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        told = self._handle.broadcast("report")
        try:
            reports = await told.results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException) as error:
            logger.warning("replicas told no metrics: %s", error)
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
        told = app.deployments[_DEPLOYMENT].message if app else str(error)
        raise ModelLoadError(f"no replica could be started: {_reason(told)}") from error


def _reason(message: str) -> str:
    """The error at the end of a traceback that Ray tells as text."""
    lines = [line.strip() for line in message.splitlines()]
    errors = [line for line in lines if "Error: " in line or line.endswith("Error")]
    last = (errors or [" ".join(message.split())[-300:]])[-1]
    return re.sub(r"^langchain_pos\.errors\.\w+: ", "", last)


@contextmanager
def _cluster(address: str | None) -> Iterator[bool]:
    """Connect to a Ray cluster while inside; tells whether it is this machine's, for this alone."""
    # Ray reads some of these when it is imported.
    private = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",  # they are in the files of the session
        # Seconds after which load is told to who scales.
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
                "`pip install 'langchain-pos[ray]'`"
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
                f"Ray cannot be reached at {address!r} ({error}); give the address of a cluster "
                "that runs, or none to start one here"
            ) from error
        try:
            yield address is None
        finally:
            ray.shutdown()
    finally:
        for name in added:
            os.environ.pop(name, None)


__all__ = ["RayOptions", "ray_server"]
