"""An OpenAI-compatible HTTP server over the chat model, with a page to ask on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_pos.server.admission import ServerLimits as ServerLimits
    from langchain_pos.server.app import PosServer as PosServer
    from langchain_pos.server.app import bind as bind
    from langchain_pos.server.app import create_app as create_app
    from langchain_pos.server.app import make_server as make_server

_HOMES = {
    "PosServer": "app",
    "ServerLimits": "admission",
    "bind": "app",
    "create_app": "app",
    "make_server": "app",
}
__all__ = ["PosServer", "ServerLimits", "bind", "create_app", "make_server"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
