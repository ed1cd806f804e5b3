"""Structured output: schemas for the grammar, and the parser of what comes back."""

from __future__ import annotations

import json
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ValidationError
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import ValidationError as ValidationErrorV1

from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.branch_schema import JsonSchemaOfModel

StructuredMethod = Literal["json_schema", "function_calling", "json_mode"]
Schema = dict[str, Any] | type


def json_schema_of(schema: Schema) -> dict[str, Any]:
    """The JSON schema of a pydantic model, a TypedDict, a function, or of one already.

    Raises:
        InvalidRequestError: it is none of these.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema(schema_generator=JsonSchemaOfModel)
    if isinstance(schema, type) and issubclass(schema, BaseModelV1):
        return dict(schema.schema())
    if isinstance(schema, dict) and not {"parameters", "input_schema", "function"} & set(schema):
        return schema  # and no tool, whose schema lies inside
    try:
        return convert_to_json_schema(schema)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"{schema!r} cannot be turned into a JSON schema ({error}); give a pydantic model, a "
            "TypedDict or a JSON schema with a title"
        ) from error


def read_response_format(
    response_format: dict[str, Any] | None,
) -> tuple[dict[str, Any] | None, bool]:
    """OpenAI's `response_format` as a JSON schema, and whether the prompt shows it.

    Raises:
        InvalidRequestError: it is none.
    """
    match response_format:
        case None | {"type": "text"}:
            return None, False
        case {"type": "json_object"}:
            return response_format.get("schema") or {"type": "object"}, False
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema, True
    raise InvalidRequestError(
        f"response_format={response_format!r} is not possible; allowed are the types 'text', "
        "'json_object', and 'json_schema' with {'json_schema': {'name': …, 'schema': {…}}}"
    )


def schema_instruction(schema: dict[str, Any]) -> str:
    """The sentence that shows the model the schema of its answer."""
    text = json.dumps(schema, ensure_ascii=False)
    return (
        "Your final answer must be one JSON object that follows this JSON schema, and nothing "
        f"else:\n{text}"
    )


class StructuredOutputParser(BaseCumulativeTransformOutputParser[Any]):
    """A message to an object of the schema.

    Unlike langchain-core's own parsers it mends nothing: an answer that was cut is an error, also
    when what there is of it could be read. While streaming it yields objects as they grow.

    Attributes:
        schema_type: pydantic model to validate with; None gives plain dicts.
        from_tool: read the arguments of the first tool call, not the text.
    """

    schema_type: Any = None
    from_tool: bool = False

    def parse(self, text: str) -> Any:
        """An object from bare text."""
        return self.parse_result([Generation(text=text)])

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """An object from a message; None while there is none yet.

        Raises:
            OutputParserException: the answer was cut, or does not validate.
        """
        generation = result[0]
        message = generation.message if isinstance(generation, ChatGeneration) else None
        if message is not None:
            _refuse_unfinished(message.response_metadata, generation.text)
        try:
            data = self._data(generation, message, partial=partial)
            return None if data is None else self._object(data)
        except (ValueError, ValidationError, ValidationErrorV1) as error:
            if partial:
                return None
            name = getattr(self.schema_type, "__name__", "object of the schema")
            raise OutputParserException(
                f"the answer is not a valid {name}: {error}", llm_output=generation.text
            ) from error

    def _data(self, generation: Generation, message: Any, *, partial: bool) -> Any:
        if not self.from_tool:
            if partial:
                return parse_partial_json(generation.text) if generation.text.strip() else None
            return json.loads(generation.text)
        calls = getattr(message, "tool_calls", [])
        if not calls and not partial:
            invalid = getattr(message, "invalid_tool_calls", [])
            raise ValueError((invalid and invalid[0]["error"]) or "it contains no tool call")
        return calls[0]["args"] if calls else None

    def _object(self, data: Any) -> Any:
        if not is_pydantic(self.schema_type):
            return data
        if issubclass(self.schema_type, BaseModelV1):
            return self.schema_type.parse_obj(data)
        return self.schema_type.model_validate(data)


def is_pydantic(schema: Any) -> bool:
    """Whether it is a model class of pydantic 2 or 1."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _refuse_unfinished(metadata: dict[str, Any], text: str) -> None:
    reason = metadata.get("finish_reason")
    if reason == "length":
        raise OutputParserException(
            "the answer reached its budget before the JSON was complete (finish_reason='length'); "
            "raise max_tokens, or bound strings and lists in the schema",
            llm_output=text,
        )
    if reason == "error":
        raise OutputParserException(
            f"no answer fits the schema: {metadata.get('error')}", llm_output=text
        )
