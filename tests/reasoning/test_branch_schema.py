"""Per-branch contracts: every branch is an object of its schema, or says why it is none."""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Literal

import pytest
import typing_extensions
from pydantic import BaseModel, ConfigDict, Field, field_validator

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.engine.constraints import Constraint, ConstraintCompiler
from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.branch_schema import BranchSchema, closing
from tests.support.scripted import (
    STUDENTS,
    TOKENIZERS,
    random_llm,
    scripted_llm,
    without_clocks,
)
from tests.support.tokenizers import byte_level


class Verdict(BaseModel):
    """What a branch says of one student."""

    gpa: float
    inside: bool


class Note(BaseModel):
    """Bounded in every part, so that any model completes it."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=6)
    kind: Literal["fact", "guess"]
    score: int = Field(ge=0, le=9)
    tags: list[Literal["red", "blue"]] = Field(max_length=2)


class Text(BaseModel):
    """One string."""

    text: str


class Dictionary(typing.TypedDict):
    """A TypedDict of the standard library."""

    gpa: float
    inside: bool


class Extended(typing_extensions.TypedDict):
    """One of typing_extensions."""

    gpa: float
    inside: bool


@dataclass
class Data:
    """A dataclass."""

    gpa: float
    inside: bool


AS_JSON = {
    **STUDENTS,
    "####Ann:": '{"gpa": 3.1, "inside": false}',
    "####Ben:": '{"gpa": 2.4, "inside": true}',
}
SCHEMA = {
    "type": "object",
    "properties": {"gpa": {"type": "number"}, "inside": {"type": "boolean"}},
    "required": ["gpa", "inside"],
}
STEPS = {"question": "Which?", "steps": ["Ann", "Ben", "Cleo"]}


class TestParsed:
    @pytest.mark.parametrize(
        ("schema", "expected"),
        [
            (Verdict, Verdict(gpa=2.4, inside=True)),
            (Data, Data(gpa=2.4, inside=True)),
            (Dictionary, {"gpa": 2.4, "inside": True}),
            (Extended, {"gpa": 2.4, "inside": True}),
            (SCHEMA, {"gpa": 2.4, "inside": True}),
        ],
    )
    def test_every_branch_is_an_object_of_the_schema(self, schema: Any, expected: Any) -> None:
        """Pydantic model, dataclass, both TypedDicts, JSON schema."""
        llm, _ = scripted_llm(AS_JSON, max_branch_tokens=64)
        result = llm.invoke("Who?", branch_schema=schema)
        assert [branch.finish_reason for branch in result.branches] == ["stop", "stop"]
        assert result.branches[1].parsed == expected
        assert type(result.branches[1].parsed) is type(expected)
        assert json.loads(result.branches[1].text) == {"gpa": 2.4, "inside": True}
        assert result.conclusion == "name: Ben"

    def test_without_a_schema_nothing_is_parsed(self) -> None:
        """The text is the text."""
        llm, _ = scripted_llm(AS_JSON, max_branch_tokens=64)
        assert [branch.parsed for branch in llm.invoke("Who?").branches] == [None, None]

    def test_it_can_be_set_for_all_calls(self) -> None:
        """As a field, and taken back for one call."""
        llm, _ = scripted_llm(AS_JSON, max_branch_tokens=64, branch_schema=Verdict)
        assert isinstance(llm.invoke("Who?").branches[0].parsed, Verdict)
        assert llm.invoke("Who?", branch_schema=None).branches[0].parsed is None
        assert llm.invoke("Who?", mode="sequential").branches == ()

    def test_a_result_is_plain_data_in_json(self) -> None:
        """There and back: the object's fields, from which it can be made again."""
        llm, _ = scripted_llm(AS_JSON, max_branch_tokens=64)
        result = llm.invoke("Who?", branch_schema=Verdict)
        again = ReasoningResult.model_validate_json(result.model_dump_json())
        assert again.branches[0].parsed == {"gpa": 3.1, "inside": False}
        assert Verdict.model_validate(again.branches[0].parsed) == result.branches[0].parsed
        assert ReasoningResult.model_validate_json(again.model_dump_json()) == again
        assert without_clocks(again) == without_clocks(result)

    def test_the_sum_of_a_stream_has_the_objects(self) -> None:
        """As `invoke` has them."""
        llm, _ = scripted_llm(AS_JSON, max_branch_tokens=64)
        whole = reduce(add, llm.stream("Who?", branch_schema=Verdict)).result()
        assert whole.branches[0].parsed == Verdict(gpa=3.1, inside=False)
        assert without_clocks(whole) == without_clocks(llm.invoke("Who?", branch_schema=Verdict))

    def test_delimiters_and_stop_texts_are_text_in_json(self) -> None:
        """`####` inside a string ends no branch, and nothing else does before the object ends."""
        llm, _ = scripted_llm({**AS_JSON, "####Ann:": '{"text": "a####b. c"}'})
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        given = {"question": "Who?", "steps": ["Ann"]}
        result = llm.invoke(given, branch_schema={**schema, "required": ["text"]}, stop=["."])
        assert result.branches[0].parsed == {"text": "a####b. c"}


