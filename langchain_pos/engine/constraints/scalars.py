"""Strings and numbers of a JSON schema, rewritten to what the grammar and the counter hold."""

from __future__ import annotations

import math
import re

from langchain_pos.engine.constraints.merging import Impossible
from langchain_pos.engine.constraints.patterns import (
    FORMATS,
    UnsupportedPatternError,
    pattern_rule,
)
from langchain_pos.engine.constraints.values import Node, multiples_between


def read_string(own: Node, checked: set[str]) -> Node:
    """A string; what the grammar leaves out is added to `checked`."""
    least, most = own.get("minLength", 0), own.get("maxLength")
    if most is not None and most < least:
        raise Impossible(f"minLength={least} is more than maxLength={most}")
    pattern = own.get("pattern")
    if pattern is None and own.get("format") in FORMATS:
        pattern = FORMATS[own["format"]]
    elif own.get("format") is not None:
        checked.add("format")
    node: Node = {"type": "string"}
    if pattern is not None:
        try:
            found = pattern_rule(pattern, counted=True)
            node["pattern"] = pattern
            if found.most is not None and found.most < least:
                raise Impossible(f"minLength={least} is more than its pattern allows")
            if most is not None and found.least > most:
                raise Impossible(f"maxLength={most} is less than its pattern needs")
            if found.counted:
                least = max(least, found.least)
                most = min((n for n in (most, found.most) if n is not None), default=None)
            # A text that keeps to the pattern may come to where no length can be kept.
            elif found.least < least:
                checked.add("minLength")
            elif most is not None and (found.most is None or found.most > most):
                checked.add("maxLength")
        except (UnsupportedPatternError, re.error):
            checked.add("pattern")
    if least:
        node["minLength"] = least
    if most is not None:
        node["maxLength"] = most
    return node


def read_number(name: str, own: Node, checked: set[str]) -> Node:
    """A number; see `read_string`."""
    least, most = own.get("minimum"), own.get("maximum")
    above, below = own.get("exclusiveMinimum"), own.get("exclusiveMaximum")
    if above is True:  # as draft 4 has it
        least, above = None, least
    if below is True:
        most, below = None, most
    above = None if isinstance(above, bool) else above
    below = None if isinstance(below, bool) else below
    step = own.get("multipleOf")
    if name == "integer" or (isinstance(step, int) and step):
        name = "integer"
        lows = [math.ceil(least)] if least is not None else []
        lows += [math.floor(above) + 1] if above is not None else []
        highs = [math.floor(most)] if most is not None else []
        highs += [math.ceil(below) - 1] if below is not None else []
        least, above = max(lows, default=None), None
        most, below = min(highs, default=None), None
        if step is not None and step != 1:
            multiples = multiples_between(least, most, step)
            if multiples is not None:
                return {"enum": multiples}
            checked.add("multipleOf")
    elif step is not None:
        checked.add("multipleOf")
    if least is not None and most is not None and least > most:
        raise Impossible(f"minimum={least} is more than maximum={most}")
    bounds = {
        "minimum": least,
        "maximum": most,
        "exclusiveMinimum": above,
        "exclusiveMaximum": below,
    }
    return {"type": name} | {key: n for key, n in bounds.items() if n is not None}
