"""Requests, plans, branches and results as data. Frozen; JSON round-trips.

ReasoningRequest   the question
Plan of Steps      stage 1, what the model intends to do
BranchResult       stage 2, one per step
Block              one plan with its branches; an answer may have several
ResultData         everything; `result.py` builds `ReasoningResult` and `ReasoningChunk` on it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from langchain_pos.engine.completion import DraftUsage, FinishReason, TokenUsage

Mode = Literal["parallel", "sequential"]
NOT_ANSWERED = "not answered: "
"""How `fallback_reason` begins where the model's own words for that stand in place of an answer."""
NO_LIST = "declined: the answer has no list that could be written in parallel"
"""The `fallback_reason` of an ordinary answer in native form."""
Stage = Literal["plan", "expand", "conclude"]

STEP_MARK = "####"
"""Opens a step (paper, section 3.1). Ordinary text, never a special token."""
END_MARK = "####%%%%"
"""Closes a block of steps."""
BODY_PLACEHOLDER = "......"
"""Stands for a body in the skeleton."""


def _one_or_more(stop: Any) -> Any:
    return (stop,) if isinstance(stop, str) else stop


StopTexts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_one_or_more)
]
"""Texts that end what is written; a bare text is one of them, as in OpenAI's API."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _unset(value: object) -> bool:
    return value is None or value == ()


def _is_paper(form: str) -> bool:
    return form == "paper"


def _blank(value: object) -> bool:
    return not value


class Step(_Frozen):
    """One independent step of a plan. Only steps given by the caller set more than the title.

    Attributes:
        title: the step's subject; one line, without `####`.
        prompt: an instruction that only this step's branch reads.
        max_tokens: of its branch, instead of `max_branch_tokens`.
        temperature: of its branch; None uses the setting.
        seed: of its branch; None derives one from the question's seed and the step's index.
        stop: texts that end its branch, in addition to the setting's.
    """

    title: str = Field(min_length=1)
    prompt: str | None = Field(default=None, min_length=1, exclude_if=_unset)
    max_tokens: int | None = Field(default=None, ge=1, exclude_if=_unset)
    temperature: float | None = Field(default=None, ge=0, le=100, exclude_if=_unset)
    seed: int | None = Field(default=None, exclude_if=_unset)
    stop: StopTexts = Field(default=(), exclude_if=_unset)

    @field_validator("title")
    @classmethod
    def _one_clean_line(cls, title: str) -> str:
        title = " ".join(title.split())
        if not title:
            raise ValueError("a step's title is empty; give every step a title")
        if STEP_MARK in title:
            raise ValueError(f"a title contains {STEP_MARK!r}, which opens a step: {title!r}")
        return title


def _titled(step: Any) -> Any:
    return Step(title=step) if isinstance(step, str) else step


GivenStep = Annotated[Step, BeforeValidator(_titled)]
"""A step as callers may give it: a `Step`, a dict of its fields, or a bare title."""


def _entry(head: str, body: str) -> str:
    """An entry of a list; a body on the same line is set off by a space."""
    on_its_own_line = head.endswith("\n") or body.startswith("\n")
    return f"{head}{body}" if on_its_own_line or not body else f"{head} {body}"


class Plan(_Frozen):
    """A parsed skeleton: the text before the steps, and the steps.

    Attributes:
        preamble: the text before the first step, stripped.
        steps: at least one; titles differ (case and spaces aside).
        form: how the answer is written: "paper" (`####title: body`) or "native", as a markdown list
            with the model's own marks.
        heads: in native form, each entry's text up to its body, such as `1. **title**:`.
        gap: in native form, what stands between two entries: one line end or two, as the model has
            begun the list.
        pressure: how much the grammar that held the skeleton went against the model: the mean of
            -log a, in nats, over the skeleton's tokens that the model chose, where a is the
            probability that the model itself gave to all the tokens together that the grammar
            allowed there; None where it is not known.
        first_seen: whether the other branches see the first one, which is written before them,
            unless it fails.
    """

    preamble: str = ""
    steps: tuple[Step, ...] = Field(min_length=1)
    form: Literal["paper", "native"] = Field(default="paper", exclude_if=_is_paper)
    heads: tuple[str, ...] = Field(default=(), exclude_if=_unset)
    gap: str = Field(default="", exclude_if=_blank)
    pressure: float | None = Field(default=None, exclude_if=_unset)
    first_seen: bool = Field(default=False, exclude_if=_blank)

    @field_validator("steps")
    @classmethod
    def _titles_differ(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        seen: set[str] = set()
        for step in steps:
            key = step.title.casefold()
            if key in seen:
                raise ValueError(f"two steps have the same title: {step.title!r}")
            seen.add(key)
        return steps

    @classmethod
    def of(cls, titles: list[str] | tuple[str, ...], preamble: str = "") -> Self:
        """A plan from bare titles."""
        return cls(preamble=preamble, steps=tuple(Step(title=title) for title in titles))

    def written(self, bodies: Sequence[str]) -> str:
        """The steps with their bodies as the answer writes them, without the preamble."""
        places = zip(range(len(self.steps)), bodies, strict=True)
        entries = [self.entry(place, body) for place, body in places]
        if self.form == "paper":
            entries.append(END_MARK)
        return self.between.join(entries)

    def entry(self, index: int, body: str) -> str:
        """A step with its body as the answer writes it."""
        if self.form == "paper":
            return f"{STEP_MARK}{self.titles[index]}: {body}"
        return _entry(self.heads[index], body)

    @property
    def between(self) -> str:
        """What stands between two steps."""
        return "\n" if self.form == "paper" else self.gap

    @property
    def titles(self) -> tuple[str, ...]:
        """The steps' titles, in order."""
        return tuple(step.title for step in self.steps)


