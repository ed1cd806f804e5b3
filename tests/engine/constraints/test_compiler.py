"""Grammars: what is written always belongs to them, and forced text costs no pass."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from langchain_pos.engine import Constraint, Engine, SamplingParams
from langchain_pos.engine.decoding.sequence import decode, feed
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.engine.tokenization.text import encode_continuation
from langchain_pos.errors import InvalidRequestError, NonFiniteLogitsError
from tests.support.tiny import ids, said, submit, tiny_engine
from tests.support.tokenizers import byte_level, metaspace

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-zé]{1,5}$"},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "ok": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["red", "blau", "蓝"]}, "maxItems": 2},
    },
    "required": ["name", "age", "ok", "tags"],
    "additionalProperties": False,
}
PROMPT = ids(12)


@pytest.fixture(scope="module", params=[byte_level, metaspace], ids=["byte_level", "metaspace"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine that ends at EOS, around either tokenizer."""
    return tiny_engine(tokenizer=request.param(), eos=True)


def write(engine: Engine, kind: Any, text: str, seed: int, budget: int = 120) -> Any:
    """One warm completion in the constraint's language."""
    sampling = SamplingParams(temperature=2.0, seed=seed)
    constraint = Constraint(kind, text)
    return engine.generate(
        ids(12, seed), max_new_tokens=budget, sampling=sampling, constraint=constraint
    )


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", r"[0-9]{3}-[a-f]{2}", r"[0-9]{3}-[a-f]{2}"),
        ("regex", r"(yes|no|maybe)", r"yes|no|maybe"),
        ("regex", r"[a-c]{2,8}", r"[a-c]{2,8}"),
        ("ebnf", 'root ::= "####" [A-C] ":......\\n####%%%%"', r"####[A-C]:\.{6}\n####%%%%"),
        ("ebnf", 'root ::= ("中文" | "中国" | "人工智能") "。"', r"(中文|中国|人工智能)。"),
        ("ebnf", "root ::= [一-丐]{3}", r"[一-丐]{3}"),
        ("ebnf", 'root ::= item{2,4}\nitem ::= "-" [xyz] "\\n"', r"(-[xyz]\n){2,4}"),
    ],
)
def test_completions_match(engine: Engine, kind: str, text: str, pattern: str) -> None:
    """Whatever a random model prefers, its text is in the language, and its tokens say the same."""
    texts = set()
    for seed in range(12):
        done = write(engine, kind, text, seed)
        assert done.finish_reason == "stop"
        assert re.fullmatch(pattern, done.text), done.text
        behind = engine.tokenizer.decode([5, *done.token_ids], skip_special_tokens=True)
        assert behind.endswith(done.text)
        texts.add(done.text)
    assert len(texts) > 1


def test_json_completions_fit_the_schema(engine: Engine) -> None:
    """JSON can be read, and has the schema's fields and bounds."""
    for seed in range(6):
        done = write(engine, "json_schema", json.dumps(SCHEMA), seed, budget=400)
        assert done.finish_reason == "stop"
        value = json.loads(done.text)
        assert set(value) == {"name", "age", "ok", "tags"}
        assert len(value["name"]) <= 5
        assert 1 <= value["age"] <= 99
        assert isinstance(value["ok"], bool)
        assert set(value["tags"]) <= {"red", "blau", "蓝"}
        assert len(value["tags"]) <= 2


def test_text_that_may_go_on_is_ended_by_the_model(engine: Engine) -> None:
    """Where the grammar allows an end and more, both happen."""
    lengths = set()
    for seed in range(20):
        done = write(engine, "regex", "[0-9]{1,30}", seed)
        assert re.fullmatch("[0-9]{1,30}", done.text)
        assert done.finish_reason == "stop"
        lengths.add(len(done.text))
    assert len(lengths) > 3


def test_forced_text_costs_no_pass(engine: Engine) -> None:
    """Between two choices lies a long forced text; there are as many passes as choices."""
    forced = " goes without saying, for it is forced:......\n####"
    grammar = f"root ::= [QWX] {json.dumps(forced)} [QWX]"
    before = engine.forward.count
    done = write(engine, "ebnf", grammar, seed=1)
    assert re.fullmatch(f"[QWX]{re.escape(forced)}[QWX]", done.text)
    assert done.forward_passes == engine.forward.count - before == 2
    assert done.usage.output_tokens == len(done.token_ids) > 20


@pytest.mark.parametrize("text", ["Hello world", "hello again", "####Ann:......\n####", "人工智能"])
def test_forced_text_is_encoded_as_the_model_would_write_it(engine: Engine, text: str) -> None:
    """A first token that cuts a word short is joined with what follows, and encoded anew."""
    expected = encode_continuation(engine.tokenizer, text)
    for seed in range(5):
        done = write(engine, "ebnf", f"root ::= {json.dumps(text, ensure_ascii=False)}", seed)
        assert (done.text, done.finish_reason) == (text, "stop")
        if text.isascii():  # a character in bytes is written byte by byte
            assert list(done.token_ids) == expected
            assert done.forward_passes == 1


