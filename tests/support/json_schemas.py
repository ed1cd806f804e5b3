"""JSON schemas at random: what people write, and combinations that nobody would."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_NAMES = st.sampled_from(["a", "b", "kind"])
_PATTERNS = (
    *("^[A-Z]+$", "a|b", r'^"[a-z]{1,3}"$', r"^\\\d$", "^[^x]{2,4}$", "^x{1,30}$", r"\n"),
    *("^(ab)+$", "^(?!x)", r"^\d{4}-[a-f]?$"),
)
_VALUES = ("a", "B", 1, 2.5, None, True, [1], {"a": 1}, 'q"')


def _some(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    """A keyword, or none."""
    return st.one_of(st.just({}), st.builds(lambda value: {name: value}, values))


def _merged(*parts: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.tuples(*parts).map(lambda each: {k: v for part in each for k, v in part.items()})


_STRINGS = _merged(
    st.sampled_from([{"type": "string"}, {"type": "string"}, {"minLength": 1}]),
    _some("minLength", st.integers(0, 4)),
    _some("maxLength", st.integers(0, 6)),
    _some("pattern", st.sampled_from(_PATTERNS)),
    _some("format", st.sampled_from(["date", "uuid", "ipv4", "time", "email", "of-ours"])),
)
_NUMBERS = _merged(
    st.sampled_from([{"type": "integer"}, {"type": "number"}]),
    _some("minimum", st.integers(-20, 20)),
    _some("maximum", st.integers(-10, 40)),
    _some("exclusiveMinimum", st.integers(-20, 20)),
    _some("multipleOf", st.integers(1, 5)),
)
_LEAVES = st.one_of(
    _STRINGS,
    _NUMBERS,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {}]),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.sampled_from(_VALUES), min_size=1, max_size=3, unique_by=repr),
    ),
    st.builds(lambda value: {"const": value}, st.sampled_from(_VALUES)),
)


def _around(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    objects = _merged(
        st.just({"type": "object"}),
        st.builds(lambda each: {"properties": each}, st.dictionaries(_NAMES, inner, max_size=3)),
        _some("required", st.lists(_NAMES, unique=True, max_size=2)),
        _some("additionalProperties", st.one_of(st.booleans(), inner)),
        _some("maxProperties", st.integers(1, 3)),
        _some("minProperties", st.integers(0, 2)),
        _some("dependentRequired", st.just({"a": ["b"]})),
        _some("patternProperties", st.builds(lambda each: {"^[ab]$": each}, inner)),
        _some("propertyNames", st.just({"pattern": "^[a-k]+$"})),
    )
    lists = _merged(
        st.just({"type": "array"}),
        _some("items", inner),
        _some("prefixItems", st.lists(inner, min_size=1, max_size=2)),
        _some("maxItems", st.integers(0, 3)),
        _some("minItems", st.integers(0, 2)),
        _some("uniqueItems", st.booleans()),
        _some("contains", inner),
    )
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        objects,
        lists,
        *(st.builds(lambda each, k=k: {k: each}, several) for k in ("anyOf", "oneOf", "allOf")),
        st.builds(lambda one, other: {**one, "allOf": [other]}, inner, inner),
        st.builds(lambda other: {"$ref": "#/$defs/D", "allOf": [other]}, inner),
        st.builds(lambda each: {"not": each}, inner),
    )


SCHEMAS: st.SearchStrategy[Schema] = st.builds(
    lambda schema, definition: {**schema, "$defs": {"D": definition}},
    st.recursive(_LEAVES, _around, max_leaves=6),
    _LEAVES,
)
"""Schemas of a few parts, with a definition that they may refer to."""
