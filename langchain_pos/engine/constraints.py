"""Grammars compiled for a tokenizer: which tokens may come next.

Three nouns in order, as in xgrammar, which does the work: a `Constraint` is a specification, a
`CompiledConstraint` is it for one tokenizer, a `ConstraintState` is it for one sequence. It is
imported only where a grammar is used: the rest of the engine runs without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch

from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    import xgrammar
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Constraint:
    """A language that a completion must belong to.

    Attributes:
        kind: "ebnf" (xgrammar's dialect), "json_schema" (JSON on one line, spaced as `json.dumps`
            does), "regex", or "structural_tag" (xgrammar's JSON form of texts with tags; schemas
            in it are held to as under "json_schema").
        text: the grammar, the schema or tags as JSON text, or the regular expression.
    """

    kind: Literal["ebnf", "json_schema", "regex", "structural_tag"]
    text: str


class ConstraintCompiler:
    """Compiles constraints for one tokenizer, and remembers them.

    Args:
        tokenizer: a fast tokenizer.
        vocabulary: width of the model's logits; may exceed the tokenizer's size.
        stop_token_ids: EOS ids; allowed where the grammar may end.
        unknown: added tokens of the tokenizer that the model has no embedding for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocabulary: int,
        stop_token_ids: Sequence[int],
        unknown: Sequence[str] = (),
    ) -> None:
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=list(stop_token_ids) or None
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2)
        self._vocabulary = vocabulary
        self._unknown = unknown
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def state(self, constraint: Constraint) -> ConstraintState:
        """A fresh state for one sequence.

        Raises:
            InvalidRequestError: the grammar, schema or expression cannot be read, or forces a token
                that the model does not know.
        """
        return ConstraintState(self._compiled(constraint), self._vocabulary)

    def _compile(self, constraint: Constraint) -> xgrammar.CompiledGrammar:
        compilers: dict[str, Callable[[str], xgrammar.CompiledGrammar]] = {
            "ebnf": self._compiler.compile_grammar,
            "json_schema": lambda schema: self._compiler.compile_grammar(_json_grammar(schema)),
            "regex": self._compiler.compile_regex,
            "structural_tag": lambda tag: self._compiler.compile_structural_tag(_safe_tag(tag)),
        }
        # What a grammar forces is encoded, and would fail in the middle of an answer.
        plain = constraint.text.replace("\\", "")
        for token in self._unknown:
            if token in plain:
                raise InvalidRequestError(
                    f"this {constraint.kind} constraint contains {token!r}, which the tokenizer "
                    "makes one token of, and the model has no embedding for it. Use another text"
                )
        try:
            return compilers[constraint.kind](constraint.text)
        except (RuntimeError, ValueError) as error:
            reason = _PLACE_IN_SOURCE.sub("", str(error)).strip()
            raise InvalidRequestError(
                f"this {constraint.kind} constraint cannot be compiled: {reason}"
            ) from error


_PLACE_IN_SOURCE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")
_ESCAPE_RULE = re.compile(r"^basic_escape ::= .*$", re.MULTILINE)


def _json_grammar(schema: str) -> str:
    """The grammar of a JSON schema, on one line: what it allows can be read and written again.

    Three things that xgrammar 0.2 allows in strings are taken out. Where the length is bounded,
    control characters would pass, which JSON forbids. An escape may be half of a surrogate pair,
    which is no character; the characters themselves need no escape. And the bytes of such a half
    count as one character there, but are decoded as three U+FFFD, so a bound would not hold.
    (A string with a `pattern` is xgrammar's own affair: it may hold those bytes.)
    Numbers are bounded where Python's end: an integer has 200 digits, an exponent two.
    """
    import xgrammar

    grammar = str(xgrammar.Grammar.from_json_schema(schema, any_whitespace=False))
    for character in (r"[^\"\\\r\n]", r"[^\0-\x1f\"\\\r\n]"):
        grammar = grammar.replace(character, r"[^\0-\x1f\"\\\r\n\ud800-\udfff]")
    grammar = grammar.replace("[1-9] [0-9]*", "[1-9] [0-9]{0,199}")
    exponent = "basic_number_4 basic_number_digits"
    grammar = grammar.replace(f"{exponent}{{1, -1}}", f"{exponent}{{1, 2}}")
    return _ESCAPE_RULE.sub(lambda _: r"""basic_escape ::= (([\"\\/bfnrt]))""", grammar)


def _safe_tag(text: str) -> str:
    """A structural tag whose schemas are replaced by their `_json_grammar`s."""

    def walk(part: Any) -> Any:
        if isinstance(part, list):
            return [walk(item) for item in part]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "json_schema" and "json_schema" in part:
            return {"type": "grammar", "grammar": _json_grammar(json.dumps(part["json_schema"]))}
        return {key: walk(value) for key, value in part.items()}

    return json.dumps(walk(json.loads(text)))


class ConstraintState:
    """How far one sequence has come in its grammar."""

    def __init__(self, compiled: xgrammar.CompiledGrammar, vocabulary: int) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._stop_token_ids = list(self._matcher.stop_token_ids)
        self._vocabulary = vocabulary

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow.

        Where it is complete and may yet go on, as a number can, EOS or the next digit is the
        model's choice.
        """
        import xgrammar

        if not self._matcher.is_completed():
            return False
        bitmask = xgrammar.allocate_token_bitmask(1, self._vocabulary)
        self._matcher.fill_next_token_bitmask(bitmask)
        bits = bitmask.view(torch.uint8)[0]
        for token_id in self._stop_token_ids:
            bits[token_id // 8] &= 0xFF ^ (1 << token_id % 8)
        return not bool(bits.any())

    def accept_token(self, token_id: int) -> bool:
        """Go on by a token. False, and nothing changes, when the grammar forbids it."""
        return bool(self._matcher.accept_token(token_id))

    def accept_text(self, text: str) -> bool:
        """Go on by a text. False, and nothing changes, when the grammar forbids it."""
        return bool(self._matcher.accept_string(text))

    def forced_text(self) -> str:
        """The text that must come next whatever the model prefers; often empty."""
        if self._matcher.is_completed():
            return ""
        try:
            return str(self._matcher.find_jump_forward_string())
        except UnicodeDecodeError as error:  # it begins or ends inside a character
            return bytes(error.object[: error.start]).decode()

    def fill(self, bitmask: torch.Tensor, row: int) -> None:
        """Write the allowed tokens into `bitmask[row]`, int32 `[rows, vocabulary / 32]`."""
        self._matcher.fill_next_token_bitmask(bitmask, row)

    def fork(self) -> ConstraintState:
        """A state that goes on from here on its own: for looking ahead."""
        fork = object.__new__(ConstraintState)
        fork._matcher = self._matcher.fork()
        fork._stop_token_ids, fork._vocabulary = self._stop_token_ids, self._vocabulary
        return fork


def apply_constraints(logits: torch.Tensor, states: Sequence[ConstraintState | None]) -> None:
    """Set the logits of forbidden tokens to minus infinity, in place.

    Args:
        logits: `[R, vocabulary]`.
        states: the grammar's state of each row, None for a free one.
    """
    if all(state is None for state in states):
        return
    import xgrammar

    rows = []
    bitmask = xgrammar.allocate_token_bitmask(len(states), logits.shape[-1])
    for index, state in enumerate(states):
        if state is not None:
            state.fill(bitmask, index)
            rows.append(index)
    xgrammar.apply_token_bitmask_inplace(logits, bitmask.to(logits.device), indices=rows)
