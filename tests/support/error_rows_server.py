"""What `test_errors_table.py` tries for the server; see `error_rows.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from langchain_pos import ChatParallelReasoning
from langchain_pos.cli.serve import serve
from langchain_pos.errors import InvalidRequestError, MissingExtraError
from langchain_pos.server import bind, make_server
from langchain_pos.server.replicas import RayOptions, ray_server
from langchain_pos.server.replicas.options import Sizes
from tests.support.error_rows import Outcome, row
from tests.support.scripted_chat import scripted_chat


@row("serve-without-key")
def _() -> Outcome:
    chat = ChatParallelReasoning()
    with pytest.raises(InvalidRequestError, match="LANGCHAIN_POS_API_KEY") as caught:
        make_server(chat, host="0.0.0.0")
    assert chat.engines.identity is None, "the model was loaded"
    return caught.value


@row("serve-port-taken")
def _() -> Outcome:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(InvalidRequestError, match="another --host or --port") as caught:
            bind("127.0.0.1", taken.getsockname()[1])
    return caught.value


@row("no-server")
def _(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.delitem(sys.modules, "langchain_pos.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"langchain-pos\[serve\]") as caught:
        __import__("langchain_pos.server")
    return caught.value


@row("no-mcp")
def _(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.delitem(sys.modules, "langchain_pos.mcp_server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingExtraError, match=r"langchain-pos\[mcp\]") as caught:
        __import__("langchain_pos.mcp_server")
    return caught.value


@row("serve-not-ray")
def _() -> Outcome:
    with pytest.raises(InvalidRequestError, match="--max-replicas applies to replicas") as caught:
        serve(max_replicas=2, debug=True)
    return caught.value


@row("ray-contradiction")
def _() -> Outcome:
    with pytest.raises(InvalidRequestError, match="min_replicas=3 is more than"):
        RayOptions.of(min_replicas=3, max_replicas=2)
    with pytest.raises(InvalidRequestError, match="one or the other") as caught:
        RayOptions.of(replicas=2, max_replicas=3)
    return caught.value


@row("ray-too-many")
def _() -> Outcome:
    with pytest.raises(InvalidRequestError, match="--gpus-per-replica") as caught:
        Sizes.of(RayOptions(replicas=3), {"GPU": 2.0}, own=True)
    return caught.value


@row("ray-loaded-model")
def _() -> Outcome:
    with pytest.raises(InvalidRequestError, match="model=…") as caught:
        ray_server(scripted_chat({})[0]).__enter__()
    return caught.value


@row("no-ray")
def _(_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"langchain-pos\[ray\]") as caught:
        ray_server(ChatParallelReasoning()).__enter__()
    return caught.value
