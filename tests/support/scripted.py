"""Tiny models for the tests of the three stages: one with random weights, one with a script."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from langchain_pos import ParallelReasoningLLM, ReasoningResult
from langchain_pos.engine.engine import Engine
from langchain_pos.engine.forest.segments import Segment
from langchain_pos.reasoning.prompts import ReasoningPrompts
from tests.support.tokenizers import EOS, byte_level, metaspace

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

BARE = ReasoningPrompts(plan="{question}", sequential="{question}", retry="{question} ({error})")
"""Prompts that say nothing but the question: tests of the stages stay small."""

SMALL = {
    "max_pressure": None,
    "max_branches": 8,
    "max_plan_tokens": 96,
    "max_preamble_tokens": 16,
    "max_title_tokens": 8,
    "max_branch_tokens": 24,
    "max_conclusion_tokens": 32,
    "max_sequential_tokens": 32,
}
"""Budgets that keep a tiny model's answer to some dozens of passes."""


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with a chat template in ChatML and its special tokens."""
    base = byte_level()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(base.backend_tokenizer).from_str(base.backend_tokenizer.to_str()),
        eos_token="<|im_end|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", EOS]})
    tokenizer.chat_template = CHAT
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "metaspace": metaspace,
    "chat template": chat_tokenizer,
}


@cache
def tiny_model(positions: int = 2048, *, learned: bool = False, seed: int = 0) -> Any:
    """Random weights. With `learned`, a GPT-2, which fails hard beyond its last position."""
    torch.manual_seed(seed)
    config: Any
    if learned:
        config = GPT2Config(
            vocab_size=512,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=positions,
            bos_token_id=None,
            eos_token_id=None,
        )
    else:
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
        )
    config.eos_token_id = config.bos_token_id = None
    model = AutoModelForCausalLM.from_config(config).eval()
    for weights in model.parameters():  # spread out: a fresh model likes all tokens alike
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.2)
    return model


def random_llm(
    tokenizer: PreTrainedTokenizerFast | None = None, *, model: Any = None, **fields: Any
) -> ParallelReasoningLLM:
    """A runnable over random weights, with small budgets and bare prompts."""
    engine = Engine(model or tiny_model(), tokenizer or byte_level(), max_slots=8192)
    return ParallelReasoningLLM.from_engine(engine, **{"prompts": BARE, **SMALL, **fields})


def without_clocks(result: ReasoningResult) -> dict[str, Any]:
    """A result's fields, except what a clock has written.

    A plan's pressure is a mean of logits, which round by the number of rows in a pass: it compares
    within a thousandth.
    """
    data = result.model_dump(mode="json", exclude={"timings"})
    for block in data["blocks"]:
        if "pressure" in block["plan"]:
            block["plan"]["pressure"] = pytest.approx(block["plan"]["pressure"], abs=1e-3)
        for branch in block["branches"]:
            del branch["started"], branch["ended"]
    return data


class Fed(NamedTuple):
    """What a forward pass fed to one segment."""

    segment: Segment
    position: int
    """Of the first token."""
    seen: str
    """What the segment saw before."""
    text: str


class Script:
    r"""Replaces an engine's forward pass: what is written follows a script.

    The model "reads" everything that a segment sees, its ancestors' text included, and goes on
    with the text of that rule whose cue it has read last:

        {"who?\n\nAnswer:\n": "Let us see.\n####Ann:......\n####Ben:......\n####%%%%",
         "####Ann:": " GPA 3.1", "####Ben:": " GPA 2.4", "####%%%%\n": "Ann"}

    Behind a rule's text comes EOS. Where no rule fits, where a text ends with "…", and where a
    grammar forbids what the script wants, letters come for ever, never the same ones.
    `NAN` in a text is a row of NaN. ASCII only. A list of texts: one for each time it begins.

    Attributes:
        passes: for each forward pass, what it fed.
        before: called before each pass, e.g. to wait or to fail.
    """

    NAN = "\0"

    def __init__(self, engine: Engine, rules: dict[str, str | list[str]]) -> None:
        self.rules = rules
        self.passes: list[list[Fed]] = []
        self.before: Callable[[], None] = lambda: None
        self._engine = engine
        self._own: dict[Segment, list[int]] = {}
        self._parents: dict[Segment, tuple[Segment, int]] = {}
        self._joined: dict[Segment, list[Segment]] = {}
        self._fork, self._join = engine.forward.forest.fork, engine.forward.forest.join
        engine.forward.forest.join = self._record_join  # type: ignore[method-assign]
        engine.forward.forest.fork = self._record_fork  # type: ignore[method-assign]
        engine.forward.run = self._run  # type: ignore[method-assign]

    def _record_fork(self, parent: Segment, at: int | None = None, owner: Any = None) -> Segment:
        child = self._fork(parent, at, owner)
        self._parents[child] = parent, child.start
        return child

    def _record_join(self, segments: Sequence[Segment], at: int) -> Segment:
        child = self._join(segments, at)
        self._joined[child] = list(segments)
        return child

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._engine.tokenizer.decode(list(token_ids)))

    def _seen(self, segment: Segment, end: int) -> list[int]:
        own = self._own.get(segment, [])[: end - segment.start]
        if segment in self._joined:
            branches = self._joined[segment]
            trunk, at = self._parents[branches[0]]
            bodies = [self._own.get(b, [])[: b.end - b.start] for b in branches]
            return [*self._seen(trunk, at), *(i for body in bodies for i in body), *own]
        if segment not in self._parents:
            return own
        parent, at = self._parents[segment]
        return [*self._seen(parent, at), *own]

    def _run(
        self,
        feeds: Sequence[tuple[Segment, Sequence[int]]],
        sampled: Sequence[int],
        drafted: Sequence[int] = (),
    ) -> torch.Tensor:
        self.before()
        self.passes.append([])
        for segment, new in feeds:
            seen = self._text(self._seen(segment, segment.end))
            self.passes[-1].append(Fed(segment, segment.end, seen, self._text(new)))
            known = self._own.get(segment, [])[: segment.end - segment.start]
            self._own[segment] = [*known, *new]
            self._engine.forward.forest.extend(segment, len(new))
        ends = [
            (feeds[index][0], feeds[index][0].end - back)
            for index, more in zip(sampled, drafted or [0] * len(sampled), strict=True)
            for back in range(more, -1, -1)
        ]
        logits = torch.zeros(len(ends), self._engine.forward.config.vocab_size)
        for row, (segment, end) in enumerate(ends):
            seen = self._text(self._seen(segment, end))
            following, filler = self._next(seen), "abcdefghijklmnopqrstuvwxyz"[len(seen) % 26]
            if following and following.startswith(self.NAN):
                logits[row] = torch.nan
                continue
            logits[row, self._engine.tokenizer.encode(filler)[0]] = 20.0
            if following:
                logits[row, self._engine.tokenizer.encode(following)[0]] = 40.0
            elif following is not None:
                logits[row, min(self._engine.eos_token_ids)] = 40.0
        return logits

    def _next(self, seen: str) -> str | None:
        """The text to come: "" for the end, None for letters."""
        fitting: list[tuple[int, str | None]] = [(-1, None)]
        for cue, texts in self.rules.items():
            at, count = seen.rfind(cue), seen.count(cue)
            if at < 0:
                continue
            text = texts if isinstance(texts, str) else texts[min(count, len(texts)) - 1]
            written, stem = seen[at + len(cue) :], text.removesuffix("…")
            if stem.startswith(written) and written + "…" != text:
                fitting.append((at, stem[len(written) :]))
            elif text != stem and written.startswith(stem):
                fitting.append((at, None))
        return max(fitting, key=itemgetter(0))[1]


class Halt:
    """Stops a script's engine inside one pass, until it may go on."""

    def __init__(self, script: Script, at: int) -> None:
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self._script, self._at = script, at
        script.before = self._before

    def _before(self) -> None:
        if len(self._script.passes) == self._at:
            self.inside.set()
            self.go_on.wait()


