"""JSON schemas: what a grammar says of them holds, what it cannot say is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from jsonschema import Draft202012Validator

from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.constraints.schemas import read_schema
from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.branch_schema import BranchSchema
from tests.support.json_schemas import SCHEMAS
from tests.support.random_texts import compiler, random_text

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "structured.md"
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| `([^`]*)` \| (enforced|checked|refused)\b", re.M)
TABLE = ROW.findall(PAGE.read_text(encoding="utf-8"))


def texts(schema: Any, count: int = 12) -> list[str]:
    """What random tokens make of a schema, where they come to an end."""
    constraint = Constraint("json_schema", json.dumps(schema))
    found = [random_text(constraint, seed) for seed in range(count)]
    return [text for text in found if text is not None]


def accepts(schema: Any, text: str) -> bool:
    """Whether a text may be written under a schema."""
    state = compiler().state(Constraint("json_schema", json.dumps(schema)))
    return all(state.accept_text(character) for character in text) and state._matcher.is_completed()


def both(schema: Any) -> None:
    """Make what checks a schema and what holds to it."""
    BranchSchema(schema)
    compiler().state(Constraint("json_schema", json.dumps(schema)))


def valid(schema: Any, text: str) -> bool:
    """Whether the library says so."""
    kind = Draft202012Validator
    return bool(kind(schema, format_checker=kind.FORMAT_CHECKER).is_valid(json.loads(text)))


@example({"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "maxLength": 0}]})
@example({"anyOf": [{"$ref": "#/$defs/D"}, {"maxLength": 1}], "$defs": {"D": {"minLength": 3}}})
@example({"type": "object", "minProperties": 2, "patternProperties": {"^[ab]$": {"const": "a"}}})
@example({"type": "string", "allOf": [{"format": "date"}, {"format": "uuid"}]})
@example({"allOf": [{"propertyNames": {"pattern": p}} for p in ("^a", "b$")], "type": "object"})
@example({"enum": ["B", 1], "allOf": [{"enum": ["B", True]}]})
@example(
    {
        "type": "object",
        "properties": {"kind": {}},
        "required": ["kind"],
        "additionalProperties": False,
        "propertyNames": {"pattern": "^[a-j]+$"},
    }
)
@example(
    {
        "type": "object",
        "properties": {"kind": {}},
        "required": ["kind"],
        "additionalProperties": {"type": "string", "maxLength": 0, "format": "date"},
        "propertyNames": {"pattern": "^[a-j]+$"},
    }
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS)
def test_nothing_invalid_is_taken_for_valid(schema: Any) -> None:
    """Of any schema: the grammar alone keeps to it, or names what it leaves to be checked."""
    constraint = Constraint("json_schema", json.dumps(schema))
    try:
        compiler().state(constraint)
    except InvalidRequestError:
        return
    checked = read_schema(schema).checked
    for text in texts(schema, count=2):
        if not valid(schema, text):
            assert checked, f"{text} does not fit, and no keyword is left to be checked"
            with pytest.raises(ValueError, match=r"."):
                BranchSchema(schema).parse(text)


def test_grammars_share_nothing() -> None:
    """Masks that xgrammar keeps of one grammar, it has taken for those of another one."""
    for schema in ({"type": "array"}, {"anyOf": [{"type": "array"}, {"const": "a"}]}):
        compiler().state(Constraint("json_schema", json.dumps(schema)))
    assert compiler()._compiler.get_cache_size_bytes() == 0


def test_the_table_is_found() -> None:
    """So that the test below cannot pass by finding nothing."""
    assert len(TABLE) >= 30
    assert {how for *_, how in TABLE} == {"enforced", "checked", "refused"}


@pytest.mark.parametrize(("keyword", "schema", "wrong", "how"), TABLE, ids=[r[0] for r in TABLE])
def test_a_row_of_the_table(keyword: str, schema: str, wrong: str, how: str) -> None:
    """Enforced: it cannot be written. Checked: it can, and is found. Refused: before any work."""
    read = json.loads(schema.replace("\\|", "|"))
    wrong = wrong.replace("\\|", "|")
    if how == "refused":
        with pytest.raises(InvalidRequestError, match=re.escape(keyword)):
            both(read)
        return
    assert not valid(read, wrong)
    with pytest.raises(ValueError, match=r"."):
        BranchSchema(read).parse(wrong)
    written = texts(read)
    assert written
    if how == "enforced":
        assert not accepts(read, wrong)
        assert not read_schema(read).checked
        assert [text for text in written if not valid(read, text)] == []
    else:
        assert accepts(read, wrong) or not all(valid(read, text) for text in written)
        assert keyword.split(" ")[0] in read_schema(read).checked


BASE = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.mark.parametrize(
    ("schema", "fits", "wrong"),
    [
        (
            {
                "allOf": [
                    {"$ref": "#/$defs/Base"},
                    {
                        "type": "object",
                        "properties": {"y": {"type": "integer"}},
                        "required": ["y"],
                    },
                ],
                "$defs": {"Base": BASE},
            },
            ['{"x": 1, "y": 2}'],
            ["null", "[1]", '{"x": 1}', '{"y": 2}'],
        ),
        ({"pattern": "^[A-Z]+$", "maxLength": 4}, ['"ABCD"'], ['"ABCDE"', '"abc"', '""']),
        (
            {"$ref": "#/$defs/S", "maxLength": 2, "$defs": {"S": {"type": "string"}}},
            ['"ab"'],
            ['"abc"', "1"],
        ),
        ({"type": "object", "required": ["a"]}, ['{"a": 1}'], ["{}"]),
        ({"type": "string", "format": "date", "maxLength": 10}, ['"2024-02-28"'], ['"2024-02-30"']),
        (
            {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}},
            ['{"a": 1}', '{"b": 1}'],
            ["{}"],
        ),
        (
            {
                "anyOf": [
                    {"type": "number"},
                    {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
                ]
            },
            ["12.5"],
            ['"about 12 dollars"'],
        ),
        (
            {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}
            | {"$defs": {"A": {"type": ["string", "integer"]}, "B": {"type": ["integer", "null"]}}},
            ["3"],
            ['"a"', "null"],
        ),
        (
            {
                "type": "object",
                "properties": {"kids": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}},
                "required": ["kids"],
            },
            ['{"kids": []}', '{"kids": [{"kids": []}]}'],
            ['{"kids": [1]}', '{"kids": [{}]}'],
        ),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_keywords_together(schema: Any, fits: list[str], wrong: list[str]) -> None:
    """They hold together, as the grammar alone would not hold them."""
    assert [text for text in fits if not accepts(schema, text)] == []
    assert [text for text in wrong if accepts(schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength=3"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "types"),
        ({"$ref": "#/$defs/Missing"}, "leads nowhere"),
        ({"$ref": "#"}, "leads to itself"),
        ({"$ref": "https://example.org/schema.json"}, "under \\$defs"),
        ({"properties": {"a": False}, "required": ["a"]}, "'a'"),
        ({"enum": [1, 2], "type": "string"}, "enum"),
        ({"type": "integer", "multipleOf": 10, "minimum": 1, "maximum": 9}, "multiple of 10"),
        ({"pattern": "^.{5}$", "maxLength": 4}, "maxLength=4"),
    ],
)
def test_what_nothing_fits_is_refused(schema: Any, reason: str) -> None:
    """By name, before any work."""
    with pytest.raises(InvalidRequestError, match=reason):
        compiler().state(Constraint("json_schema", json.dumps(schema)))


def test_recursive_definitions_that_hold_together_end() -> None:
    """Two recursive schemas under one `allOf` are merged once, not for ever."""
    tree = {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/T"}}},
    }
    schema = {"allOf": [{"$ref": "#/$defs/T"}, {"required": ["kids"]}], "$defs": {"T": tree}}
    assert accepts(schema, '{"kids": [{"kids": []}]}')
    assert not accepts(schema, "{}")
