"""Several replicas of the server with one front door, on Ray Serve."""

from typing import TYPE_CHECKING

from langchain_pos.lazy_names import lazy_names

if TYPE_CHECKING:
    from langchain_pos.server.replicas.launch import ray_server as ray_server
    from langchain_pos.server.replicas.options import RayOptions as RayOptions

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "launch": ["ray_server"],
        "options": ["RayOptions"],
    },
)