def wait_to_be_cancelled(llm: ParallelReasoningLLM, script: Script, stage: str) -> None:
    """Keep the next request in a late pass of a stage of `STUDENTS` until it is cancelled.

    The engine runs ahead of its reader: a slow one would otherwise come when all is written.
    """
    live: list[Any] = []

    def before() -> None:
        live[:] = live or llm.engine.scheduler._live
        while len(script.passes) == LATE_PASS[stage] and not live[0].cancelled:
            time.sleep(0.001)

    script.before = before


def scripted_llm(
    rules: dict[str, str | list[str]],
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    positions: int = 2048,
    max_slots: int = 8192,
    **fields: Any,
) -> tuple[ParallelReasoningLLM, Script]:
    """A runnable whose model follows a script, and the script."""
    # The script knows what is fed, not what is copied back into the cache.
    engine = Engine(
        tiny_model(positions),
        tokenizer or byte_level(),
        max_slots=max_slots,
        prefix_cache_tokens=0,
    )
    script = Script(engine, rules)
    # Tests count passes and look at what each fed: without drafts that is easy to foresee.
    fields = {"prompts": BARE, "drafts": False, **SMALL, **fields}
    return ParallelReasoningLLM.from_engine(engine, **fields), script


STUDENTS = {
    "Who?\n\nAnswer:\n": "Let us see.\n####Ann:......\n####Ben:......\n####%%%%",
    "####Ann:": " GPA 3.1, outside",
    "####Ben:": " GPA 2.4",
    "####%%%%\n": "name: Ben",
}
"""The question "Who?" answered in two branches; for `scripted_llm` without a chat template."""
LATE_PASS = {"plan": 15, "expand": 32, "conclude": 38}
"""A pass that lies in the stage, when its first words are written, for that question."""
STUDENTS_TEXT = "Let us see.\n####Ann: GPA 3.1, outside\n####Ben: GPA 2.4\n####%%%%\nname: Ben"
"""The text of that answer."""

FURTHER = {
    "Who?\n\nAnswer:\n": "####Ann:......\n####Ben:......\n####%%%%",
    "####Ann:": " a",
    "####Ben:": " b",
    "b\n####%%%%\n": "Now cities.\n####Rome:......\n####Oslo:......\n####%%%%",
    "####Rome:": " warm",
    "####Oslo:": " cold",
    "cold\n####%%%%\n": "So Rome.",
}
"""The same question, and a second block of branches behind the first."""