@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_forced_text_keeps_the_budget(engine: Engine, budget: int) -> None:
    """A budget that ends inside forced text cuts it, in tokens as in text."""
    whole = "A" + " stitch in time saves nine"
    done = write(engine, "ebnf", f'root ::= "{whole}"', seed=0, budget=budget)
    assert done.finish_reason == "length"
    assert len(done.token_ids) == budget
    assert whole.startswith(done.text)
    assert list(done.token_ids) == encode_continuation(engine.tokenizer, whole)[:budget]


def test_stop_sequence_inside_a_grammar(engine: Engine) -> None:
    """A stop sequence ends a constrained text, too, also when the grammar forces it."""
    constraint = Constraint("ebnf", 'root ::= [xy] "abcEND" [xy]')
    done = engine.generate(PROMPT, max_new_tokens=40, constraint=constraint, stop=["END"])
    assert (done.text[1:], done.stop) == ("abc", "END")


def test_constrained_and_free_sequences_share_passes(engine: Engine) -> None:
    """A grammar holds for its own row and touches no other."""
    free = engine.generate(PROMPT + ids(3), max_new_tokens=8)
    bound = engine.generate(
        PROMPT + ids(2), max_new_tokens=8, constraint=Constraint("regex", "[a-z]{8}")
    )

    async def steps(request: Request[Any]) -> list[Any]:
        sequences = [
            engine.sequence(
                engine.scheduler.root(request),
                PROMPT + opening,
                max_new_tokens=8,
                sampling=SamplingParams(),
                seed=0,
                constraint=constraint,
            )
            for opening, constraint in (
                (ids(3), None),
                (ids(2), Constraint("regex", "[a-z]{8}")),
                (ids(3), None),
            )
        ]
        await decode(sequences)
        return [sequence.completion() for sequence in sequences]

    together = submit(engine, steps, reserve=100).wait()
    assert said(together) == said([free, bound, free])


def test_force_is_the_callers_text_if_the_grammar_allows_it(engine: Engine) -> None:
    """A caller closes a stretch that got too long; the grammar has the last word."""

    async def steps(request: Request[Any]) -> Any:
        sequence = engine.sequence(
            engine.scheduler.root(request),
            PROMPT,
            max_new_tokens=50,
            sampling=SamplingParams(temperature=1, seed=3),
            seed=3,
            constraint=engine_constraint,
        )
        for _ in range(4):
            (sampled,) = await feed([sequence.feed()])
            sequence.accept(sampled)
        written, tokens = sequence.text, list(sequence.token_ids)
        assert not sequence.force("!")
        assert (sequence.text, sequence.token_ids) == (written, tokens)
        assert sequence.force(";")
        assert sequence.text == written + ";......\n"
        while sequence.finish_reason is None:
            (sampled,) = await feed([sequence.feed()])
            sequence.accept(sampled)
        return sequence.completion()

    engine_constraint = Constraint("ebnf", 'root ::= [a-z]+ ";" "......\\n" [0-9]')
    done = submit(engine, steps).wait()
    assert re.fullmatch(r"[a-z]+;\.{6}\n[0-9]", done.text)
    assert engine.tokenizer.decode(done.token_ids).strip() == done.text.strip()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ebnf", "root ::= ("),
        ("ebnf", ""),
        ("json_schema", "{not json"),
        ("json_schema", '{"type": "no such type"}'),
        ("regex", "(["),
    ],
)
def test_unreadable_constraints_are_refused_before_any_work(
    engine: Engine, kind: Any, text: str
) -> None:
    """The error says which kind, and why; nothing was fed."""
    before = engine.forward.count
    with pytest.raises(InvalidRequestError, match=f"this {kind} constraint cannot be compiled"):
        engine.generate(PROMPT, max_new_tokens=5, constraint=Constraint(kind, text))
    assert engine.forward.count == before


