"""A real server: `transformers serve` on the shipped model's folder, over loopback."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_pos import (
    ChatParallelReasoning,
    OpenAICompletionsEngine,
    ParallelReasoningLLM,
    ReasoningResult,
    demo_question,
    embedded_model_path,
)
from langchain_pos.errors import ModelLoadError
from langchain_pos.remote.client import CompletionsClient

MODEL = str(embedded_model_path())
NEEDED = ("accelerate", "fastapi", "openai", "uvicorn")


@contextmanager
def serving(folder: Path, *more: str) -> Iterator[str]:
    """`transformers serve` while inside, in fp32; its address."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", MODEL, *options, *more],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        while True:
            if process.poll() is not None:
                pytest.fail(f"transformers serve ended: {log.read_text()[-2000:]}")
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server while the tests run."""
    with serving(tmp_path_factory.mktemp("serve")) as found:
        yield found


@pytest.fixture(scope="module")
def engine(url: str) -> OpenAICompletionsEngine:
    """The server as an engine."""
    return OpenAICompletionsEngine(base_url=url, model=MODEL, tokenizer=MODEL)


@pytest.fixture(scope="module")
def asked() -> list[dict[str, Any]]:
    """Every completion that was asked for."""
    return []


@pytest.fixture(scope="module")
def result(engine: OpenAICompletionsEngine, asked: list[dict[str, Any]]) -> ReasoningResult:
    """The ten students, answered over the server."""
    write = CompletionsClient.write

    async def spying(self: Any, sink: Any, fields: dict[str, Any]) -> None:
        asked.append(fields)
        await write(self, sink, fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompletionsClient, "write", spying)
        return ParallelReasoningLLM(engine=engine).invoke(demo_question())


@pytest.fixture(scope="module")
def generated() -> Callable[[dict[str, Any]], str]:
    """What plain greedy decoding gives for a request's text, as the server would read it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)

    def generate(fields: dict[str, Any]) -> str:
        inputs = tokenizer(fields["prompt"], return_tensors="pt")
        stops = fields.get("stop", [])
        stop = {"stop_strings": stops, "tokenizer": tokenizer} if stops else {}
        written = model.generate(
            **inputs, **stop, max_new_tokens=fields["max_tokens"], do_sample=False
        )
        text = str(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], True))
        return min((text.partition(end)[0] for end in stops), default=text, key=len)

    return generate


def test_ten_students_fall_into_ten_branches(result: ReasoningResult) -> None:
    """Planned by the model without a grammar, written side by side, concluded."""
    assert result.mode == "parallel", result.fallback_reason
    assert len(result.branches) == 10
    assert all(branch.error is None for branch in result.branches)
    assert {branch.finish_reason for branch in result.branches} == {"stop"}
    assert result.conclusion
    assert result.error is None


def test_every_branch_is_what_greedy_decoding_gives(
    result: ReasoningResult,
    asked: list[dict[str, Any]],
    generated: Callable[[dict[str, Any]], str],
) -> None:
    """Plain transformers, from the same text; skeleton and conclusion as well."""
    by_title = {branch.title: branch.text for branch in result.branches}
    branches = [f for f in asked if f["prompt"].endswith(tuple(f"####{t}:" for t in by_title))]
    assert len(branches) == 10
    for fields in branches:
        title = fields["prompt"].rpartition("####")[2].removesuffix(":")
        assert generated(fields).strip() == by_title[title]
    assert generated(asked[-1]).strip() == result.conclusion
    assert result.preamble == generated(asked[0]).partition("####")[0].strip()


def test_it_is_the_answer_of_the_local_engine(result: ReasoningResult) -> None:
    """The same model in this process, under the mask, says the same."""
    local = ParallelReasoningLLM(dtype="float32", pack_weights=False).invoke(demo_question())
    assert result.text == local.text


def test_usage_is_what_the_server_tells(
    result: ReasoningResult, asked: list[dict[str, Any]]
) -> None:
    """The tokens of all prompts, by the same tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    read = sum(len(tokenizer(fields["prompt"])["input_ids"]) for fields in asked)
    assert result.usage.input_tokens == read
    assert result.usage.output_tokens > sum(b.usage.output_tokens for b in result.branches) > 0


def test_continuous_batching(tmp_path: Path) -> None:
    """Branches in the same passes; it pays no heed to stop texts, and they hold all the same."""
    asked = {"question": demo_question(), "steps": ["Marisol Quant", "Pascal Vireaux"]}
    bounds: Any = {"max_branch_tokens": 40, "max_conclusion_tokens": 20}
    with serving(tmp_path, "--continuous-batching") as url:
        engine = OpenAICompletionsEngine(base_url=url, model=MODEL, tokenizer=MODEL)
        result = ParallelReasoningLLM(engine=engine, **bounds).invoke(asked)
        engine.close()
    assert [branch.error for branch in result.branches] == [None, None]
    assert "####" not in "".join(branch.text for branch in result.branches)
    assert result.conclusion


def test_a_stream_adds_up(engine: OpenAICompletionsEngine, result: ReasoningResult) -> None:
    """To what `invoke` has returned; pieces come before the end."""
    chunks = list(ParallelReasoningLLM(engine=engine).stream(demo_question()))
    assert reduce(add, chunks).result().text == result.text
    assert sum(chunk.stage == "expand" and bool(chunk.delta) for chunk in chunks) > 10


def test_a_closed_stream_harms_no_later_question(
    engine: OpenAICompletionsEngine, result: ReasoningResult
) -> None:
    """The server gives up what nobody waits for."""
    llm = ParallelReasoningLLM(engine=engine)
    chunks = llm.stream(demo_question())
    while next(chunks).stage != "expand":
        continue
    chunks.close()
    assert llm.invoke(demo_question()).text == result.text


async def test_the_chat_model_and_async(
    engine: OpenAICompletionsEngine, result: ReasoningResult
) -> None:
    """The conclusion is the message's text."""
    chat = ChatParallelReasoning(engine=engine)
    assert (await chat.ainvoke(demo_question())).text == result.conclusion


def test_an_unknown_model_is_refused(url: str) -> None:
    """With the server's words."""
    engine = OpenAICompletionsEngine(base_url=url, model="another", tokenizer=MODEL)
    with pytest.raises(ModelLoadError, match="pinned to"):
        ParallelReasoningLLM(engine=engine).invoke("Who?")