class TestGuarantee:
    @pytest.mark.parametrize("tokenizer", TOKENIZERS)
    def test_random_weights_write_valid_objects(self, tokenizer: str) -> None:
        """Whatever a model prefers, at any temperature; control characters included."""
        llm = random_llm(TOKENIZERS[tokenizer](), max_branch_tokens=160)
        for seed in range(6):
            result = llm.invoke(STEPS, branch_schema=Note, temperature=1.5, seed=seed)
            for branch in result.branches:
                assert isinstance(branch.parsed, Note), branch
                assert json.loads(branch.text) == branch.parsed.model_dump()

    def test_a_branch_in_company_equals_the_branch_alone(self) -> None:
        """fp32: the grammar of one row touches no other, sampled or not."""
        llm = random_llm(max_branch_tokens=160, branch_schema=Note)
        steps: Any = [{"title": name, "seed": i} for i, name in enumerate(["Ann", "Ben", "Cleo"])]
        for temperature in (0.0, 1.0):
            settings = {"temperature": temperature, "conclude": False}
            together = llm.invoke({"question": "Which?", "steps": steps}, **settings)
            for step, branch in zip(steps, together.branches, strict=True):
                alone = llm.invoke({"question": "Which?", "steps": [step]}, **settings)
                assert alone.branches[0].text == branch.text
                assert alone.branches[0].parsed == branch.parsed

    def test_drafts_change_nothing(self) -> None:
        """The same objects, greedily and sampled, also where a budget closes them."""
        llm = random_llm()
        for budget in (24, 40, 160):
            for settings in ({}, {"temperature": 1.0, "seed": 4}):
                with_, without = (
                    llm.invoke(
                        STEPS, branch_schema=Note, max_branch_tokens=budget, drafts=on, **settings
                    )
                    for on in (True, False)
                )
                assert with_.text == without.text
                assert [b.parsed for b in with_.branches] == [b.parsed for b in without.branches]
                reasons = [b.finish_reason for b in with_.branches]
                assert reasons == [b.finish_reason for b in without.branches]

    @pytest.mark.parametrize("visibility", ["isolated", "titles"])
    def test_the_join_changes_no_branch(self, visibility: str) -> None:
        """`join="reuse"` keeps closed and cut branches where they lie; a conclusion follows."""
        llm = random_llm(branch_schema=Note, visibility=visibility)
        for budget in (5, 24, 160):
            anew, reuse = (
                llm.invoke(STEPS, max_branch_tokens=budget, join=join)
                for join in ("reprefill", "reuse")
            )
            assert [b.text for b in anew.branches] == [b.text for b in reuse.branches]
            assert [b.parsed for b in anew.branches] == [b.parsed for b in reuse.branches]
            assert reuse.error is None
            assert llm.engine.slots_in_use == 0

    @pytest.mark.parametrize("budget", [1, 2, 5, 9, 14, 22, 31, 47])
    def test_a_budget_ends_with_a_valid_object_or_an_error(self, budget: int) -> None:
        """Never an object that the schema refuses, and never one token too many."""

        class Long(BaseModel):
            words: list[str]
            last: str

        llm = random_llm(max_branch_tokens=budget, branch_schema=Long, temperature=1.0)
        for seed in range(4):
            for branch in llm.invoke(STEPS, seed=seed, conclude=False).branches:
                assert branch.usage.output_tokens <= budget
                if branch.error is None:
                    assert branch.parsed == Long.model_validate_json(branch.text)
                else:
                    assert branch.parsed is None
                    assert branch.finish_reason == "length"
                    assert "raise max_branch_tokens" in branch.error

    def test_an_open_string_is_closed_within_the_budget(self) -> None:
        """What is written is kept; that it was cut is told."""
        llm, _ = scripted_llm({"####Ann:": '{"text": "…'})
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        given = {"question": "Who?", "steps": ["Ann"]}
        (branch,) = llm.invoke(given, branch_schema={**schema, "required": ["text"]}).branches
        assert (branch.finish_reason, branch.error) == ("length", None)
        assert branch.parsed["text"].isalpha()
        assert branch.usage.output_tokens <= 24

    def test_a_missing_value_is_not_made_up(self) -> None:
        """The budget ends in the first of two fields: an error, and no object."""
        llm, _ = scripted_llm({"####Ann:": '{"text": "…'})

        class Two(BaseModel):
            text: str
            count: int

        given = {"question": "Who?", "steps": ["Ann"]}
        (branch,) = llm.invoke(given, branch_schema=Two).branches
        assert (branch.finish_reason, branch.parsed) == ("length", None)
        assert "budget ended before its Two was complete" in str(branch.error)

    def test_what_no_grammar_sees_is_an_error_of_the_branch(self) -> None:
        """A model's own validator; the other branch and the conclusion are whole."""

        class Strict(Verdict):
            @field_validator("gpa")
            @classmethod
            def _high(cls, gpa: float) -> float:
                if gpa < 3:
                    raise ValueError("too low")
                return gpa

        llm, _ = scripted_llm(AS_JSON, max_branch_tokens=64)
        result = llm.invoke("Who?", branch_schema=Strict)
        good, bad = result.branches
        assert good.parsed == Strict(gpa=3.1, inside=False)
        assert (bad.finish_reason, bad.parsed) == ("error", None)
        assert "not a valid Strict: gpa: Value error, too low" in str(bad.error)
        assert result.conclusion == "name: Ben"


