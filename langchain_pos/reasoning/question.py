"""One question: what is asked, its settings, and the messages that put it to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import ValidationError

from langchain_pos.engine.seeds import request_seed
from langchain_pos.errors import InvalidRequestError
from langchain_pos.reasoning.branch_schema import branch_schema_of
from langchain_pos.reasoning.native_form import NATIVE
from langchain_pos.reasoning.paper_form import PAPER
from langchain_pos.reasoning.prompts import Messages, ReasoningPrompts, prompts_for
from langchain_pos.results.result import ReasoningResult

if TYPE_CHECKING:
    from langchain_pos.engine.constraints import Constraint
    from langchain_pos.engine.sampling import Logprobs
    from langchain_pos.reasoning.branch_schema import BranchSchema
    from langchain_pos.reasoning.form import Form
    from langchain_pos.reasoning.progress import Progress
    from langchain_pos.reasoning.settings import ReasoningSettings
    from langchain_pos.reasoning.spans import Ending
    from langchain_pos.results.data import Block, Mode, Plan, ReasoningRequest, Step


@dataclass(frozen=True)
class AnswerOptions:
    """What a caller may specify beyond a question and its settings.

    Attributes:
        encode: token ids of the prompt, given the text that takes the question's place; None puts
            the request's messages through the model's chat template.
        constraint: the language that the conclusion, or the sequential answer, must belong to.
        logprobs: collects how likely each token of the sequential answer was.
        prefilled: whether `encode` ends with the beginning of the answer.
    """

    encode: Callable[[str], list[int]] | None = None
    constraint: Constraint | None = None
    logprobs: Logprobs | None = None
    prefilled: bool = False


NO_OPTIONS = AnswerOptions()


@dataclass(frozen=True)
class Question:
    """What all stages, and the decoder that serves them, know of one question.

    Attributes:
        request: the question, its history and the steps that the caller gives.
        settings: budgets and sampling.
        options: constraint, log-probabilities and encoding.
        prompts: the wording.
        form: what skeletons, branches and joins look like.
        given: the plan of the caller's steps, if there are any and they are used.
        schema: what every branch must be; None for free text.
        seed: every sequence's own is derived from it.
        progress: counts what is written and read for it.
    """

    request: ReasoningRequest
    settings: ReasoningSettings
    options: AnswerOptions
    prompts: ReasoningPrompts
    form: Form
    given: Plan | None
    schema: BranchSchema | None
    seed: int
    progress: Progress

    @classmethod
    def of(
        cls,
        request: ReasoningRequest,
        settings: ReasoningSettings,
        progress: Progress,
        *,
        options: AnswerOptions = NO_OPTIONS,
        prompts: ReasoningPrompts | None = None,
    ) -> Question:
        """Settle everything that can be known without a model.

        Args:
            request: the question, its history and the steps that the caller gives.
            settings: budgets and sampling.
            progress: counts what is written and read for it.
            options: constraint, log-probabilities and encoding.
            prompts: the model's own wording; None takes that of the question's language.

        Raises:
            InvalidRequestError: it is empty, or its steps or its schema cannot be used.
        """
        if not request.question.strip():
            raise InvalidRequestError("the question is empty; ask something")
        # The paper's form is for those who choose it, and for models that are trained for it.
        trained = settings.outline == "auto" and prompts is not None
        form: Form = PAPER if settings.outline == "paper" or trained else NATIVE
        given: Plan | None = None
        if request.steps is not None and settings.mode == "parallel":
            given = _given_plan(form, request.steps, settings.max_branches)
        own = [step.temperature for step in request.steps or ()]
        return cls(
            request=request,
            settings=settings,
            options=options,
            prompts=prompts or prompts_for(request.question),
            form=form,
            given=given,
            schema=branch_schema_of(settings.branch_schema, given),
            seed=request_seed(settings.seed, settings.temperature, *own),
            progress=progress,
        )

    def plan_messages(self, wrong: str | None = None) -> Messages:
        """The prompt of stage 1.

        Args:
            wrong: what was wrong with the skeleton that the model wrote before, if it wrote one.
        """
        question, most = self.request.question, self.settings.max_branches
        if wrong is not None:
            text = self.prompts.for_retry(question, max_branches=most, error=wrong)
        elif self.form.own_prompt:
            text = self.prompts.for_plan(question, max_branches=most)
        elif self.settings.outline == "ask" and self.given is None:
            text = self.prompts.for_list(question)
        else:
            text = self.prompts.for_sequential(question)
        if self.schema is not None:
            text += self.prompts.for_branch_schema(self.schema.json_schema)
        return self._messages(text)

    @property
    def asks_for_conclusion(self) -> bool:
        """Whether more is wanted than a list: its steps are the caller's, or a sentence says so."""
        return self.given is not None or self.settings.outline == "ask"

    def sequential_messages(self) -> Messages:
        """The prompt of a sequential answer."""
        return self._messages(self.prompts.for_sequential(self.request.question))

    def _messages(self, text: str) -> Messages:
        return [*self.request.messages[:-1], ("user", text)]

    def result(
        self,
        blocks: Sequence[Block],
        conclusion: Ending,
        fallback_reason: str | None,
        *,
        mode: Mode,
        concluded: bool,
        model_name: str,
    ) -> ReasoningResult:
        """What has been written as a result, without what it has cost (see `Progress.finish`)."""
        if fallback_reason and self.schema is not None and not blocks:
            fallback_reason += (
                "; so there are no branches to hold objects of branch_schema: give the steps, or "
                'outline="ask"'
            )
        return ReasoningResult(
            question=self.request.question,
            blocks=tuple(blocks),
            conclusion=conclusion.text,
            mode=mode if blocks else "sequential",
            fallback_reason=fallback_reason,
            finish_reason=conclusion.finish_reason,
            error=conclusion.error,
            concluded=concluded,
            model_name=model_name,
        )


def _given_plan(form: Form, steps: Sequence[Step], max_branches: int) -> Plan:
    """The plan of the steps that the caller gives.

    Raises:
        InvalidRequestError: there are too few or too many, or two have the same title.
    """
    if not 1 <= len(steps) <= max_branches:
        raise InvalidRequestError(
            f"{len(steps)} steps are given; allowed are 1 to {max_branches} (max_branches)"
        )
    try:
        return form.given(steps)
    except ValidationError as error:
        messages = (e["msg"] for e in error.errors(include_url=False))
        wrong = "; ".join(message.removeprefix("Value error, ") for message in messages)
        raise InvalidRequestError(f"these steps cannot be used: {wrong}") from error
