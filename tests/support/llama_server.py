"""A stand-in for llama.cpp's server: it writes what is asked of it, and computes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

POINTS = "1. A desk of your own\n2. No commute\n3. Quiet hours"


class _Handler(BaseHTTPRequestHandler):
    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append({"path": self.path, **body})
        reply: dict[str, Any]
        if self.path == "/completion":
            count = body["n_predict"]
            reply = {
                "content": " and" * count,
                "tokens_predicted": count,
                "timings": {"prompt_n": len(body["prompt"])},
            }
        else:
            asked = body["messages"][-1]["content"]
            text = POINTS if "Skeleton:" in asked else "It is quiet."
            reply = {
                "choices": [{"message": {"content": text}}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 4},
            }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def llama_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and the bodies of the requests that it gets."""
    bodies: list[dict[str, Any]] = []
    handler = type("Handler", (_Handler,), {"bodies": bodies})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
