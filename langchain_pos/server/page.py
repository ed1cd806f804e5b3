"""The page at `/`: a question, and the branches side by side while they are written.

It holds no secret and asks the API as any client does, so `Guard` lets it be read without a key.
Its files (`static/`) are served as they are, but for the demo question and whether a key is wanted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from starlette.responses import Response

from langchain_pos.embedded.demo import demo_question

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

_FOLDER = files("langchain_pos.server").joinpath("static")
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_ASSETS = {
    f"{folder}{each.name}": (each, _KINDS[suffix])
    for folder in ("", "vendor/")
    for each in _FOLDER.joinpath(folder).iterdir()
    if (suffix := each.name[each.name.rfind(".") :]) in _KINDS
}
PAGE_PATHS = frozenset({"/", *(f"/page/{name}" for name in _ASSETS)})
"""What may be read without an API key."""

_POLICY = {
    "default-src": "'none'",
    "connect-src": "'self'",
    "img-src": "'self'",
    "script-src": "'self'",
    "style-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag: the server may be newer
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class _File:
    """What is sent for one path."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """Of the content, so that it changes with it."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    def respond(self, request: Request) -> Response:
        """The content, or word that the browser has it."""
        headers = {**_HEADERS, "ETag": self.etag}
        known = request.headers.get("if-none-match", "")
        if self.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def add_page(app: Starlette, *, wants_key: bool) -> None:
    """Serve the page at `/`.

    Args:
        app: gets the routes of `PAGE_PATHS`.
        wants_key: whether the page asks for an API key.
    """
    page = Template(_FOLDER.joinpath("index.html").read_text("utf-8")).substitute(
        question=escape(demo_question()), wants_key="yes" if wants_key else "no"
    )
    served = {"/": _File(page.encode(), "text/html")}
    for name, (asset, media_type) in _ASSETS.items():
        served[f"/page/{name}"] = _File(asset.read_bytes(), media_type)
    for path, file in served.items():

        async def _sent(request: Request, file: _File = file) -> Response:
            return file.respond(request)

        app.router.add_route(path, _sent, methods=["GET"], include_in_schema=False)