class TestReading:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"text": "\\ud800x"}', "\ufffdx"),
            ('{"text": "\\ud83d\\ude00"}', "\U0001f600"),
            ('{"text": "a\tb"}', "a\tb"),
        ],
    )
    def test_strings_that_grammars_let_through_are_readable(self, text: str, expected: str) -> None:
        """Half surrogates become U+FFFD, control characters stay; JSON can be made of both."""
        assert BranchSchema({"type": "object"}).parse(text) == {"text": expected}
        as_data = BranchSchema(Text).parse(text)
        assert Text.model_validate_json(as_data.model_dump_json()) == Text(text=expected)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "cannot be read as JSON"),
            ('{"gpa": 1e999, "inside": true}', "1e999 is too large"),
            ('{"gpa": ' + "9" * 5000 + ', "inside": true}', "cannot be read as JSON"),
            ("[" * 100_000, "nested too deeply"),
            ('{"gpa": 1}', "'inside' is a required property"),
            ('{"gpa": "x", "inside": true}', r"\$\.gpa: 'x' is not of type 'number'"),
        ],
    )
    def test_what_is_no_object_says_why(self, text: str, said: str) -> None:
        """In one line, as a `ValueError` and as nothing else."""
        with pytest.raises(ValueError, match=said) as caught:
            BranchSchema(SCHEMA).parse(text)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "tail"),
        [
            ('{"a": "xy', '"}'),
            ('{"a": "x", "b": ["p", "q', '"]}'),
            ('{"a": "x", "b": [', "]}"),
            ('{"a": "x", "b": []', "}"),
            ('{"a": "x\\"', '"}'),
            ('{"a": "x\\', None),
            ('{"a": "x", "n": 12', None),
            ('{"a": "x", "n": ', None),
            ('{"a"', None),
        ],
    )
    def test_only_quotes_and_brackets_close_a_text(self, text: str, tail: str | None) -> None:
        """Inside an escape, behind a digit and where a value is missing, nothing does."""
        schema = {
            "type": "object",
            "properties": {
                "a": {"type": "string"},
                "b": {"type": "array", "items": {"type": "string"}},
                "n": {"type": "integer"},
            },
            "required": ["a"],
        }
        compiler = ConstraintCompiler(byte_level(), vocabulary=512, stop_token_ids=[0])
        state = compiler.state(Constraint("json_schema", json.dumps(schema)))
        assert state.accept_text(text)
        assert closing(text, state) == tail


class TestRefusals:
    @pytest.mark.parametrize(
        ("schema", "said"),
        [
            (int, "branch_schema=int cannot be used .*allowed is a pydantic model"),
            (object, "branch_schema=object cannot be used"),
            ("Verdict", r"branch_schema.*='Verdict'"),
            ({"type": "no such type"}, "branch_schema=.*'no such type'"),
            ({"properties": {"a": {1, 2}}}, "branch_schema="),
        ],
    )
    def test_what_is_no_schema_is_refused_before_any_work(self, schema: Any, said: str) -> None:
        """In words, with what is allowed."""
        llm, script = scripted_llm(STUDENTS)
        with pytest.raises(InvalidRequestError, match=said):
            llm.invoke("Who?", branch_schema=schema)
        assert script.passes == []

    def test_a_stop_text_of_a_step_and_a_schema_contradict(self) -> None:
        """It would cut the JSON."""
        llm, script = scripted_llm(STUDENTS)
        given = {"question": "Who?", "steps": [{"title": "Ann", "stop": ["."]}]}
        with pytest.raises(InvalidRequestError, match=r"'Ann' has stop=.*leave stop out"):
            llm.invoke(given, branch_schema=Verdict)
        assert script.passes == []


class TestTelling:
    def test_the_default_prompts_tell_the_schema(self) -> None:
        """Field descriptions reach the model; a folder's own wording may leave them out."""

        class Described(BaseModel):
            gpa: float = Field(description="as the resume has it")

        llm, script = scripted_llm(AS_JSON, prompts=None, positions=4096)
        llm.invoke({"question": "Who?", "steps": ["Ann"]}, branch_schema=Described)
        prompt = "".join(feed.text for feeds in script.passes[:2] for feed in feeds)
        assert "as the resume has it" in prompt
        bare, script = scripted_llm(AS_JSON)
        bare.invoke({"question": "Who?", "steps": ["Ann"]}, branch_schema=Described)
        assert script.passes[0][0].text == "Question: Who?\n\nAnswer:\n"

    def test_the_field_stays_out_of_the_json_schema(self) -> None:
        """A class cannot be described there."""
        assert "branch_schema" not in ParallelReasoningLLM.model_json_schema()["properties"]
