"""What can be set for a question: budgets, sampling, and what to do when planning fails."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from langchain_pos.errors import InvalidRequestError
from langchain_pos.field_names import known_names
from langchain_pos.results.data import Mode, StopTexts

Visibility = Literal["auto", "isolated", "first", "titles"]
Join = Literal["reprefill", "reuse"]
Outline = Literal["auto", "native", "ask", "paper"]


class ReasoningSettings(BaseModel):
    """Settings of one question; every one of them is also a field of `ParallelReasoningLLM`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    mode: Mode = "parallel"
    """"parallel", or "sequential": one text, as any model answers."""
    max_branches: int = Field(default=64, ge=2)
    """Maximum number of steps in one plan."""
    max_parallel_branches: int = Field(default=32, ge=1)
    """Branches decoded at the same time; further ones wait and follow."""
    max_blocks: int = Field(default=3, ge=1)
    """Rounds of plan and branches in one answer, at most."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the whole answer, plans and branches included; in place of `max_sequential_tokens`
    and `max_conclusion_tokens`, too."""
    enable_thinking: bool | None = None
    """For the chat template of a model that can think before it answers; None: as the template has
    it. What it thinks is `result.thoughts`, and no part of the answer."""
    max_thinking_tokens: int = Field(default=2048, ge=1)
    """Tokens of what it thinks; then the thought is closed for it."""
    max_branch_thinking_tokens: int = Field(default=0, ge=0)
    """Tokens that each branch of such a model may think before its text; 0: branches do not."""
    max_preamble_tokens: int = Field(default=160, ge=8)
    """Tokens before the first step; then the first step is opened for the model."""
    max_title_tokens: int = Field(default=48, ge=4)
    """Tokens of one title; then it is closed for the model."""
    max_plan_tokens: int = Field(default=1536, ge=64)
    """Tokens of a skeleton; then it is closed for the model."""
    max_branch_tokens: int = Field(default=512, ge=1)
    """Tokens of one branch."""
    max_conclusion_tokens: int = Field(default=1024, ge=1)
    """Tokens of one conclusion."""
    max_sequential_tokens: int = Field(default=4096, ge=1)
    """Tokens of a sequential answer."""
    max_plan_attempts: int = Field(default=3, ge=1)
    """Skeletons tried before the question is answered sequentially."""
    on_plan_failure: Literal["sequential", "raise"] = "sequential"
    """What happens then: a sequential answer with the reason, or `PlanFormatError`."""
    allow_decline: bool = True
    """Whether the model may say that a question does not fall into parts."""
    visibility: Visibility = "auto"
    """What a branch sees besides the prompt and itself. "isolated": nothing (the paper); "titles":
    the outline; "first": the first branch, which is written before the others, so that these
    follow its example; "auto": the same of the first entry of a list that the model begins, which
    is written beside the heads, if it ends within 96 tokens, and 16 for each entry; else
    nothing."""
    outline: Outline = "auto"
    """How an answer gets its steps. "native": the model answers the bare question, and where it
    begins a markdown list, the list's entries are written together; "ask": the same, with a
    sentence that asks for a list and a conclusion; "paper": a prompt asks for the paper's
    `####title:......`; "auto": "paper" for a model that brings prompts for it, "native" for all
    others."""
    max_pressure: float | None = Field(default=0.2, gt=0)
    """A skeleton that goes more against the model than this is dropped (`result.plan.pressure`, in
    nats a token); None keeps all, and lets lists go on where the model might have ended them. Of
    the outlines that two models wrote, the useless ones had 0.23 or more, and the others 0.14 or
    less."""
    decline_without_gain: bool = True
    """Answer sequentially if the plan's steps are too few and too short to gain by being written
    together."""
    join: Join = "reprefill"
    """"reprefill": the conclusion reads the joined branches as one text (the paper); "reuse": it
    sees the branches' own keys and values, side by side, and nothing is fed again."""
    drafts: bool = True
    """Guess tokens ahead by prompt look-up: the same answer in fewer forward passes."""
    conclude: bool = True
    """False: the branches are the answer, and stage 3 is left out."""
    branch_schema: SkipJsonSchema[type[Any] | dict[str, Any] | None] = None
    """Every branch writes one JSON object of this pydantic model, dataclass, TypedDict or JSON
    schema; `branch.parsed` is it."""
    stop: StopTexts = ()
    """Texts that end a branch or the conclusion, besides `####` and EOS; one may stand without a
    list."""
    temperature: float = Field(default=0.0, ge=0, le=100)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the likeliest tokens whose probabilities add up to this."""
    top_k: int | None = Field(default=None, ge=1)
    """Keep this many of the likeliest tokens."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Drop tokens less likely than this share of the likeliest one."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    """Above 1 makes tokens that occurred less likely."""
    seed: int | None = None
    """Same seed, same answer; None draws a new one for each question that has a temperature. In
    half precision, rows that share a pass round differently, so that there what runs beside it, and
    `draft_rows`, can tip a choice between two tokens that are almost equally likely."""

    @model_validator(mode="after")
    def _titles_fit_the_plan(self) -> Self:
        least = self.max_preamble_tokens // 4 + 2 * min(self.max_title_tokens, 8)
        if self.max_plan_tokens < least:
            raise ValueError(
                f"max_plan_tokens={self.max_plan_tokens} leaves no room for two titles; "
                f"at least {least} are needed with these bounds on preamble and titles"
            )
        return self

    @model_validator(mode="after")
    def _thoughts_are_not_joined(self) -> Self:
        if self.max_branch_thinking_tokens and self.join == "reuse":
            raise ValueError(
                "join='reuse' would leave what branches think in the answer; set "
                "max_branch_thinking_tokens=0, or join='reprefill'"
            )
        return self

    @model_validator(mode="after")
    def _the_first_branch_can_be_seen(self) -> Self:
        if self.visibility == "first" and (self.join == "reuse" or self.max_branch_thinking_tokens):
            raise ValueError(
                "visibility='first' has the first branch read as text by the others; set "
                "join='reprefill' and max_branch_thinking_tokens=0, or another visibility"
            )
        return self

    @model_validator(mode="after")
    def _something_is_asked_for(self) -> Self:
        if not self.conclude and self.mode == "sequential":
            raise ValueError(
                "conclude=False asks for the branches alone, and mode='sequential' writes none; "
                "change one of them"
            )
        return self

    @classmethod
    def of(cls, source: ReasoningSettings, **overrides: Any) -> ReasoningSettings:
        """The settings of `source` with some of them changed for one call.

        Raises:
            InvalidRequestError: an unknown name or a value that is not allowed.
        """
        known = list(ReasoningSettings.model_fields)
        values = {name: getattr(source, name) for name in known} | known_names(overrides, known)
        try:
            return ReasoningSettings(**values)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'settings'}={e['input']!r}: {e['msg']}"
                for e in error.errors(include_url=False)
            )
            raise InvalidRequestError(wrong) from error
