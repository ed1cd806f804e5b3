"""Lengths of strings: counted outside the grammar, and kept all the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import xgrammar

from langchain_pos.engine.constraints import Constraint, ConstraintState, apply_constraints
from langchain_pos.engine.constraints.state import fill_masks
from tests.support.random_texts import compiler, random_text
from tests.support.tokenizers import byte_level

SAYING = 'He said "yes".\nThen C:\tmp left.\\ é蓝😀'


def state_of(schema: Any) -> ConstraintState:
    """A fresh state."""
    return compiler().state(Constraint("json_schema", json.dumps(schema)))


def write(state: ConstraintState, text: str) -> bool:
    """Write a text token by token, each as the mask allows it."""
    tokenizer = byte_level()
    for token_id in tokenizer(text, add_special_tokens=False)["input_ids"]:
        bitmask = xgrammar.allocate_token_bitmask(1, len(tokenizer))
        fill_masks([state], bitmask, [0])
        if not (int(bitmask[0][token_id // 32]) >> token_id % 32) & 1:
            return False
        assert state.accept_token(token_id)
    return True


@pytest.mark.parametrize("spare", [0, 1, 150])
def test_any_text_within_the_bound_can_be_written(spare: int) -> None:
    """Quotes, line breaks, backslashes: a bound forbids a length, not a character."""
    bounded = {"type": "string", "minLength": 3, "maxLength": len(SAYING) + spare}
    schema = {"type": "object", "properties": {"a": bounded}, "required": ["a"]}
    text = json.dumps({"a": SAYING}, ensure_ascii=False)
    assert write(state_of(schema), text)


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"maxLength": len(SAYING) - 1}, SAYING),
        ({"minLength": len(SAYING) + 1}, SAYING),
        ({"minLength": 1}, ""),
        ({"maxLength": 0}, "a"),
    ],
)
def test_a_bound_is_kept(bounds: dict[str, int], text: str) -> None:
    """By the token that would lead beyond it, or close the string too early."""
    schema = {"type": "object", "properties": {"a": {"type": "string", **bounds}}}
    assert not write(state_of(schema), json.dumps({"a": text}, ensure_ascii=False))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 2, "maxLength": 5},
        {
            "type": "array",
            "prefixItems": [
                {"type": "string", "maxLength": 1},
                {"type": "string", "minLength": 4, "maxLength": 4},
            ],
            "items": {"type": "string", "maxLength": 2},
            "minItems": 3,
            "maxItems": 4,
        },
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/S"}, "b": {"type": "string", "minLength": 3}},
            "required": ["a", "b"],
            "additionalProperties": {"$ref": "#/$defs/S"},
            "$defs": {"S": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 2}]}},
        },
        {"type": "string", "pattern": "^[a-c]{40,45}$"},
        {"type": "string", "pattern": "^[a-c]+$", "maxLength": 3},
    ],
    ids=lambda schema: json.dumps(schema)[:30],
)
def test_random_texts_keep_their_bounds(schema: Any) -> None:
    """At every place of a value, also where a token closes one string and opens the next."""
    from jsonschema import validate

    found = [random_text(Constraint("json_schema", json.dumps(schema)), s) for s in range(25)]
    ended = [text for text in found if text is not None]
    assert len(ended) > 15
    for text in ended:
        validate(json.loads(text), schema)


def test_alternatives_are_kept_to_the_widest_bound() -> None:
    """Which of them it is going to be, nobody knows yet; the reader checks the rest."""
    short, long = {"type": "string", "maxLength": 2}, {"type": "string", "maxLength": 4}
    assert write(state_of({"anyOf": [short, long]}), '"abcd"')
    assert not write(state_of({"anyOf": [short, long]}), '"abcde"')


def test_a_fork_counts_by_itself() -> None:
    """Looking ahead leaves the sequence where it is."""
    state = state_of({"type": "string", "maxLength": 4})
    assert state.accept_text('"ab')
    ahead = state.fork()
    assert ahead.accept_text('cd"')
    assert not state.accept_text('cde"')
    assert state.accept_text('c"')


def test_where_no_length_can_be_kept_the_pattern_goes_on() -> None:
    """The sequence does not fail in its middle: its end does not fit, which its reader finds."""
    state = state_of({"type": "string", "pattern": "^(ab)+$", "maxLength": 3})
    assert write(state, '"abab"')


def test_bounds_of_a_call_hold_in_its_arguments() -> None:
    """And not in the text around it, nor in the name of the tool."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 2}},
        "required": ["a"],
    }
    tag = {
        "type": "tag",
        "begin": '<call>{"name": "long name", "arguments": ',
        "content": {"type": "json_schema", "json_schema": schema},
        "end": "}</call>",
    }
    free = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [tag]}
    text = json.dumps({"type": "structural_tag", "format": free})
    state = compiler().state(Constraint("structural_tag", text))
    before = '"quite a long text" <call>{"name": "long name", "arguments": {"a": "'
    assert write(state, before)
    assert not write(state.fork(), 'abc"')
    assert write(state, 'ab"}}</call> "and more text"')


def test_rows_are_filled_together() -> None:
    """Each by its own state, free rows untouched."""
    string, number = state_of({"type": "string", "maxLength": 1}), state_of({"type": "integer"})
    string.accept_text('"a')
    logits = torch.zeros(4, len(byte_level()))
    apply_constraints(logits, [string, None, number, string])
    allowed = [set((row == 0).nonzero().flatten().tolist()) for row in logits]
    assert allowed[0] == allowed[3]
    assert [byte_level().decode([i]) for i in allowed[0]] == ['"']
    assert len(allowed[1]) == len(byte_level())
    assert not allowed[2] & allowed[0]


def test_a_long_bound_costs_no_states() -> None:
    """The grammar is the one without a bound, whatever the bound is."""
    from langchain_pos.engine.constraints.grammar import json_grammar
    from langchain_pos.engine.constraints.schemas import read_schema

    def grammar(**bounds: int) -> str:
        string = {"type": "string", **bounds}
        return json_grammar(read_schema({"type": "array", "items": string}))

    assert grammar() == grammar(maxLength=200) == grammar(minLength=5, maxLength=100_000)
