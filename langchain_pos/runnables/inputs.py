"""All forms of input to `ParallelReasoningLLM`."""

# ruff: noqa: A002 - `input` is langchain-core's name
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import convert_to_messages, convert_to_openai_messages
from langchain_core.messages.utils import merge_message_runs
from langchain_core.prompt_values import PromptValue
from pydantic import ValidationError

from langchain_pos.errors import InvalidRequestError
from langchain_pos.field_names import wrong_fields
from langchain_pos.results.data import ReasoningRequest

ReasoningInput = LanguageModelInput | ReasoningRequest | dict[str, Any]
"""A question as text, prompt value or messages; a request; or a dict with its fields."""


def as_request(input: ReasoningInput) -> ReasoningRequest:
    """Any input that LangChain accepts, as a request.

    Raises:
        InvalidRequestError: it is not a valid input, or its question is missing or blank.
    """
    ask = _as_request(input)
    if not ask.question.strip():  # here too: the reasoner's own check comes after the loading
        raise InvalidRequestError("the question is empty; ask something")
    return ask


def _as_request(input: ReasoningInput) -> ReasoningRequest:
    """Any input in the form of a request."""
    if isinstance(input, ReasoningRequest):
        return input
    if isinstance(input, dict):
        try:
            return ReasoningRequest.model_validate(input)
        except ValidationError as error:
            raise InvalidRequestError(
                f"this dict is not a request: {wrong_fields(error)}. Allowed are 'question' "
                "(required), 'steps' (titles, or dicts with 'title', 'prompt', 'max_tokens', "
                "'temperature', 'seed', 'stop') and 'messages'"
            ) from error
    if isinstance(input, str):
        return ReasoningRequest(question=input, messages=(("user", input),))
    try:
        pairs = tuple(_pair(message) for message in _messages(input))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"{type(input).__name__} cannot be asked ({str(error).splitlines()[0]}); give a text, "
            "messages, a prompt value, a ReasoningRequest or a dict with 'question'"
        ) from error
    if not pairs or pairs[-1][0] != "user":
        last = pairs[-1][0] if pairs else "nothing"
        raise InvalidRequestError(
            f"the messages end with {last}; they must end with the question, a human message"
        )
    return ReasoningRequest(question=pairs[-1][1], messages=pairs)


def _messages(input: Any) -> list[Any]:
    """Messages in OpenAI's format; adjacent ones of the same role are merged."""
    if isinstance(input, PromptValue):
        messages = input.to_messages()
    elif isinstance(input, Sequence) and not isinstance(input, bytes | bytearray):
        messages = convert_to_messages(input)
    else:
        raise TypeError("neither text nor messages")
    return list(convert_to_openai_messages(merge_message_runs(messages), text_format="string"))


def _pair(message: dict[str, Any]) -> tuple[str, str]:
    content = message.get("content") or ""
    if not isinstance(content, str):
        kinds = {str(block.get("type")) for block in content} - {"text"}
        raise ValueError(f"only text is supported, not {', '.join(sorted(kinds))}")
    return str(message["role"]), content


def sum_up(inputs: list[Any]) -> Any:
    """The sum of a streamed input, added as LangChain adds chunks.

    Raises:
        InvalidRequestError: the stream was empty.
    """
    if not inputs:
        raise InvalidRequestError("nothing was asked: the chain's previous step returned nothing")
    whole = inputs[0]
    for part in inputs[1:]:
        whole = whole + part
    return whole