class BranchResult(_Frozen):
    """The outcome of one branch.

    Attributes:
        index: of its step within the block, from 0.
        title: the step's title.
        text: the body, stripped of surrounding whitespace.
        finish_reason: "stop", "length" (its token budget), "cancelled" or "error".
        usage: `input_tokens` counts its opening, `output_tokens` its body.
        started: seconds from the request's start to its first token fed.
        ended: seconds from the request's start to its last token.
        error: what went wrong: `finish_reason` is "error", or the text does not match
            `branch_schema`. None if nothing did.
        parsed: the text as an object of `branch_schema`: a pydantic model or dataclass if the
            schema is one, else plain data. None without a schema, and where `error` says why. JSON
            holds plain data, also when a result is read back:
            `Model.model_validate(branch.parsed)` restores the object.
    """

    index: int
    title: str
    text: str = ""
    finish_reason: FinishReason = "stop"
    usage: TokenUsage = TokenUsage()
    started: float = 0.0
    ended: float = 0.0
    error: str | None = None
    parsed: Any = None


class Block(_Frozen):
    """One round of stages 1 and 2: a plan and its branches, in the plan's order."""

    plan: Plan
    branches: tuple[BranchResult, ...] = ()

    @property
    def text(self) -> str:
        """Preamble and steps as the answer writes them."""
        bodies = {branch.index: branch.text for branch in self.branches}
        written = self.plan.written([bodies.get(i, "") for i in range(len(self.plan.steps))])
        return (
            f"{self.plan.preamble}{self.plan.between}{written}" if self.plan.preamble else written
        )


class StageTimings(_Frozen):
    """Wall-clock seconds by stage. `queued`: waiting for other requests before the first pass."""

    queued: float = 0.0
    plan: float = 0.0
    expand: float = 0.0
    conclude: float = 0.0

    @property
    def total(self) -> float:
        """All seconds from the request to its result."""
        return self.queued + self.plan + self.expand + self.conclude


class StagePasses(_Frozen):
    """Forward passes by stage. A pass shared by several requests counts for each of them."""

    plan: int = 0
    expand: int = 0
    conclude: int = 0

    @property
    def total(self) -> int:
        """All forward passes of the request."""
        return self.plan + self.expand + self.conclude


class ReasoningRequest(_Frozen):
    """A question with its history and given steps.

    Attributes:
        question: its text, or the last human message of `messages`.
        messages: a chat history that ends with the question, as `(role, text)` pairs; empty for
            a bare question.
        steps: given by the caller, as titles or as `Step`s; stage 1 is skipped.
    """

    question: str
    messages: tuple[tuple[str, str], ...] = ()
    steps: tuple[GivenStep, ...] | None = None

    @field_validator("steps", "messages", mode="before")
    @classmethod
    def _is_a_list(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, str):
            return given
        titles = [title for part in given.split(",") if (title := part.strip())]
        meant = titles if info.field_name == "steps" else [("user", given)]
        raise ValueError(f"{given!r} is a text, not a list; write {info.field_name}={meant!r}")


class ResultData(_Frozen):
    """The fields of a `ReasoningResult`, which documents them and adds how it is displayed."""

    question: str = ""
    blocks: tuple[Block, ...] = ()
    conclusion: str = ""
    mode: Mode = "parallel"
    fallback_reason: str | None = None
    finish_reason: FinishReason = "stop"
    error: str | None = None
    concluded: bool = True
    usage: TokenUsage = TokenUsage()
    timings: StageTimings = StageTimings()
    forward_passes: StagePasses = StagePasses()
    drafts: DraftUsage = DraftUsage()
    plan_attempts: int = 0
    peak_slots: int = 0
    cached_tokens: int = 0
    model_name: str = ""
    thoughts: str = Field(default="", exclude_if=_blank)

    @property
    def plan(self) -> Plan | None:
        """The first block's plan; None when answered sequentially."""
        return self.blocks[0].plan if self.blocks else None

    @property
    def preamble(self) -> str:
        """The text before the first step."""
        return self.blocks[0].plan.preamble if self.blocks else ""

    @property
    def branches(self) -> tuple[BranchResult, ...]:
        """The branches of all blocks, in the order of the plan."""
        return tuple(branch for block in self.blocks for branch in block.branches)

    @property
    def text(self) -> str:
        """The whole answer as one text: markdown in native form, else as the paper writes it."""
        if self.mode == "sequential":
            return self.conclusion
        native = any(block.plan.form == "native" for block in self.blocks)
        apart, text = "\n\n" if native else "\n", ""
        for block in self.blocks:
            text += (apart if block.plan.preamble else block.plan.between) if text else ""
            text += block.text
        return apart.join(part for part in (text, self.conclusion) if part)
