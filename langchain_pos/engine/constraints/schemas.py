"""JSON Schema rewritten to the part of it that a grammar can say.

What comes out has `type` (one), `enum`, `anyOf`, references to its own `$defs`, and the bounds of
each type; nothing else. Every text that fits it has the types, fields, patterns and bounds of the
schema that went in. Two kinds of loss are allowed, and they differ:

- The language may become smaller: fields that are not declared are left out where some are, an
  alternative that cannot be held to is dropped where a better one is left.
- A keyword that no grammar says (`uniqueItems`, `contains`, `not`, `if`, a look-ahead, …) is left
  to whoever reads the text: `ReadSchema.checked` names it. All of a schema is checked there.

What can be neither said nor checked, such as a reference to another document or a schema that
nothing fits, is refused before any work. docs/guides/structured.md has the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from langchain_pos.engine.constraints.merging import Impossible, merge
from langchain_pos.engine.constraints.patterns import (
    UnsupportedPatternError,
    pattern_rule,
)
from langchain_pos.engine.constraints.scalars import read_number, read_string
from langchain_pos.engine.constraints.values import (
    KEYWORDS,
    Node,
    anchors_of,
    enumeration,
    types_of,
)

_CHECKED = {
    *("not", "if", "dependentSchemas", "dependencies", "uniqueItems", "contains"),
    *("unevaluatedProperties", "unevaluatedItems"),
}
"""Keywords that only the reader of the text can check. (`then`, `else`, `minContains` and
`maxContains` mean something beside another keyword only.)"""


@dataclass(frozen=True)
class ReadSchema:
    """A schema as the grammar takes it.

    Attributes:
        root: of the part described above; its `$defs` are beside it.
        defs: what its references name.
        checked: keywords that the grammar does not hold a text to.
    """

    root: Node
    defs: Mapping[str, Node]
    checked: frozenset[str]


def read_schema(schema: Any) -> ReadSchema:
    """Rewrite a schema.

    Raises:
        ValueError: it cannot be held to; the message names the keyword.
    """
    reader = _Reader(schema)
    try:
        root = reader.node(schema)
    except Impossible as error:
        raise ValueError(f"nothing fits this schema: {error}") from error
    return ReadSchema(root, reader.defs, frozenset(reader.checked))


class _Reader:
    """Reads one document."""

    def __init__(self, document: Any) -> None:
        self.defs: dict[str, Node] = {}
        self.checked: set[str] = set()
        self._document = document
        self._names: dict[str, str] = {}
        self._impossible: dict[str, Impossible] = {}
        self._anchors = {f"#{name}": found for name, found in anchors_of(document)}

    # ------------------------------------------------------------------ structure

    def node(self, schema: Any) -> Node:
        """A schema, rewritten.

        Raises:
            Impossible: nothing fits it.
        """
        if schema is True or schema == {}:
            return {}
        if schema is False:
            raise Impossible("it is `false`")
        if not isinstance(schema, dict):
            raise ValueError(
                f"{str(schema)[:60]!r} is not a schema; it must be an object or a bool"
            )
        if "$ref" in schema or "$dynamicRef" in schema or schema.get("allOf"):
            return self._named(schema)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                rest = {key: value for key, value in schema.items() if key != keyword}
                if keyword == "oneOf" and len(schema[keyword]) > 1:
                    self.checked.add(keyword)  # that no second one fits
                return self._choice(rest, schema[keyword])
        self.checked |= _CHECKED & set(schema)
        if "enum" in schema or "const" in schema:
            listed = enumeration(schema)
            if "format" in schema:
                self.checked.add("format")
            if any(isinstance(value, list | dict) for value in listed["enum"]):
                beside = {*KEYWORDS["array"], *KEYWORDS["object"]} & set(schema)
                self.checked |= {"enum"} if beside else set()
            return listed
        types = types_of(schema)
        if types is None:
            return {}
        found = []
        for name in types:
            try:
                found.append(self._typed(name, schema))
            except Impossible as error:
                reason = error
        if not found:
            raise reason
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _named(self, schema: Node) -> Node:
        """A reference, or schemas that hold together, as a definition: both may recur."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._names:
            name = f"r{len(self._names)}"
            self._names[key] = name
            try:
                self.defs[name] = self.node(self._flat(schema, ()))
            except Impossible as error:
                self._impossible[name] = error
                self.defs[name] = {"type": "null"}  # what refers to it from inside falls with it
        name = seen = self._names[key]
        if name in self._impossible:
            raise self._impossible[name]
        while (target := self.defs.get(seen, {}).get("$ref")) is not None:
            seen = target.removeprefix("#/$defs/")
            if seen == name:
                raise ValueError(f"the reference {schema.get('$ref')!r} leads to itself")
        return {"$ref": f"#/$defs/{name}"}

    def _flat(self, schema: Any, path: tuple[str, ...]) -> Any:
        """A schema with its references and `allOf` merged into it."""
        if not isinstance(schema, dict):
            return schema
        parts: list[Any] = list(schema.get("allOf", ()))
        own = {k: v for k, v in schema.items() if k not in ("allOf", "$ref", "$dynamicRef")}
        found: Any = own
        for keyword in ("$ref", "$dynamicRef"):
            if keyword in schema:
                reference = str(schema[keyword])
                if reference in path:
                    raise ValueError(f"the reference {reference!r} leads to itself")
                target = self._flat(self._resolve(reference), (*path, reference))
                found = merge(target, found)
        for part in parts:
            found = merge(found, self._flat(part, path))
        return found

    def _resolve(self, reference: str) -> Any:
        if reference in self._anchors:
            return self._anchors[reference]
        found = self._document
        if reference != "#" and not reference.startswith("#/"):
            raise ValueError(
                f"the reference {reference!r} does not lead into the schema itself; put what it "
                "names under $defs"
            )
        for part in reference.split("/")[1:]:
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(part) if isinstance(found, list) else part]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ValueError(f"the reference {reference!r} leads nowhere") from None
        return found

    def _choice(self, rest: Node, options: list[Any]) -> Node:
        found: list[Node] = []
        unheld: list[Node] = []
        reason = Impossible("it has no alternatives")
        for option in options:
            before, self.checked = self.checked, set()
            try:
                node = self.node(merge(rest, self._flat(option, ())))
            except Impossible as error:
                reason = error
                continue
            finally:
                own, self.checked = self.checked, before | self.checked
            (unheld if "pattern" in own and node.get("type") == "string" else found).append(node)
        # A text with a pattern that cannot be held to, beside a number: pydantic's Decimal.
        if not any(node.get("type") in ("number", "integer") for node in found):
            found += unheld
        if not found:
            raise reason
        if _may_disagree(found):
            # Of the bounds of alternatives, the widest is held to (lengths.py).
            self.checked |= self._lengths_in(found)
        return found[0] if len(found) == 1 else {"anyOf": found}

    def _lengths_in(self, nodes: list[Node]) -> set[str]:
        """The bounds of lengths in rewritten schemas, and in what they refer to."""
        waiting: list[Any] = list(nodes)
        seen: set[str] = set()
        found: set[str] = set()
        while waiting:
            part = waiting.pop()
            if isinstance(part, list):
                waiting += part
            elif isinstance(part, dict):
                found |= {"minLength", "maxLength"} & set(part)
                waiting += part.values()
                name = str(part.get("$ref", "")).removeprefix("#/$defs/")
                if name not in seen:
                    seen.add(name)
                    waiting.append(self.defs.get(name))
        return found

    # ---------------------------------------------------------------------- types

    def _typed(self, name: str, schema: Node) -> Node:
        own = {key: schema[key] for key in KEYWORDS[name] if key in schema}
        match name:
            case "string":
                return read_string(own, self.checked)
            case "number" | "integer":
                return read_number(name, own, self.checked)
            case "array":
                return self._array(own)
            case "object":
                return self._object(own)
        return {"type": name}

    def _array(self, own: Node) -> Node:
        items, first = own.get("items", True), list(own.get("prefixItems", ()))
        if isinstance(items, list):  # as drafts before 2020-12 have it
            first, items = items, own.get("additionalItems", True)
        least, most = own.get("minItems", 0), own.get("maxItems")
        node: Node = {"type": "array"}
        prefix = []
        try:
            for each in first[:most]:
                prefix += [self.node(each)]
            node["items"] = self.node(items)
        except Impossible:
            room = len(prefix)
            node["items"] = {}
            most = room if most is None else min(most, room)
        if most is not None and most < least:
            raise Impossible(f"minItems={least} is more than there may be, {most}")
        if prefix[:most]:
            node["prefixItems"] = prefix[:most]
        if most is not None and most <= len(prefix):
            node["items"] = False
        return node | {"minItems": least} | ({} if most is None else {"maxItems": most})

    def _object(self, own: Node) -> Node:
        given, others = own.get("properties", {}), own.get("additionalProperties")
        patterns = own.get("patternProperties", {})
        needed = list(dict.fromkeys(own.get("required", ())))
        for key, wanted in own.get("dependentRequired", {}).items():
            if key not in given and (others is not None or patterns or not given):
                self.checked.add("dependentRequired")
            if key in needed or key in given:
                needed += [name for name in wanted if name not in needed]
        asked = {key: given[key] for key in given} | {
            key: True if others is None else others for key in needed if key not in given
        }
        properties: dict[str, Node] = {}
        for key, value in asked.items():
            matching = [patterns[each] for each in patterns if re.search(each, key)]
            declared = given.get(key, True if matching else value)
            try:
                both = {"allOf": [declared, *matching]} if matching else declared
                properties[key] = self.node(both)
            except Impossible as error:
                if matching or others not in (None, False):
                    self.checked.add("properties")  # it might be written as a further field
                if key in needed:
                    raise Impossible(
                        f"the field {key!r} must be there, and cannot: {error}"
                    ) from None
        node: Node = {"type": "object", "properties": properties, "required": needed}
        node |= {key: own[key] for key in ("minProperties", "maxProperties") if key in own}
        self._further_fields(node, own, patterns, others)
        least, most = node.get("minProperties", 0), node.get("maxProperties")
        if most is not None and most < max(least, len(needed)):
            raise Impossible(f"maxProperties={most} is too few")
        closed = node["additionalProperties"] is False and "patternProperties" not in node
        if closed and least > len(properties):
            raise Impossible(f"minProperties={least} is more than there are")
        if not closed and least > max(len(needed), 1):
            self.checked.add("minProperties")  # a further field may be written twice
        return node

    def _further_fields(self, node: Node, own: Node, patterns: Node, others: Any) -> None:
        """Fields beyond those that are declared, if there may be some."""
        node["additionalProperties"] = False
        named = own.get("propertyNames")
        if node["properties"]:
            if patterns or others not in (None, False):
                self._other_fields(node, patterns, others)
        elif "properties" not in own or others not in (None, False) or patterns:
            self._other_fields(node, patterns, others)
        if named is not None and not self._name_is_held(node, named):
            self.checked.add("propertyNames")

    def _other_fields(self, node: Node, patterns: Node, others: Any) -> None:
        held = {}
        for pattern, value in patterns.items():
            try:
                pattern_rule(pattern)
                held[pattern] = self.node(value)
            except (Impossible, UnsupportedPatternError, re.error):
                self.checked.add("patternProperties")
        if held and not node["properties"]:
            # Whether a further field has one of these names is not the grammar's to say.
            node["patternProperties"] = held
            return
        if patterns:
            self.checked.add("patternProperties")
        if others is False:
            return
        try:
            node["additionalProperties"] = self.node(True if others is None else others)
        except Impossible:
            return

    def _name_is_held(self, node: Node, named: Any) -> bool:
        """Whether the grammar can hold the names of further fields to a pattern."""
        if (
            node["properties"]
            or node["additionalProperties"] is False
            or "patternProperties" in node
            or not isinstance(named, dict)
            or set(named) - {"type"} != {"pattern"}
        ):
            return False
        try:
            pattern_rule(named["pattern"])
        except (UnsupportedPatternError, re.error):
            return False
        node["propertyNames"] = {"pattern": named["pattern"]}
        return True


def _may_disagree(alternatives: list[Node]) -> bool:
    """Whether strings of several alternatives may stand in one place."""
    scalars = ("null", "boolean", "integer", "number")
    types = [node.get("type") for node in alternatives if node.get("type") not in scalars]
    return len(types) > 1 and (None in types or len(set(types)) < len(types))
