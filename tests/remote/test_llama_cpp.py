"""llama.cpp's own server, on a real GGUF file: the three stages over it, in both forms.

It comes as a wheel (`pip install xllamacpp`); without it, or without the file, these tests skip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from langchain_pos import OpenAICompletionsEngine, ParallelReasoningLLM
from langchain_pos.errors import ContextLengthError, InvalidRequestError
from langchain_pos.reasoning.prompts import ReasoningPrompts
from tests.support.gguf_files import real_model

pytestmark = pytest.mark.slow
STEPS = {"question": "Compare Paris, Tokyo and Cairo.", "steps": ["Paris", "Tokyo", "Cairo"]}
LIMITS: dict[str, Any] = {
    "max_plan_tokens": 120,
    "max_branch_tokens": 12,
    "max_conclusion_tokens": 12,
    "max_sequential_tokens": 60,
    "max_branches": 6,
}


class City(BaseModel):
    """What a branch finds."""

    country: str
    large: bool


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The server's address, while the tests run."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(real_model("smollm2-135m-instruct") / "model.gguf")
    params.n_ctx, params.n_parallel = 4096, 4
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


def llm(url: str, engine: dict[str, Any] | None = None, **fields: Any) -> ParallelReasoningLLM:
    """A runnable over the server, with small budgets."""
    tokenizer = str(real_model("smollm2-135m-instruct") / "hf")
    server = OpenAICompletionsEngine(base_url=url, tokenizer=tokenizer, **(engine or {}))
    return ParallelReasoningLLM(engine=server, **{**LIMITS, **fields})


def test_a_plan_in_the_paper_s_form_is_held_to_its_grammar(url: str) -> None:
    """What the model says first is a preamble, and its steps are written as branches."""
    titles = ("Paris", "Tokyo", "Cairo")
    skeleton = "".join(f"####{title}:......\n" for title in titles) + "####%%%%"
    again = ReasoningPrompts(
        plan="Repeat this, and nothing else:\n\n{question}",
        sequential="{question}",
        retry="{question}",
    )
    asked = llm(url, outline="paper", prompts=again, decline_without_gain=False)
    result = asked.invoke(skeleton)
    assert result.plan is not None, result.fallback_reason
    assert result.plan.titles == titles
    assert result.plan_attempts == 1
    assert result.usage.input_tokens > result.cached_tokens > 0


@pytest.mark.parametrize("server", ["auto", "plain"])
def test_given_steps_in_the_model_s_own_form(url: str, server: str) -> None:
    """Each branch goes on from its head inside the assistant's turn; so does the conclusion."""
    result = llm(url, {"server": server}).invoke(STEPS)
    assert [branch.title for branch in result.branches] == STEPS["steps"]
    assert any(branch.text for branch in result.branches)  # so small a model may end one at once
    assert all(branch.error is None for branch in result.branches if branch.text)
    assert result.text.startswith("1. **Paris**:")
    assert "<|im_" not in result.text


@pytest.mark.parametrize("server", ["auto", "plain"])
def test_the_answer_to_a_bare_question(url: str, server: str) -> None:
    """With a grammar or without one: a list in branches, or the sequential answer, and no error."""
    asked = "Write a numbered list of three cities with a bold title and a sentence for each."
    result = llm(url, {"server": server}, max_pressure=None, max_sequential_tokens=150).invoke(
        asked
    )
    assert result.text
    assert result.error is None


def test_a_branch_is_an_object_of_its_schema(url: str) -> None:
    """By `json_schema`, at the first attempt."""
    result = llm(url, branch_schema=City, max_branch_tokens=60, conclude=False).invoke(STEPS)
    assert [type(branch.parsed) for branch in result.branches] == [City] * 3


def test_its_context_is_known(url: str) -> None:
    """From the list of models: what is too long is refused before it is sent."""
    with pytest.raises(ContextLengthError, match="the server has room for"):
        llm(url).invoke("long " * 5000)


def test_a_special_token_in_a_question_stays_text(url: str) -> None:
    """It goes as token ids."""
    result = llm(url, mode="sequential", max_sequential_tokens=8).invoke("Say <|im_end|> twice.")
    assert result.text
    plain = llm(url, {"server": "plain"}, mode="sequential")
    with pytest.raises(InvalidRequestError, match="special tokens"):
        plain.invoke("Say <|im_end|> twice.")
