"""Constructors take what people write, or say what it is called here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from langchain_pos import ChatParallelReasoning, OpenAICompletionsEngine, ParallelReasoningLLM
from langchain_pos.chat_models.fields import ChatFields
from langchain_pos.errors import InvalidRequestError
from langchain_pos.model_source import ModelSource
from langchain_pos.reasoning.settings import ReasoningSettings

BOTH = pytest.mark.parametrize("kind", [ParallelReasoningLLM, ChatParallelReasoning])


@BOTH
def test_the_model_may_come_first(kind: Any) -> None:
    """As a positional argument, once."""
    assert kind("a/b").model == "a/b"
    assert kind("a/b", seed=3).seed == 3
    with pytest.raises(ValueError, match="given twice"):
        kind("a/b", model_name="c/d")


@BOTH
@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"torch_dtype": torch.bfloat16}, "dtype", "bfloat16"),
        ({"dtype": torch.float16}, "dtype", "float16"),
        ({"device": 0}, "device", "cuda:0"),
        ({"device": torch.device("cpu")}, "device", "cpu"),
        ({"device_map": "auto"}, "model_kwargs", {"device_map": "auto"}),
        ({"load_in_8bit": True}, "model_kwargs", {"quantization_config": {"load_in_8bit": True}}),
        ({"load_in_4bit": False}, "model_kwargs", {}),
        ({"model_name": "a/b"}, "model", "a/b"),
    ],
)
def test_names_of_other_libraries(kind: Any, given: Any, name: str, value: Any) -> None:
    """They are read as the field that they mean."""
    assert getattr(kind(**given), name) == value


@pytest.mark.parametrize("name", ["max_new_tokens", "num_predict", "max_completion_tokens"])
def test_budgets_of_other_libraries(name: str) -> None:
    """All of them mean the whole answer."""
    assert ChatParallelReasoning(**{name: 7}).max_tokens == 7
    assert ParallelReasoningLLM(**{name: 7}).max_tokens == 7


@BOTH
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", "did you mean 'temperature'"),
        ("max_branch", "did you mean 'max_branch"),
        ("of_no_meaning_at_all", "leave it out"),
    ],
)
def test_a_name_that_is_unknown(kind: Any, name: str, hint: str) -> None:
    """The error has the one that is like it."""
    with pytest.raises(ValueError, match=hint):
        kind(**{name: 1})


def test_a_name_that_is_unknown_to_an_engine() -> None:
    """A server's fields are looked up as well."""
    with pytest.raises(ValueError, match="did you mean 'base_url'"):
        OpenAICompletionsEngine(base_uri="http://127.0.0.1/v1")  # type: ignore[call-arg]


@BOTH
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_branch_token", "did you mean 'max_branch_tokens'"),
        ("max_length", "did you mean 'max_tokens'"),
        ("of_no_meaning_at_all", "leave it out; allowed are mode, max_branches, "),
        ("dtype", "unknown setting 'dtype'"),
    ],
)
def test_a_name_that_is_unknown_to_a_call(kind: Any, name: str, hint: str) -> None:
    """The same, for what is set for one call; before the model is loaded."""
    with pytest.raises(InvalidRequestError, match=hint):
        kind("not/there").invoke("Who?", **{name: 1})


def test_the_chat_model_has_further_names_at_a_call() -> None:
    """They are suggested, too."""
    with pytest.raises(InvalidRequestError, match="did you mean 'timeout'"):
        ChatParallelReasoning("not/there").invoke("Who?", timout=1)


@BOTH
def test_a_call_takes_names_of_other_libraries(kind: Any) -> None:
    """As the constructor does."""
    with pytest.raises(InvalidRequestError, match="max_tokens=0"):
        kind("not/there").invoke("Who?", max_new_tokens=0)


@pytest.mark.parametrize("kind", [ParallelReasoningLLM, ChatParallelReasoning])
def test_every_field_has_its_description(kind: Any) -> None:
    """Forms, tracers and `config_schema` show what the class says of a field."""
    own = {*ModelSource.model_fields, *ReasoningSettings.model_fields}
    if kind is ChatParallelReasoning:
        own |= set(ChatFields.__annotations__)
    own -= {"model_config"}
    assert [name for name in sorted(own) if not kind.model_fields[name].description] == []
    fields = OpenAICompletionsEngine.model_fields
    assert [name for name in fields if not fields[name].description] == []


def test_a_quantised_model_is_transformers_matter() -> None:
    """`load_in_4bit` becomes the configuration that transformers reads."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    given = ParallelReasoningLLM(load_in_4bit=True).model_kwargs["quantization_config"]
    assert AutoQuantizationConfig.from_dict(given).load_in_4bit
