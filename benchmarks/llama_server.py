"""llama.cpp's own server, as a peer: in a process of its own, asked over loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

import httpx

_SERVE = """
import json, sys
import xllamacpp as llama

given = json.loads(sys.argv[1])
params = llama.CommonParams()
params.model.path = given["file"]
params.n_parallel = given["slots"]
params.n_ctx = given["slots"] * given["context"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given["threads"]
params.port = 0
params.n_gpu_layers = 0
server = llama.Server(params)
print(json.dumps({"url": server.listening_address, "system": llama.get_system_info()}), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Reply:
    """What the server wrote.

    Attributes:
        text: of the completion.
        tokens: how many tokens it has.
        prompt_tokens: tokens of the prompt that were fed; the others were in its prompt cache.
    """

    text: str
    tokens: int
    prompt_tokens: int


class LlamaServer:
    """A server's API; with a file, the server itself as well.

    Args:
        url: of a server that runs already, such as a `llama-server` built for this processor.
        file: otherwise, the GGUF file that `xllamacpp` serves in a process of its own.
        slots: sequences that it decodes in parallel.
        context: slots of its KV cache for each of them.
        threads: of its computation.

    Raises:
        SystemExit: `xllamacpp` is not installed, or its server does not start.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        file: str = "",
        slots: int = 10,
        context: int = 2048,
        threads: int = 1,
    ) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.system = "a server that was given"
        if url is None:
            url = self._start(file=file, slots=slots, context=context, threads=threads)
        self._client = httpx.Client(
            base_url=url, timeout=600, limits=httpx.Limits(max_connections=slots)
        )
        self._pool = ThreadPoolExecutor(slots)

    def _start(self, **given: Any) -> str:
        if find_spec("xllamacpp") is None:
            raise SystemExit(
                "this benchmark needs llama.cpp: `pip install xllamacpp`, or give the address of "
                "a llama-server that runs already by --server"
            )
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for line in self._process.stdout or ():
            if line.startswith('{"url"'):  # llama.cpp writes there as well
                found = json.loads(line)
                self.system = found["system"]
                return str(found["url"])
        raise SystemExit(f"xllamacpp does not serve {given['file']}: {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        self._client.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def complete(self, token_ids: Sequence[int], tokens: int) -> Reply:
        """Exactly so many tokens after a prompt, greedily; an EOS ends nothing."""
        body = {"prompt": list(token_ids), "n_predict": tokens, "ignore_eos": True}
        return self._ask("/completion", body)

    def chat(self, messages: Sequence[dict[str, str]], most: int) -> Reply:
        """The model's own answer, greedily. A last message of the assistant is gone on with."""
        found = self._post("/v1/chat/completions", {"messages": list(messages), "max_tokens": most})
        usage = found["usage"]
        text = found["choices"][0]["message"]["content"] or ""
        return Reply(text, usage["completion_tokens"], usage["prompt_tokens"])

    def at_once(self, asked: Sequence[tuple[Any, int]]) -> list[Reply]:
        """`complete` or, for messages, `chat`: all of them at the same time."""

        def one(each: tuple[Any, int]) -> Reply:
            what, tokens = each
            is_chat = isinstance(what[0], dict)
            return self.chat(what, tokens) if is_chat else self.complete(what, tokens)

        return list(self._pool.map(one, asked))

    def _ask(self, path: str, body: dict[str, Any]) -> Reply:
        found = self._post(path, body)
        return Reply(found["content"], found["tokens_predicted"], found["timings"]["prompt_n"])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        greedy = {"temperature": 0, "top_k": 1, "cache_prompt": True, "stream": False}
        reply = self._client.post(path, json={**greedy, **body})
        if reply.is_error:
            raise SystemExit(f"llama.cpp answers {reply.status_code}: {reply.text[:300]}")
        return reply.json()
