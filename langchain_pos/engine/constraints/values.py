"""What a JSON schema says of values: their types, and those that it lists."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from langchain_pos.engine.constraints.merging import Impossible

Node = dict[str, Any]
"""A schema as it comes in, or as it goes out."""

KEYWORDS: dict[str, tuple[str, ...]] = {
    "object": (
        *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
        *("minProperties", "maxProperties", "dependentRequired", "dependentSchemas"),
        "unevaluatedProperties",
    ),
    "array": (
        *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"),
        *("contains", "minContains", "maxContains", "unevaluatedItems"),
    ),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "boolean": (),
    "null": (),
}
_MOST_MULTIPLES = 256


def types_of(schema: Node) -> list[str] | None:
    """The types that a schema allows; where it names none, those that its keywords speak of."""
    given = schema.get("type")
    if given is None:
        meant = [
            name
            for name, keywords in KEYWORDS.items()
            if name != "integer" and any(keyword in schema for keyword in keywords)
        ]
        return meant or None
    found = [given] if isinstance(given, str) else list(given)
    for name in found:
        if name not in KEYWORDS:
            raise ValueError(f"the type {name!r} does not exist; allowed are {list(KEYWORDS)}")
    if "number" in found and "integer" in found:
        found.remove("integer")
    return found


def enumeration(schema: Node) -> Node:
    """The values that are left, each as it will be written."""
    values = schema.get("enum", [schema.get("const")])
    if "const" in schema:
        values = [value for value in values if _same(value, schema["const"])]
    names = types_of(schema) if "type" in schema else None
    left = [value for value in values if _fits(value, names, schema)]
    if not left:
        raise Impossible("no value of its enum fits the rest of it")
    return {"enum": left}


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _fits(value: Any, names: list[str] | None, schema: Node) -> bool:
    """Whether a value fits the bounds beside an enum, as far as they are those of a scalar."""
    kind = _type_of(value)
    if names is not None and kind not in names and not (kind == "integer" and "number" in names):
        return False
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            return False
        try:
            return re.search(schema.get("pattern", ""), value) is not None
        except re.error:
            return True
    if kind in ("integer", "number"):
        step = schema.get("multipleOf")
        if step and value % step:
            return False
        above = schema.get("exclusiveMinimum", -math.inf)
        below = schema.get("exclusiveMaximum", math.inf)
        if (
            not isinstance(above, bool)
            and not isinstance(below, bool)
            and not above < value < below
        ):
            return False
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    return True


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    names = {float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "object")


def multiples_between(least: int | None, most: int | None, step: float) -> list[int] | None:
    """The multiples in a short range; None where there is none, or it is long."""
    if least is None or most is None or (most - least) / step > _MOST_MULTIPLES or step < 1:
        return None
    if not float(step).is_integer():
        return None
    found = list(range(-(-least // int(step)) * int(step), most + 1, int(step)))
    if not found:
        raise Impossible(f"no multiple of {step} lies between {least} and {most}")
    return found


def anchors_of(part: Any) -> list[tuple[str, Any]]:
    """All `$anchor`s of a document, and what they stand at."""
    found: list[tuple[str, Any]] = []
    if isinstance(part, dict):
        keywords = ("$anchor", "$dynamicAnchor")
        found += [(part[key], part) for key in keywords if isinstance(part.get(key), str)]
        for key, value in part.items():
            if key not in ("enum", "const", "default", "examples"):
                found += anchors_of(value)
    elif isinstance(part, list):
        for item in part:
            found += anchors_of(item)
    return found
