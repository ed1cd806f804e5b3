"""What servers understand beyond OpenAI's own parameters, and in which fields.

| dialect | grammar | JSON schema | usage with every chunk | recognised by |
|---|---|---|---|---|
| "vllm" | `structured_outputs` | `structured_outputs` | yes | `owned_by: vllm` |
| "vllm-guided" (vLLM up to 0.11) | `guided_grammar` | `guided_json` | yes | as "vllm" |
| "sglang" | `ebnf` | `json_schema` | yes | `owned_by: sglang` |
| "llamacpp" (llama.cpp's server) | `grammar` | `json_schema` | no | `owned_by: llamacpp` |
| "plain" | no | no | no | anything else |

Fields as in vLLM's `CompletionRequest` and its page on structured outputs (which also says that
`guided_*` was removed in 0.12), in SGLang's `CompletionRequest`, and in the README of llama.cpp's
server, whose grammars (GBNF) are written like xgrammar's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from langchain_pos.reasoning.settings import ReasoningSettings

Dialect = Literal["plain", "vllm", "vllm-guided", "sglang", "llamacpp"]
_OWNERS: dict[str, Dialect] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp"}


@dataclass(frozen=True)
class Call:
    """The parameters of one completion.

    Attributes:
        max_tokens: its budget.
        temperature: of its tokens.
        seed: of its tokens.
        stop: texts that end it.
        grammar: that it must match, in xgrammar's EBNF.
        json_schema: that it must match, as JSON text.
    """

    max_tokens: int
    temperature: float
    seed: int
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    json_schema: str | None = None


def dialect_of(owned_by: str) -> Dialect:
    """The dialect of a server, from the `owned_by` of its models."""
    return _OWNERS.get(owned_by, "plain")


def constrains(dialect: Dialect) -> bool:
    """Whether the server can enforce a grammar or schema."""
    return dialect != "plain"


def fields_of(call: Call, settings: ReasoningSettings, dialect: Dialect) -> dict[str, Any]:
    """A call as arguments of the OpenAI client, without model and prompt.

    Raises:
        InvalidRequestError: the server does not support a requested setting.
    """
    extra: dict[str, Any] = {}
    options: dict[str, Any] = {"include_usage": True}
    if dialect == "plain":
        _check_plain(settings)
    elif dialect == "llamacpp":
        # Given in every call, because its defaults cut the distribution.
        extra["top_k"] = settings.top_k or 0
        extra["min_p"] = settings.min_p or 0.0
        extra["repeat_penalty"] = settings.repetition_penalty
        extra["repeat_last_n"] = 16384  # the prompt's tokens too; its default are 64
        extra |= _constraint(call, dialect)
    else:
        # Given in every call, because these servers fall back on defaults of the model's folder.
        extra["top_k"] = -1 if settings.top_k is None else settings.top_k
        extra["min_p"] = settings.min_p or 0.0
        extra["repetition_penalty"] = settings.repetition_penalty
        options["continuous_usage_stats"] = True  # for completions that are aborted
        extra |= _constraint(call, dialect)
    return {
        "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "top_p": settings.top_p,
        "seed": call.seed,
        "stream": True,
        "stream_options": options,
        "extra_body": extra,
        **({"stop": list(call.stop)} if call.stop else {}),
    }


def _constraint(call: Call, dialect: Dialect) -> dict[str, Any]:
    fields: dict[str, dict[str, Any]] = {}
    if call.grammar is not None:
        fields = {
            "vllm": {"structured_outputs": {"grammar": call.grammar}},
            "vllm-guided": {"guided_grammar": call.grammar},
            "sglang": {"ebnf": call.grammar},
            "llamacpp": {"grammar": call.grammar},
        }
    elif call.json_schema is not None:
        schema = json.loads(call.json_schema)
        fields = {
            "vllm": {"structured_outputs": {"json": schema}},
            "vllm-guided": {"guided_json": schema},
            "sglang": {"json_schema": call.json_schema},
            "llamacpp": {"json_schema": schema},
        }
    return fields.get(dialect, {})


def _check_plain(settings: ReasoningSettings) -> None:
    given = {
        "top_k": settings.top_k is not None,
        "min_p": settings.min_p is not None,
        "repetition_penalty": settings.repetition_penalty != 1.0,
    }
    if unknown := [name for name, is_given in given.items() if is_given]:
        raise InvalidRequestError(
            f"{', '.join(unknown)}: OpenAI's completions have no such parameter, and the server is "
            "not known to; omit it, set server='vllm', 'sglang' or 'llamacpp' if it is one, or "
            "pass it under the server's own name in extra_body"
        )
