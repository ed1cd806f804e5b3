"""What `test_errors_table.py` tries for the server; see `error_rows.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from langchain_pos import ChatParallelReasoning
from langchain_pos.errors import InvalidRequestError, MissingExtraError
from langchain_pos.server import bind, make_server
from tests.unit_tests.error_rows import Outcome, row


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
