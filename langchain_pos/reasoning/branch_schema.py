"""What a branch promises: its text is one JSON object of a schema, and parses.

The grammar of the schema (engine/constraints.py) forbids every token that would leave it. What no
grammar sees, such as a model's own validators, is checked when the branch has ended, and becomes
the branch's error. A branch whose budget ends inside a string or list has it closed in time; what
is still missing then is never made up.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema import ValidationError as JsonSchemaError
from jsonschema.validators import validator_for
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from referencing.exceptions import Unresolvable
from typing_extensions import is_typeddict

from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic_core import core_schema

    from langchain_pos.engine.completion import FinishReason
    from langchain_pos.engine.constraints import ConstraintState
    from langchain_pos.engine.decoding.sequence import DecodingSequence
    from langchain_pos.results.data import Plan

_ALLOWED = "a pydantic model, a dataclass, a TypedDict or a JSON schema as a dict"
_HALF = re.compile("[\ud800-\udfff]")
_OF_NUMBERS = tuple("0123456789+-.eE")
_ROOM_TO_CLOSE = 24
"""Tokens before a branch's budget from which on it is looked whether the text can be closed."""
_SPARE = 4
"""Tokens that one step may write beyond the one that was sampled, where a grammar forces text."""


class JsonSchemaOfModel(GenerateJsonSchema):
    """As pydantic writes schemas, but an exact number is a number.

    Pydantic takes one as any text as well, which a grammar cannot tell from "about 12 dollars".
    """

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        """See `GenerateJsonSchema.decimal_schema`."""
        found = super().decimal_schema(schema)
        numbers = [each for each in found.get("anyOf", ()) if each.get("type") == "number"]
        return numbers[0] if numbers else found


class BranchSchema:
    """One schema, ready to constrain and to read texts: of branches, answers and tool calls.

    The grammar holds a text to most of a schema; whatever it says is checked here, in whole.

    Args:
        schema: a pydantic model, a dataclass, a TypedDict or a JSON schema.
        what: it is called in messages.

    Attributes:
        name: of the schema, for messages.
        json_schema: what the grammar is made of, as JSON text.

    Raises:
        InvalidRequestError: it is none of these, or cannot be written as a JSON schema.
    """

    def __init__(self, schema: type[Any] | dict[str, Any], *, what: str = "branch_schema") -> None:
        self._adapter: TypeAdapter[Any] | None = None
        try:
            as_dict = self._read_schema(schema)
            self.json_schema = json.dumps(as_dict, ensure_ascii=False)
        except (PydanticUserError, SchemaError, TypeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidRequestError(
                f"{what}={_name(schema)} cannot be used ({reason}); allowed is {_ALLOWED}"
            ) from error
        self.name = str(as_dict.get("title") or _name(schema))
        kind = validator_for(as_dict, default=Draft202012Validator)
        self._validator = kind(as_dict, format_checker=kind.FORMAT_CHECKER)

    def _read_schema(self, schema: type[Any] | dict[str, Any]) -> dict[str, Any]:
        if isinstance(schema, dict):
            validator_for(schema, default=Draft202012Validator).check_schema(schema)
            for pattern in _patterns(schema):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"the pattern {pattern!r} cannot be read: {error}") from error
            return schema
        if is_typeddict(schema):  # pydantic takes only those of typing_extensions
            return dict(convert_to_json_schema(schema))
        if issubclass(schema, BaseModel) or is_dataclass(schema):
            self._adapter = TypeAdapter(schema)
            return self._adapter.json_schema(schema_generator=JsonSchemaOfModel)
        raise TypeError("it is none of these")

    def parse(self, text: str) -> Any:
        """The object that a text is.

        Raises:
            ValueError: it is none; the message says why, in one line.
        """
        try:
            data = json.loads(text, strict=False, parse_float=_finite)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"it cannot be read as JSON: {error}") from error
        # Half of a surrogate pair, which an escape can spell, is not a character.
        clean = _HALF.sub("\ufffd", json.dumps(data, ensure_ascii=False))
        try:
            if self._adapter is not None:
                return self._adapter.validate_json(clean)
            data = json.loads(clean)
            self._validator.validate(data)
        except ValidationError as error:
            raise ValueError(_reasons(error)) from error
        except JsonSchemaError as error:
            raise ValueError(f"{error.json_path}: {error.message.splitlines()[0]}") from error
        except (Unresolvable, RecursionError) as error:
            raise ValueError(f"it cannot be checked: {error}") from error
        return data

    def read(self, text: str, finish_reason: FinishReason) -> tuple[Any, str | None]:
        """The object that a branch's text is, or None and what is wrong with it."""
        if finish_reason == "length":
            return None, (
                f"the branch's budget ended before its {self.name} was complete; raise "
                "max_branch_tokens, or the step's max_tokens, or bound the schema's strings and "
                "lists"
            )
        try:
            return self.parse(text), None
        except ValueError as error:
            return None, f"the branch's text is not a valid {self.name}: {error}"


