"""An OpenAI-compatible HTTP server over the chat model, with a page to ask on."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from langchain_pos.errors import MissingExtraError
from langchain_pos.lazy_names import lazy_names

if TYPE_CHECKING:
    from langchain_pos.server.admission import ServerLimits as ServerLimits
    from langchain_pos.server.app import create_app as create_app
    from langchain_pos.server.process import PosServer as PosServer
    from langchain_pos.server.process import bind as bind
    from langchain_pos.server.process import make_server as make_server

for _name in ("fastapi", "prometheus_client", "uvicorn"):
    if find_spec(_name) is None:
        raise MissingExtraError(
            f"a server needs {_name}, which is not installed here; install it with "
            "`pip install fastapi prometheus-client uvicorn`, which the extra "
            "`langchain-pos[serve]` holds"
        )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "admission": ["ServerLimits"],
        "app": ["create_app"],
        "process": ["PosServer", "bind", "make_server"],
    },
)
