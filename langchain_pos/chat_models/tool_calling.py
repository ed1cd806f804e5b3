"""Tool calls: how a model writes them, the grammar that they belong to, and reading them back."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.branch_schema import JsonSchemaOfModel

if TYPE_CHECKING:
    from langchain_pos.engine.constraints import Constraint

Tool = dict[str, Any]
"""A tool in OpenAI's form: `{"type": "function", "function": {"name", "description", …}}`."""
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolForm:
    """How tool calls are written in text.

    Attributes:
        opening: before the name; a call is written as soon as it stands there.
        arguments_key: under which the arguments stand.
        closing: after the arguments.
        several: whether one message may hold several calls.
    """

    opening: str
    arguments_key: str
    closing: str
    several: bool = True

    def begin(self, name: str) -> str:
        """A call up to its arguments."""
        key = self.arguments_key
        return f'{self.opening}{{"name": {json.dumps(name)}, "{key}": '

    @property
    def trigger(self) -> str:
        """The text after which only a call may follow."""
        return self.opening.rstrip() or '{"name": "'

    def write(self, name: str, args: dict[str, Any]) -> str:
        """A whole call."""
        return self.begin(name) + json.dumps(args, ensure_ascii=False) + self.closing


HERMES = ToolForm("<tool_call>\n", "arguments", "}\n</tool_call>")
"""As Hermes, Qwen and many others write calls; taken where a template shows no form of its own."""
LLAMA = ToolForm("", "parameters", "}", several=False)
"""As Llama 3 writes them: one bare JSON object."""


def form_of(template: str | None) -> tuple[ToolForm, bool]:
    """The form of a chat template's tool calls, and whether it can list the tools itself.

    Templates with another form than ours (Mistral's special tokens, XML parameters) are not given
    the tools: a system message lists them, with the form that the model is to write.
    """
    template = template or ""
    if "tools" in template and "<function=" not in template:
        if "<tool_call>" in template:
            return HERMES, True
        if '"parameters": ' in template:
            return LLAMA, True
    return HERMES, False


def instruction(tools: Sequence[Tool], form: ToolForm) -> str:
    """The system message for a template that knows no tools: Hermes' own words, as in Qwen's."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        f'{form.opening}{{"name": <function-name>, "{form.arguments_key}": <args-json-object>'
        f"{form.closing}"
    )


def as_tool(tool: Any, *, strict: bool | None = None) -> Tool:
    """A tool in OpenAI's form, with all that its schema says.

    langchain-core writes definitions out where they are used, and a part that holds itself comes
    out as anything. Where there is such a part, the definitions are kept. See `JsonSchemaOfModel`
    for exact numbers.
    """
    found = convert_to_openai_tool(tool, strict=strict)
    source = tool
    if isinstance(tool, BaseTool):
        source = tool.tool_call_schema
    elif isinstance(tool, types.FunctionType):
        source = StructuredTool.from_function(tool, parse_docstring=False).tool_call_schema
    changed = False
    if isinstance(source, type) and issubclass(source, BaseModel):
        usual, source = source, source.model_json_schema(schema_generator=JsonSchemaOfModel)
        changed = source != usual.model_json_schema()
    if not (isinstance(source, dict) and (changed or _recurs(source))):
        return found
    kept = (
        "type",
        "properties",
        "required",
        "additionalProperties",
        "$defs",
        "$ref",
        "definitions",
    )
    parameters = {key: source[key] for key in kept if key in source}
    return {**found, "function": {**found["function"], "parameters": parameters}}


def _recurs(schema: dict[str, Any]) -> bool:
    """Whether one of a schema's definitions holds itself."""
    defs = {f"#/$defs/{name}": each for name, each in schema.get("$defs", {}).items()}

    def leads(part: Any, path: tuple[str, ...]) -> bool:
        if isinstance(part, list):
            return any(leads(each, path) for each in part)
        if not isinstance(part, dict):
            return False
        reference = part.get("$ref")
        if reference == "#" or reference in path:
            return True
        if reference in defs and leads(defs[reference], (*path, reference)):
            return True
        return any(leads(each, path) for key, each in part.items() if key != "$defs")

    return leads(schema, ())


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """What a tool's arguments must be; a tool that names none has none."""
    return tool["function"].get("parameters") or _NO_ARGUMENTS


# ---------------------------------------------------------------------- choice


def read_choice(choice: Any, names: Sequence[str]) -> str:
    """`tool_choice` in one form: "auto", "any", "none", or the name of a tool.

    Args:
        choice: one of these, "required", a bool, None, or a dict as OpenAI's or Anthropic's.
        names: of the tools that are bound.

    Raises:
        InvalidRequestError: it is none of these.
    """
    named = choice
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function.get("name") if isinstance(function, dict) else choice.get("name")
        named = named or choice.get("type")
    match named:
        case None | "auto":
            return "auto"
        case True | "any" | "required":
            return "any"
        case False | "none":
            return "none"
        case str() if named in names:
            return named
    raise InvalidRequestError(
        f"tool_choice={choice!r} is not possible; allowed are 'auto', 'any', 'none' and the names "
        f"of the tools that are bound: {', '.join(names) or 'there are none'}"
    )