def branch_schema_of(
    schema: type[Any] | dict[str, Any] | None, given: Plan | None
) -> BranchSchema | None:
    """The contract of all branches; None where there is no schema.

    Raises:
        InvalidRequestError: the schema cannot be used, or a given step's stop texts contradict it.
    """
    if schema is None:
        return None
    contract = BranchSchema(schema)
    for step in given.steps if given is not None else ():
        if step.stop:
            raise InvalidRequestError(
                f"the step {step.title!r} has stop={list(step.stop)!r}, which would cut its JSON; "
                "leave stop out, or branch_schema"
            )
    return contract


class Closer:
    """Closes a branch's JSON before its budget ends, where nothing but closing is left to do.

    An open string is cut there, and so are lists; a value that is still missing is the model's to
    write, and when the budget ends before it, the branch has an error. Given to a sequence as
    `on_token`.

    Args:
        budget: tokens of the branch.
        encode: text to tokens, as the sequence encodes what is forced.

    Attributes:
        budget: as given.
        closed: whether it has closed the text.
    """

    def __init__(self, budget: int, encode: Callable[[str], list[int]]) -> None:
        self.budget = budget
        self.closed = False
        self._encode = encode

    def __call__(self, sequence: DecodingSequence) -> None:
        """Look at the text after a token."""
        left = self.budget - len(sequence.token_ids)
        if left > _ROOM_TO_CLOSE or sequence.constraint is None:
            return
        tail = closing(sequence.text, sequence.constraint)
        if tail and len(self._encode(tail)) <= left <= len(self._encode(tail)) + _SPARE:
            self.closed = sequence.force(tail)


def closing(text: str, state: ConstraintState) -> str | None:
    """The quotes and brackets that make a JSON text complete; None when more than that is missing.

    Args:
        text: the beginning of a JSON text.
        state: of its grammar, after `text`; left as it is.
    """
    bare = re.sub(r"\\.", "", text, flags=re.DOTALL)  # without what is escaped
    outside, quote, _ = re.sub('"[^"]*"', "", bare).partition('"')
    if bare.endswith("\\") or (not quote and bare[-1:] in _OF_NUMBERS):
        return None  # inside an escape; or more digits might follow, and make another number
    stack: list[str] = []
    for mark in outside:
        if mark in "{[":
            stack.append("}" if mark == "{" else "]")
        elif mark in "}]" and stack:
            stack.pop()
    tail = quote + "".join(reversed(stack))
    state = state.fork()
    return tail if tail and state.accept_text(tail) and state.finished else None


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _reasons(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'object'}: {e['msg'].splitlines()[0]}"
        for e in error.errors(include_url=False, include_input=False)
    )


def _patterns(part: Any) -> Iterator[str]:
    """All patterns of a schema."""
    if isinstance(part, dict):
        if isinstance(part.get("pattern"), str):
            yield part["pattern"]
        named = part.get("patternProperties")
        yield from named if isinstance(named, dict) else ()
        for key, value in part.items():
            if key not in ("enum", "const", "default", "examples"):
                yield from _patterns(value)
    elif isinstance(part, list):
        for item in part:
            yield from _patterns(item)


def _name(schema: Any) -> str:
    name = getattr(schema, "__name__", None)
    return str(name) if name else repr(schema)[:60]
