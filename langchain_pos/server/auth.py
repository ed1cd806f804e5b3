"""Who may ask the server at all: its API key, or this machine alone."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from langchain_pos.errors import InvalidRequestError
from langchain_pos.server.errors import ApiError

if TYPE_CHECKING:
    from prometheus_client import Counter
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Guard:
    """Around the app: who may ask at all, and how many got which status.

    Without an API key the server is for this machine alone, so requests must also be addressed to
    it by a loopback name: a web page that has its own name point here is refused.

    Args:
        app: what is guarded.
        paths: whose requests are counted.
        requests: counts them by status; None counts none.
        api_keys: one of them is asked for on every path but `/health` and those of `public`; none
            asks for none.
        public: paths that hold no secret. They want no key, but a loopback name where others do.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        paths: Collection[str] = (),
        requests: Counter | None = None,
        api_keys: Sequence[str] = (),
        public: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._paths = paths
        self._requests = requests
        self._keys = [key.encode() for key in api_keys]
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check and count a request, or pass on what is none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counted = scope["path"] in self._paths

        async def noted(message: Message) -> None:
            if self._requests is not None and counted and message["type"] == "http.response.start":
                self._requests.labels(str(message["status"])).inc()
            await send(message)

        try:
            if scope["path"] != "/health":
                public = scope["path"] in self._public
                account = self._account(Headers(scope=scope), public=public)
                scope.setdefault("state", {})["account"] = account or _address(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, noted)
            return
        await self._app(scope, receive, noted)

    def _account(self, headers: Headers, *, public: bool) -> str | None:
        """Which of the keys was given; None where none is needed.

        Raises:
            ApiError: 401, 403.
        """
        if not self._keys:
            if not is_loopback(_without_port(headers.get("host", ""))):
                raise ApiError(
                    403,
                    f"the host {headers.get('host')!r} is not this machine; without an API key "
                    "only localhost, 127.0.0.1 and [::1] are answered",
                    "wrong_host",
                )
            return None
        if public:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        token = given.strip().encode("latin-1")
        right = [hmac.compare_digest(token, key) for key in self._keys]  # all: in constant time
        if scheme.lower() != "bearer" or not any(right):
            raise ApiError(
                401,
                "the API key is missing or wrong; send the server's as 'Authorization: Bearer …'",
                "invalid_api_key",
            )
        return f"key {right.index(True)}"


def keys_of(api_key: str | Sequence[str] | None, host: str = "127.0.0.1") -> list[str]:
    """The keys of a server that may listen on `host` with them.

    Raises:
        InvalidRequestError: a key is blank, or others could reach the server and there is none.
    """
    keys = [api_key] if isinstance(api_key, str) else list(api_key or ())
    if api_key is not None and not (keys and all(key.strip() for key in keys)):
        raise InvalidRequestError("the API key is empty; give one, or leave it out")
    if not keys and not is_loopback(host):
        raise InvalidRequestError(
            f"host={host!r} can be reached from other machines, and no API key is given; give one "
            "(--api-key, or LANGCHAIN_POS_API_KEY), or listen on 127.0.0.1"
        )
    return keys


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return "" if client is None else str(client[0])


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as seen from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def error_response(error: ApiError) -> Response:
    """An error as a response."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)
