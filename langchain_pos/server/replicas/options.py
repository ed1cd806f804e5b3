"""How many replicas there are, and what each of them takes from the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from langchain_pos.server.admission import ServerLimits

DEPLOYMENT = "Replica"
"""What Ray calls the replicas of one server together."""
_HEALTH_SECONDS = 5.0
_LOAD = 0.75
"""Share of `max_concurrency` at which a replica counts as busy, for autoscaling."""
_LOOK_BACK_SECONDS = 15.0
"""Load is a mean over so long at least; Ray wants it above its interval of 10."""


class RayOptions(BaseModel):
    """How many replicas, and what each of them takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
            resources: what the cluster has, as `ray.cluster_resources()` says.
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
        common: dict[str, Any] = {
            "name": DEPLOYMENT,
            "ray_actor_options": {"num_gpus": self.gpus, "num_cpus": self.cpus},
            "max_ongoing_requests": limits.max_concurrency,
            "health_check_period_s": _HEALTH_SECONDS,
            "graceful_shutdown_timeout_s": limits.request_seconds,
            "graceful_shutdown_wait_loop_s": 0.2,
            "max_constructor_retry_count": 1,  # a wrong model is wrong the next time as well
            "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        }
        if self.least == self.most:
            return common | {"num_replicas": self.most}
        return common | {
            "autoscaling_config": {
                "min_replicas": self.least,
                "max_replicas": self.most,
                "target_ongoing_requests": max(_LOAD * limits.max_concurrency, 1.0),
                "upscale_delay_s": options.upscale_seconds,
                "downscale_delay_s": options.downscale_seconds,
                "look_back_period_s": max(options.upscale_seconds, _LOOK_BACK_SECONDS),
            }
        }
