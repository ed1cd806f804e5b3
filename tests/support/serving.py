"""A real server on loopback for tests: uvicorn in a thread, on a port that was free."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAI

from langchain_pos import ChatParallelReasoning
from langchain_pos.server import PosServer, ServerLimits, bind, make_server
from langchain_pos.server.service import Service

MODEL = "scripted"
URL = "/v1/chat/completions"
COMMAND = "from langchain_pos.cli.main import main; main()"


def body(question: str = "Who?", **fields: Any) -> dict[str, Any]:
    """A request with one question."""
    return {"model": MODEL, "messages": [{"role": "user", "content": question}], **fields}


@dataclass
class Client:
    """How tests ask a server."""

    url: str
    key: str

    def client(self, **fields: Any) -> OpenAI:
        """OpenAI's client; it asks once."""
        fields = {"api_key": self.key, "max_retries": 0, **fields}
        return OpenAI(base_url=f"{self.url}/v1", **fields)

    def async_client(self) -> AsyncOpenAI:
        """The same for asyncio."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0)

    def http(self) -> httpx.Client:
        """A bare client, for what OpenAI's would not send."""
        return httpx.Client(base_url=self.url, timeout=60)

    def post(self, json: Any = None, **fields: Any) -> httpx.Response:
        """A bare request for an answer."""
        with self.http() as http:
            return http.post(URL, json=json, **fields)

    def ask(self, question: str = "Who?", **extra: Any) -> Any:
        """An answer, by OpenAI's client; of a stream, all chunks."""
        messages: Any = [{"role": "user", "content": question}]
        with self.client() as client:
            found = client.chat.completions.create(model=MODEL, messages=messages, **extra)
            return list(found) if extra.get("stream") else found


@dataclass
class Running(Client):
    """A server that runs."""

    server: PosServer
    service: Service
    chat: ChatParallelReasoning

    def metric(self, name: str, **labels: str) -> float:
        """A value of `/metrics`; 0 where it has none yet."""
        value = self.service.metrics.registry.get_sample_value(f"langchain_pos_{name}", labels)
        return value or 0.0

    def at_rest(self) -> bool:
        """Nothing is held, nobody waits; comes as soon as a pass under way is over."""
        while not self.service.gate.idle or self.chat.engine.slots_in_use:
            time.sleep(0.005)
        return self.service.gate.running == self.service.gate.waiting == 0


@contextmanager
def listening(server: PosServer) -> Iterator[str]:
    """Run a server while inside; its address."""
    socket = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def started(*options: str) -> tuple[subprocess.Popen[str], str]:
    """The command as a process, and its address once it has said it."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "serve", "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"(http://\S+)/v1 serves (\S+)", line):
            return process, found[1].rstrip(";")
    raise AssertionError(f"it ended with {process.wait()} before it listened")


@contextmanager
def running(
    chat: ChatParallelReasoning,
    *,
    api_key: str | list[str] | None = None,
    page: bool = True,
    **limits: Any,
) -> Iterator[Running]:
    """Serve `chat` while inside."""
    server = make_server(
        chat, api_key=api_key, limits=ServerLimits(**limits), model_name=MODEL, page=page
    )
    key = api_key[0] if isinstance(api_key, list) else api_key
    with listening(server) as url:
        assert isinstance(server.service, Service)
        yield Running(url, key or "none", server, server.service, chat)
