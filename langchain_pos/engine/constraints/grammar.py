"""The grammar of a JSON schema, on one line: what it allows can be read and written again.

xgrammar writes the structure; strings with a pattern are ours, put in where a mark stands. Of the
rules that xgrammar 0.2 writes, three are narrowed. A string may hold no half of a surrogate pair,
neither as an escape nor as bytes: it is not a character. An escape is one letter: the characters
themselves need no other. Numbers are bounded where Python's end: an integer has 200 digits, an
exponent two. Lengths are not in the grammar at all: `lengths.py` counts them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from langchain_pos.engine.constraints.patterns import pattern_rule
from langchain_pos.engine.constraints.schemas import ReadSchema
from langchain_pos.engine.constraints.values import Node

_OPEN, _CLOSE = "\ue000", "\ue001"
_MARKED_STRING = re.compile(r'"\\"\\ue000(\d+)\\ue001\\""')
_MARKED_KEY = re.compile(r'"\\ue000"((?: "\d+")+) "\\ue001"')
_EXPONENT = re.compile(r"(\[eE\] \w+ \w+)\{1, -1\}")
_ESCAPE_RULE = re.compile(r"^basic_escape ::= .*$", re.MULTILINE)


def json_grammar(schema: ReadSchema) -> str:
    """The grammar of a schema, in xgrammar's dialect.

    Raises:
        RuntimeError, ValueError: xgrammar cannot read it.
    """
    import xgrammar

    patterns: list[tuple[str, bool]] = []

    def mark(pattern: str, *, counted: bool = False) -> str:
        if (pattern, counted) not in patterns:
            patterns.append((pattern, counted))
        return f"{_OPEN}{patterns.index((pattern, counted))}{_CLOSE}"

    def walk(node: Any) -> Any:
        """A node for xgrammar: without lengths, and with marks for patterns."""
        if isinstance(node, bool) or "$ref" in node or "enum" in node:
            return node
        if "anyOf" in node:
            return {"anyOf": [walk(each) for each in node["anyOf"]]}
        if node.get("type") == "string":
            if "pattern" not in node:
                return {"type": "string"}
            return {"const": mark(node["pattern"], counted=True)}
        found: Node = dict(node)
        for key in ("items", "additionalProperties"):
            if key in node:
                # Where a schema says more than its type, xgrammar closes what is not named open.
                found[key] = walk(node[key]) or node[key] == {}
        if "prefixItems" in node:
            found["prefixItems"] = [walk(each) for each in node["prefixItems"]]
        if "properties" in node:
            found["properties"] = {key: walk(each) for key, each in node["properties"].items()}
        if "patternProperties" in node:
            found["patternProperties"] = {
                mark(key): walk(each) for key, each in node["patternProperties"].items()
            }
        if "propertyNames" in node:
            found["propertyNames"] = {"pattern": mark(node["propertyNames"]["pattern"])}
        return found

    whole = walk(schema.root) | {"$defs": {name: walk(each) for name, each in schema.defs.items()}}
    grammar = str(xgrammar.Grammar.from_json_schema(json.dumps(whole), any_whitespace=False))
    grammar = _narrowed(grammar)
    grammar = _MARKED_STRING.sub(r'"\\"" pattern_\1 "\\""', grammar)
    grammar = _MARKED_KEY.sub(
        lambda found: "pattern_" + "".join(re.findall(r"\d", found[1])), grammar
    )
    rules = [
        f"pattern_{place} ::= {pattern_rule(pattern, counted=counted).rule}"
        for place, (pattern, counted) in enumerate(patterns)
    ]
    return "\n".join([grammar, *rules])


def _narrowed(grammar: str) -> str:
    grammar = grammar.replace(r"[^\0-\x1f\"\\\r\n", r"[^\0-\x1f\"\\\r\n\ud800-\udfff")
    grammar = grammar.replace("[1-9] [0-9]*", "[1-9] [0-9]{0,199}")
    grammar = _EXPONENT.sub(r"\1{1, 2}", grammar)
    return _ESCAPE_RULE.sub(lambda _: r"""basic_escape ::= (([\"\\/bfnrt]))""", grammar)
