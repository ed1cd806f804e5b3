"""Constraints, and what compiles and remembers them for one tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from langchain_pos.engine.constraints.grammar import json_grammar
from langchain_pos.engine.constraints.lengths import LengthCounter, Lengths, StringTokens
from langchain_pos.engine.constraints.schemas import read_schema
from langchain_pos.engine.constraints.state import ConstraintState
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
        # Its cache shares masks between the rules of different grammars by a hash that takes some
        # rules for each other: after thousands of schemas, one got another's tokens (0.2.8).
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
        self._vocabulary = vocabulary
        self._unknown = unknown
        self._tokens = StringTokens(info.decoded_vocab, vocabulary)
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def state(self, constraint: Constraint) -> ConstraintState:
        """A fresh state for one sequence.

        Raises:
            InvalidRequestError: the grammar, schema or expression cannot be read, or forces a token
                that the model does not know.
        """
        compiled, lengths = self._compiled(constraint)
        counter = LengthCounter(self._tokens, lengths) if lengths else None
        return ConstraintState(compiled, self._vocabulary, self._tokens.tokens, counter)

    def _compile(self, constraint: Constraint) -> _Compiled:
        # What a grammar forces is encoded, and would fail in the middle of an answer.
        plain = constraint.text.replace("\\", "")
        for token in self._unknown:
            if token in plain:
                raise InvalidRequestError(
                    f"this {constraint.kind} constraint contains {token!r}, which the tokenizer "
                    "makes one token of, and the model has no embedding for it. Use another text"
                )
        try:
            compiled, lengths = self._read(constraint)
        except (RuntimeError, RecursionError, ValueError) as error:
            reason = _PLACE_IN_SOURCE.sub("", str(error)).strip()
            raise InvalidRequestError(
                f"this {constraint.kind} constraint cannot be compiled: {reason}"
            ) from error
        if not any(each.bounded for each in lengths.values()):
            return compiled, {}  # nothing is to be counted
        self._tokens.prepare()
        return compiled, lengths

    def _read(self, constraint: Constraint) -> _Compiled:
        match constraint.kind:
            case "ebnf":
                return self._compiler.compile_grammar(constraint.text), {}
            case "regex":
                return self._compiler.compile_regex(constraint.text), {}
            case "structural_tag":
                tag = _SafeTag(constraint.text)
                return self._compiler.compile_structural_tag(tag.text), tag.lengths
            case "json_schema":
                schema = read_schema(json.loads(constraint.text))
                grammar = self._compiler.compile_grammar(json_grammar(schema))
                return grammar, {b"": Lengths(schema)}


_Compiled = tuple["xgrammar.CompiledGrammar", dict[bytes, Lengths]]
_PLACE_IN_SOURCE = re.compile(r"^\[[\d:]+\] \S+:\d+: ")


class _SafeTag:
    """A structural tag whose schemas are replaced by their grammars.

    Attributes:
        text: the tag, as JSON.
        lengths: of the schemas, by the text before each value; "" where a value is the whole text.
    """

    def __init__(self, text: str) -> None:
        self.lengths: dict[bytes, Lengths] = {}
        self.text = json.dumps(self._walk(json.loads(text), ""))

    def _walk(self, part: Any, before: str) -> Any:
        if isinstance(part, list):
            return [self._walk(item, before) for item in part]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "json_schema" and "json_schema" in part:
            schema = read_schema(part["json_schema"])
            self.lengths[before.encode()] = Lengths(schema)
            return {"type": "grammar", "grammar": json_grammar(schema)}
        begin = part["begin"] if isinstance(part.get("begin"), str) else before
        return {key: self._walk(value, begin) for key, value in part.items()}
