"""Models by name from the LangChain side: GGUF files, and the bar while one is read."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from langchain_pos import ChatParallelReasoning, InvalidRequestError, ParallelReasoningLLM
from langchain_pos.cli.main import app
from langchain_pos.embedded import embedded_model_path
from langchain_pos.engine.engine import Engine
from langchain_pos.loading_bar import loading_bar
from tests.support.compilers import compiles_here
from tests.support.gguf_files import real_model, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", quantised=True)


def test_a_gguf_file_is_a_model_like_any_other(file: Path) -> None:
    """The runnable takes a file or its folder, and writes the steps that it is given."""
    for name in (file, file.parent):
        llm = ParallelReasoningLLM(
            model=str(name), device="cpu", max_branch_tokens=4, max_conclusion_tokens=4
        )
        result = llm.invoke({"question": "Who?", "steps": ["Ann", "Ben"]})
        assert [branch.title for branch in result.branches] == ["Ann", "Ben"]


@pytest.mark.parametrize(
    ("settings", "quantised", "fast", "packed"),
    [
        ({}, True, True, "packed in int8"),
        ({}, True, False, "packed"),
        ({}, False, True, "packed"),
        ({"dtype": "float32"}, True, True, "packed"),
        ({"pack_weights": False}, True, True, "as loaded"),
    ],
)
def test_quantised_weights_stay_so_where_that_is_fast(
    settings: dict[str, Any],
    quantised: bool,
    fast: bool,
    packed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dtype of the caller's, an unquantised file, or a processor that is faster without."""
    if not compiles_here():
        pytest.skip("nothing multiplies eight bits here")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not fast)
    file = write_gguf(tmp_path / "tiny.gguf", quantised=quantised)
    engine = Engine.load(str(file), device="cpu", **settings)
    assert engine.describe()["weights"].endswith(packed)


@pytest.mark.parametrize(("fast", "packed"), [(True, "packed in int8"), (False, "packed")])
def test_eight_bits_are_the_shipped_model_s_default(
    fast: bool, packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config says that they suffice."""
    if not compiles_here():
        pytest.skip("nothing multiplies eight bits here")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not fast)
    engine = Engine.load(str(embedded_model_path()), device="cpu")
    assert engine.describe()["weights"].endswith(packed)


def test_the_chat_model_takes_it_with_its_template(file: Path) -> None:
    """The chat model loads it by name, and the file's own template formats the messages."""
    chat = ChatParallelReasoning(model=str(file), device="cpu", max_tokens=6)
    assert isinstance(chat.invoke("Who?").content, str)


def test_doctor_says_where_the_model_came_from(file: Path) -> None:
    """File, quantisation and unpacked size stand in the command's output."""
    done = CliRunner().invoke(app, ["doctor", "--model", str(file), "--device", "cpu"])
    assert done.exit_code == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("gguf")]
    assert f"{file} (llama, Q8_0), unpacked to 0.00 GB in {file}.unpacked" in line


def test_ask_takes_a_gguf_file(file: Path) -> None:
    """`langchain-pos ask --model x.gguf` answers; a file that is not there exits with an error."""
    args = ["ask", "Who?", "--device", "cpu", "--steps", "Ann,Ben", "--max-branch-tokens", "3"]
    done = CliRunner().invoke(app, [*args, "--model", str(file)])
    assert done.exit_code == 0
    missing = CliRunner().invoke(app, [*args, "--model", str(file.with_name("no.gguf"))])
    assert missing.exit_code == 3
    assert "there is no such file at" in missing.stderr


@pytest.mark.parametrize("question", ["", "  \n", {"question": " ", "steps": ["Ann"]}])
def test_a_blank_question_is_refused_before_the_model_loads(question: object) -> None:
    """A question that nobody can answer costs no loading: the model here does not even exist."""
    with pytest.raises(InvalidRequestError, match="question"):
        ParallelReasoningLLM(model="/no/such/model").invoke(question)


def test_the_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal what is read is shown; elsewhere nothing is written, and all items pass."""
    from transformers.utils import logging

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with loading_bar():
            assert list(logging.tqdm([1, 2, 3], desc="Unpacking")) == [1, 2, 3]
        assert ("Unpacking" in stream.getvalue()) is shown
        assert bool(stream.getvalue()) is shown


@pytest.mark.slow
def test_a_real_gguf_file_answers_in_parallel(tmp_path: Path) -> None:
    """SmolLM2's GGUF file writes the given steps as its transformers folder does."""
    pytest.importorskip("gguf")
    real = real_model("smollm2-135m-instruct")
    written = []
    for model in (shutil.copy(real / "model.gguf", tmp_path), real / "hf"):
        llm = ParallelReasoningLLM(
            model=str(model),
            device="cpu",
            dtype="float32",
            max_branch_tokens=12,
            max_conclusion_tokens=12,
        )
        result = llm.invoke({"question": "Compare Paris and Tokyo.", "steps": ["Paris", "Tokyo"]})
        written.append([(branch.title, branch.text) for branch in result.branches])
    assert [title for title, _ in written[0]] == ["Paris", "Tokyo"]
    assert written[0] == written[1]


@pytest.mark.slow
def test_what_a_real_model_writes_after_a_list_is_not_lost() -> None:
    """Its tokenizer has a full stop with an empty line in one token, in which the join ends."""
    pytest.importorskip("gguf")
    llm = ParallelReasoningLLM(
        model=str(real_model("qwen2.5-coder-0.5b-instruct") / "model.gguf"),
        device="cpu",
        max_branch_tokens=60,
        max_conclusion_tokens=40,
    )
    asked = "Name three advantages of C++ over Python, then show a short C++ program."
    result = llm.invoke(asked)
    assert result.mode == "parallel", result.fallback_reason
    assert "```" in result.conclusion
