"""Two JSON schemas that must both hold, as one."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id", "$anchor", "$dynamicAnchor", "$defs", "definitions"),
    *("contentEncoding", "contentMediaType", "contentSchema", "discriminator"),
}
_LEAST = {"minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum", "minContains"}
_MOST = {"maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum", "maxContains"}
_FIELDS = ("properties", "additionalProperties", "patternProperties")
_MOST_CHOICES = 128


class Impossible(Exception):
    """Nothing fits a schema."""


def merge(one: Any, other: Any) -> Any:
    """A schema that holds what both hold; schemas inside them are put under an `allOf`.

    Raises:
        Impossible: they contradict each other.
        ValueError: there are too many combinations of their alternatives.
    """
    if one is False or other is False:
        raise Impossible("it is `false`")
    one = {} if one is True else _bare(one)
    other = {} if other is True else _bare(other)
    found: dict[str, Any] = {}
    for key in [*one, *(key for key in other if key not in one)]:
        if key in _FIELDS or key in ("items", "prefixItems"):
            continue
        if key not in one or key not in other:
            found[key] = one.get(key, other.get(key))
        else:
            found[key] = _both(key, one[key], other[key])
    found |= _fields(one, other)
    return found | _items(one, other)


def both(one: Any, other: Any) -> Any:
    """As `merge`, later: it may recur."""
    if one is True or _same(one, other):
        return other
    if other is True:
        return one
    return {"allOf": [one, other]}


def _bare(schema: Any) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in _ANNOTATIONS}


def _same(one: Any, other: Any) -> bool:
    """Whether they are equal in JSON, where 1 is not true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _both(key: str, one: Any, other: Any) -> Any:
    if _same(one, other):
        return one
    if key in _LEAST and not isinstance(one, bool) and not isinstance(other, bool):
        return max(one, other)
    if key in _MOST and not isinstance(one, bool) and not isinstance(other, bool):
        return min(one, other)
    match key:
        case "type":
            return _types(one, other)
        case "enum":
            texts = [json.dumps(value, sort_keys=True) for value in other]
            left = [value for value in one if json.dumps(value, sort_keys=True) in texts]
            if not left:
                raise Impossible("two of its enums have no value in common")
            return left
        case "const":
            raise Impossible(f"it must be {one!r} and {other!r}")
        case "required":
            return [*one, *(name for name in other if name not in one)]
        case "anyOf" | "oneOf":
            if len(one) * len(other) > _MOST_CHOICES:
                raise ValueError(
                    f"its alternatives combine to more than {_MOST_CHOICES}; write them out"
                )
            return [both(left, right) for left in one for right in other]
        case "multipleOf" if isinstance(one, int) and isinstance(other, int):
            return math.lcm(one, other)
        case "uniqueItems":
            return True
        case "dependentRequired":
            return {name: [*one.get(name, ()), *other.get(name, ())] for name in {**one, **other}}
        case "pattern":
            # As one pattern, which only the reader can check.
            return f"(?=[\\s\\S]*(?:{one}))(?=[\\s\\S]*(?:{other}))"
        case "format":
            return f"{one} and {other}"  # the same
        case "propertyNames":
            return both(one, other)
    return one  # a keyword that is checked, in whole, by the reader of the text


def _types(one: Any, other: Any) -> list[str]:
    left = [one] if isinstance(one, str) else list(one)
    right = [other] if isinstance(other, str) else list(other)
    found = [
        name
        for name in dict.fromkeys([*left, *right])
        if (name in left or (name == "integer" and "number" in left))
        and (name in right or (name == "integer" and "number" in right))
    ]
    if not found:
        raise Impossible(f"it must be of the types {left} and {right}")
    return found


def _fields(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The keywords of an object's fields: what one side declares, the other may forbid."""
    if not any(key in side for key in _FIELDS for side in (one, other)):
        return {}
    found: dict[str, Any] = {}
    mine, yours = one.get("properties", {}), other.get("properties", {})
    names = [*mine, *(name for name in yours if name not in mine)]
    if names:
        found["properties"] = {name: both(_field(one, name), _field(other, name)) for name in names}
    elif "properties" in one or "properties" in other:
        found["properties"] = {}
    patterns = {**one.get("patternProperties", {})}
    for pattern, value in other.get("patternProperties", {}).items():
        patterns[pattern] = both(patterns.get(pattern, True), value)
    if patterns:
        found["patternProperties"] = patterns
    rest = [side["additionalProperties"] for side in (one, other) if "additionalProperties" in side]
    if any(value is False for value in rest):
        found["additionalProperties"] = False
    elif rest:
        found["additionalProperties"] = both(*rest) if len(rest) == 2 else rest[0]
    return found


def _field(side: dict[str, Any], name: str) -> Any:
    """What one side says of a field."""
    if name in side.get("properties", {}):
        return side["properties"][name]
    if any(re.search(pattern, name) for pattern in side.get("patternProperties", {})):
        return True  # its pattern holds beside it, see `patternProperties`
    return side.get("additionalProperties", True)


def _items(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sides = [
        (side.get("items", True), side.get("prefixItems", []))
        if not isinstance(side.get("items"), list)
        else (side.get("additionalItems", True), side["items"])
        for side in (one, other)
    ]
    longest = max(len(first) for _, first in sides)
    if longest:
        found["prefixItems"] = [
            both(*(first[place] if place < len(first) else rest for rest, first in sides))
            for place in range(longest)
        ]
    if "items" in one or "items" in other:
        found["items"] = both(*(rest for rest, _ in sides))
    return found