def test_a_language_that_the_tokenizer_cannot_write_is_an_error() -> None:
    """Where no token is allowed, the sequence fails; it does not write a forbidden one."""
    vocabulary = {word: index for index, word in enumerate(["<eos>", "a", "b", *"0123456789"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    engine = tiny_engine(tokenizer=tokenizer, eos=True)
    allowed = Constraint("regex", "[ab]{3}")
    assert engine.generate([3, 4], max_new_tokens=9, constraint=allowed).finish_reason == "stop"
    with pytest.raises(NonFiniteLogitsError, match="grammar"):
        engine.generate([3, 4], max_new_tokens=9, constraint=Constraint("regex", "[ab]?[xyz]{3}"))


@pytest.mark.filterwarnings("ignore:When constructing TokenizerInfo")
@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_tokenizer_without_eos(make: Any) -> None:
    """A grammar ends its text by itself; one without an end goes on to the budget."""
    whole = make()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole.backend_tokenizer)
    assert tokenizer.eos_token_id is None
    engine = tiny_engine(tokenizer=tokenizer, eos=True)
    assert engine.eos_token_ids == frozenset()
    done = write(engine, "regex", "[0-9]{3}", seed=0)
    assert (done.finish_reason, len(done.text)) == ("stop", 3)
    done = write(engine, "regex", "[0-9]+", seed=0, budget=15)
    assert done.finish_reason == "length"
    assert re.fullmatch("[0-9]+", done.text)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (b'{"s": "a b"}', True),
        ('{"s": "é蓝😀"}'.encode(), True),
        (b'{"s": "a\tb"}', False),
        (b'{"s": "a\x0bb"}', False),
        (b'{"s": "a\x7fb"}', True),
        (b'{"s": "\xed\xa0\x80"}', False),
        (b'{"s":"a"}', False),
        (b'{ "s": "a"}', False),
        (b'{"s": "a"}\n', False),
    ],
)
@pytest.mark.parametrize("bound", [{}, {"maxLength": 9}, {"minLength": 1}])
def test_json_is_on_one_line_and_readable(
    engine: Engine, text: bytes, allowed: bool, bound: dict[str, int]
) -> None:
    """No control character, no half surrogate, no white space of its own; bounded or not."""
    string = {"type": "string", **bound}
    schema = {"type": "object", "properties": {"s": string}, "required": ["s"]}
    state = engine.constraints.state(Constraint("json_schema", json.dumps(schema)))
    assert state._matcher.accept_string(text) is allowed


@pytest.mark.parametrize("least", [0, 3])
def test_bounded_strings_can_be_read(engine: Engine, least: int) -> None:
    """No control characters, no half characters: it parses, and the bounds hold once decoded."""
    text = {"type": "string", "minLength": least, "maxLength": 6}
    schema = {"type": "object", "properties": {"a": text, "b": text}, "required": ["a", "b"]}
    for seed in range(40):
        done = write(engine, "json_schema", json.dumps(schema), seed)
        assert done.finish_reason == "stop"
        assert all(least <= len(value) <= 6 for value in json.loads(done.text).values())


def test_free_strings_hold_no_half_of_a_surrogate_pair(engine: Engine) -> None:
    """What is written can be encoded again."""
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}
    ended = 0
    for seed in range(40):
        done = write(engine, "json_schema", json.dumps(schema), seed, budget=300)
        if done.finish_reason == "stop":  # a string without a bound may go on
            json.dumps(json.loads(done.text), ensure_ascii=False).encode()
            ended += 1
    assert ended > 10


def test_tags(engine: Engine) -> None:
    """Between the tags a schema holds; its trigger may come at any place of free text."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    tag = {
        "type": "tag",
        "begin": "<call>",
        "content": {"type": "json_schema", "json_schema": schema},
        "end": "</call>",
    }
    forced = {"type": "tags_with_separator", "tags": [tag], "separator": ",", "at_least_one": True}
    for seed in range(12):
        text = json.dumps({"type": "structural_tag", "format": forced | {"stop_after_first": True}})
        done = write(engine, "structural_tag", text, seed)
        found = re.fullmatch(r"<call>(.*)</call>", done.text)
        assert found
        assert isinstance(json.loads(found[1])["a"], bool)
    free = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [tag]}
    constraint = Constraint(
        "structural_tag", json.dumps({"type": "structural_tag", "format": free})
    )
    state = engine.constraints.state(constraint)
    assert state.accept_text("some text <call>")
    assert not state.fork().accept_text("x")
    assert state.accept_text('{"a": true}</call> more')


@pytest.mark.parametrize("text", ["{", '{"type": "structural_tag", "format": {"type": "no"}}'])
def test_tags_that_cannot_be_read(engine: Engine, text: str) -> None:
    """They are refused, with the reason."""
    with pytest.raises(InvalidRequestError, match="structural_tag constraint"):
        engine.constraints.state(Constraint("structural_tag", text))


def test_numbers_end(engine: Engine) -> None:
    """No integer that Python refuses to read, and no float that is infinite."""
    grammar = Constraint("json_schema", json.dumps({"type": "number"}))
    digits = engine.constraints.state(grammar)
    assert digits.accept_text("9" * 200)
    assert not digits.fork().accept_text("9")
    assert digits.accept_text("e+99")
    assert not digits.accept_text("9")
    integer = engine.constraints.state(Constraint("json_schema", json.dumps({"type": "integer"})))
    assert integer.accept_text("-" + "9" * 200)
    assert not integer.accept_text("9")