def unique(tools: Sequence[Tool]) -> list[Tool]:
    """The tools without those that are given twice.

    Raises:
        InvalidRequestError: two different tools have one name.
    """
    by_name: dict[str, Tool] = {}
    for tool in tools:
        name = tool["function"]["name"]
        if by_name.setdefault(name, tool) != tool:
            raise InvalidRequestError(f"two different tools are named {name!r}; rename one of them")
    return list(by_name.values())


# --------------------------------------------------------------------- grammar


def constraint_for(
    tools: Sequence[Tool],
    choice: str,
    form: ToolForm,
    *,
    several: bool,
    schema: dict[str, Any] | None = None,
) -> Constraint | None:
    """The language of an answer that may, or must, be tool calls or a JSON object.

    Args:
        tools: may be empty.
        choice: as `read_choice` gives it.
        form: how calls are written.
        several: whether one answer may hold several calls.
        schema: of an answer that is not a call; None leaves that text free.

    Returns:
        None where every text is allowed.
    """
    from langchain_pos.engine.constraints import Constraint

    answer = None if schema is None else {"type": "json_schema", "json_schema": schema}
    tags = [
        {
            "type": "tag",
            "begin": form.begin(tool["function"]["name"]),
            "content": {
                "type": "json_schema",
                "json_schema": arguments_schema(tool),
            },
            "end": form.closing,
        }
        for tool in tools
        if choice in ("auto", "any", tool["function"]["name"])
    ]
    if choice == "none" or not tags:
        return None if schema is None else Constraint("json_schema", json.dumps(schema))
    one = not (several and form.several) or choice not in ("auto", "any")
    calls = {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": one,
    }
    found: dict[str, Any] = calls
    if choice == "auto" and answer is not None:
        found = {"type": "or", "elements": [calls, answer]}
    elif choice == "auto":
        found = {
            "type": "triggered_tags",
            "triggers": [form.trigger],
            "tags": tags,
            "stop_after_first": one,
        }
    return Constraint("structural_tag", json.dumps({"type": "structural_tag", "format": found}))


# --------------------------------------------------------------------- reading


@dataclass(frozen=True)
class CallText:
    """A tool call as it was written.

    Attributes:
        name: of the tool; "" where the answer ended before it.
        args: the arguments' JSON text; of an unfinished call, all that there is of it.
        id: new for each call.
        whole: whether it was written to its end.
    """

    name: str
    args: str
    id: str
    whole: bool = True


class ToolCallReader:
    """Splits an answer, as it comes, into text and whole tool calls.

    Args:
        form: how calls are written.
        forced: the answer is a call, so that what is cut at its beginning is one as well.
    """

    def __init__(self, form: ToolForm, *, forced: bool = False) -> None:
        self._form = form
        self._forced = forced
        self._held = ""
        self._called = False
        self._any_call = False
        name, key = r'"(?P<name>(?:[^"\\]|\\.)*)"', re.escape(f'"{form.arguments_key}"')
        self._begin = re.compile(re.escape(form.opening) + rf"{{\"name\": {name}, {key}: ")

    def push(self, piece: str) -> Iterator[str | CallText]:
        """Take a piece; yields what has become certain."""
        self._held += piece
        while (at := self._held.find(self._form.trigger)) >= 0:
            yield from self._text(self._held[:at].rstrip())
            self._held = self._held[at:]
            begin = self._begin.match(self._held)
            end = begin and _end_of_object(self._held, begin.end())
            if begin is None or not end or not self._held.startswith(self._form.closing, end):
                return  # the rest of the call is still to come
            args = self._held[begin.end() : end]
            yield CallText(json.loads(f'"{begin["name"]}"'), args, _new_id())
            self._held = self._held[end + len(self._form.closing) :]
            self._called = self._any_call = True
        certain = len(self._held) - self._undecided()
        yield from self._text(self._held[:certain])
        self._held = self._held[certain:]

    def close(self) -> Iterator[str | CallText]:
        """The answer has ended."""
        begin = self._begin.match(self._held)
        if begin is None and _end_of_object(self._held, 0) == len(self._held):
            yield from self._text(self._held)  # an answer in JSON that begins as a call does
        elif self._held.startswith(self._form.trigger) or (
            self._forced and not self._any_call and self._held.strip()
        ):
            name = json.loads(f'"{begin["name"]}"') if begin else ""
            yield CallText(name, self._held, _new_id(), whole=False)
        elif self._held.strip():
            yield from self._text(self._held)
        self._held = ""

    def _text(self, text: str) -> Iterator[str]:
        if self._called:  # white space between calls is not text
            text = text.lstrip()
        if text:
            self._called = False
            yield text

    def _undecided(self) -> int:
        """Characters at the end that may belong to a call, or be white space before one."""
        trigger, held = self._form.trigger, self._held
        for length in range(min(len(trigger) - 1, len(held)), 0, -1):
            if held.endswith(trigger[:length]):
                held = held[:-length]
                break
        return len(self._held) - len(held.rstrip())


def _end_of_object(text: str, start: int) -> int | None:
    """Where the JSON object that begins at `start` ends; None while it does not."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except json.JSONDecodeError:
        return None


def _new_id() -> str:
    return f"call_{uuid4().hex}"
