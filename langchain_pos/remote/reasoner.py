"""The way of a question over a server: the stages of `reasoner.py`, as texts and HTTP requests.

    reason
      ├─ plan       stage 1   one request, under a grammar where the server has them
      │                       (remote_planning.py)
      ├─ expand     stage 2   a request for each branch, all begin with the same text
      │                       (remote_expanding.py)
      └─ conclude   stage 3   one request; a step opens another block → back to stage 1
                              (remote_concluding.py)

A task in place of a generator; cancelling it closes the connections. Prompts, parsing, budgets,
results and events are those of the local way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_pos.engine.seeds import derive_seed, request_seed
from langchain_pos.errors import ContextLengthError, InvalidRequestError, PlanFormatError
from langchain_pos.reasoning.answer_form import PLAIN, AnswerForm
from langchain_pos.reasoning.branch_schema import branch_schema_of
from langchain_pos.reasoning.budget import no_gain
from langchain_pos.reasoning.conclusion import Conclusion
from langchain_pos.reasoning.progress import Progress
from langchain_pos.reasoning.prompts import ReasoningPrompts, join_text, prompts_for
from langchain_pos.reasoning.skeleton import given_plan
from langchain_pos.remote.asking import Asker, TextTrunk
from langchain_pos.remote.concluding import RemoteConcluder
from langchain_pos.remote.dialects import Call
from langchain_pos.remote.expanding import RemoteExpander
from langchain_pos.remote.planning import RemotePlanner
from langchain_pos.remote.sinks import TextSink
from langchain_pos.results.data import Block, Plan, ReasoningRequest
from langchain_pos.results.result import ReasoningChunk, ReasoningResult

if TYPE_CHECKING:
    from collections.abc import Hashable

    from langchain_pos.reasoning.settings import ReasoningSettings
    from langchain_pos.remote.engine import OpenAICompletionsEngine
    from langchain_pos.remote.scheduler import RemoteRequest


class RemoteReasoner:
    """Answers questions with a server; the surface of `reasoner.Reasoner`.

    Args:
        engine: the server.
        prompts: what is said to the model; by default chosen by the question's language.
        model_name: what the server calls the model; None takes the engine's.
    """

    def __init__(
        self,
        engine: OpenAICompletionsEngine,
        *,
        prompts: ReasoningPrompts | None = None,
        model_name: str | None = None,
    ) -> None:
        self.engine = engine
        self.prompts = prompts
        self.model = model_name
        self.model_name = model_name or engine.model or engine.base_url

    def submit(
        self,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        *,
        deltas: bool = False,
        spans: bool = False,
    ) -> RemoteRequest[ReasoningResult]:
        """Start a question. See `Reasoner.submit`."""
        return self.prepare(ask, settings, deltas=deltas, spans=spans).submit()

    def prepare(
        self,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        *,
        deltas: bool = False,
        spans: bool = False,
        form: AnswerForm = PLAIN,
    ) -> RemoteAnswer:
        """What `submit` does without starting it. See `Reasoner.prepare`."""
        return RemoteAnswer(self, ask, settings, deltas=deltas, spans=spans, form=form)


class RemoteAnswer:
    """One question on its way. What can be refused without the server is refused here."""

    def __init__(
        self,
        reasoner: RemoteReasoner,
        ask: ReasoningRequest,
        settings: ReasoningSettings,
        *,
        deltas: bool,
        spans: bool = False,
        form: AnswerForm = PLAIN,
    ) -> None:
        self.reasoner = reasoner
        self.engine = reasoner.engine
        self.ask = ask
        self.settings = settings
        self.prompts = reasoner.prompts or prompts_for(ask.question)
        self.progress = Progress(deltas=deltas, spans=spans)
        if not ask.question.strip():
            raise InvalidRequestError("the question is empty; ask something")
        if settings.join == "reuse":
            raise InvalidRequestError(
                "join='reuse' goes on with the branches' own keys and values, and those are the "
                "server's; leave it out"
            )
        if form is not PLAIN:
            raise InvalidRequestError(
                "tools, schemas of the whole answer and log-probabilities need the model in this "
                "process; over a server, ask for plain answers"
            )
        self.given: Plan | None = None
        if ask.steps is not None and settings.mode == "parallel":
            self.given = given_plan(ask.steps, settings.max_branches)
        self.contract = branch_schema_of(settings.branch_schema, self.given)
        own = [step.temperature for step in ask.steps or ()]
        self.seed = request_seed(settings.seed, settings.temperature, *own)
        import langchain_pos.remote.client  # noqa: F401  # says which extra is missing

        self.engine.tokenizer_or_none  # noqa: B018  # loaded here, not on the loop

    def submit(self, caller: Hashable | None = None) -> RemoteRequest[ReasoningResult]:
        """Start it; whose turn it is, is the server's to say."""
        return self.engine.scheduler.submit(self.reason)

    # ------------------------------------------------------------------ the way

    async def reason(self, request: RemoteRequest[ReasoningResult]) -> ReasoningResult:
        """All stages in reading order; those of `reasoner.Answer.reason`."""
        connection = await self.engine.connect(self.reasoner.model)
        self.progress.begin(request, 0)  # each request's prompt is counted as the server tells it
        self.model_name = connection.model
        self.asker = Asker(
            self.engine, connection, self.settings, self.progress, request, self.seed
        )
        sequential = self.settings.mode == "sequential"
        prompts = [self._sequential_trunk()] if sequential else []
        prompts += [] if sequential else [self._sequential_trunk(), self._plan_trunk(None)]
        self.asker.share_out(prompts, self.given)
        if sequential:
            return await self.answer_sequentially(None)

        # Stage 1. A plan, or the reason why there is none.
        self.planner = RemotePlanner(self.asker)
        self.expander = RemoteExpander(self.asker, self.contract)
        self.concluder = RemoteConcluder(self.asker)
        with self.progress.stage("plan"):
            if self.given is None:
                self.progress.open("plan", [])
            plan, trunk, reason = await self.plan()
            self.progress.close(plan)
        if plan is None:
            return await self.answer_sequentially(reason)

        blocks: list[Block] = []
        while plan is not None:
            # Stage 2. All branches side by side.
            blocks.append(Block(plan=plan))
            bare = tuple(Block.model_construct(plan=block.plan) for block in blocks)
            self.progress.tell(ReasoningChunk(stage="plan", blocks=bare))
            with self.progress.stage("expand"):
                self.progress.open("expand", blocks)
                branches = await self.expander.expand(trunk, blocks)
            blocks[-1] = Block(plan=plan, branches=branches)
            self.progress.close(blocks[-1])
            if not self.settings.conclude:
                return self._result(tuple(blocks), Conclusion(""), concluded=False)

            # Stage 3. The conclusion. It may open a further block: back to stage 1.
            with self.progress.stage("conclude"):
                self.progress.open("conclude", blocks)
                trunk.text += join_text([(branch.title, branch.text) for branch in branches])
                may_open = len(blocks) < self.settings.max_blocks
                conclusion = await self.concluder.conclude(trunk, may_open=may_open)
                self.progress.close(conclusion)
            plan = None
            if conclusion.title is not None:
                with self.progress.stage("plan"):
                    self.progress.open("plan", blocks, conclusion.text)
                    plan = await self.plan_further(trunk, conclusion.text, conclusion.title)
                    self.progress.close(plan)
                if plan is None:
                    with self.progress.stage("conclude"):
                        self.progress.open("conclude", blocks, conclusion.text)
                        conclusion = await self.concluder.conclude_on(trunk, conclusion)
                        self.progress.close(conclusion)
        return self._result(tuple(blocks), conclusion)

    # ------------------------------------------------------------------ stage 1

    async def plan(self) -> tuple[Plan | None, TextTrunk, str | None]:
        """The caller's steps or the model's plan, and the text that the branches go on from."""
        if self.given is not None:
            trunk = self._plan_trunk(None)
            self.expander.lay_out(trunk, self.given)  # refuses what does not fit
            return self.given, trunk, None
        try:
            plan, trunk = await self.planner.plan(self._plan_trunk)
            if plan is not None:
                self.expander.lay_out(trunk, plan)
        except (PlanFormatError, ContextLengthError) as error:
            if self.settings.on_plan_failure == "raise":
                raise
            return None, self._plan_trunk(None), f"no valid plan: {error}"
        finally:
            self.progress.attempts = self.planner.attempts
        if plan is None:
            return None, trunk, "declined: the question does not fall into independent parts"
        if self.settings.decline_without_gain and (
            reason := no_gain(len(plan.steps), self.settings.max_branch_tokens)
        ):
            return None, trunk, reason
        return plan, trunk, None

    async def plan_further(self, trunk: TextTrunk, so_far: str, title: str) -> Plan | None:
        """The plan of a block that the conclusion has opened; None if it is none after all."""
        try:
            plan = await self.planner.plan_further(trunk, so_far, title)
            if plan is not None:
                self.expander.lay_out(trunk, plan)
        except (PlanFormatError, ContextLengthError):
            return None
        return plan

    # ------------------------------------------------------- the ordinary way

    async def answer_sequentially(self, reason: str | None) -> ReasoningResult:
        """One completion, as any model answers; `reason` says why it is not parallel."""
        trunk = self._sequential_trunk()
        self.progress.tell(
            ReasoningChunk(stage="conclude", mode="sequential", fallback_reason=reason)
        )
        budget = self.asker.budget
        stop = self.settings.stop
        sink = TextSink(
            self.progress.conclusion_text, stop=stop, restartable=not self.progress.deltas
        )
        call = Call(
            max_tokens=self.settings.max_sequential_tokens if budget is None else budget.sequential,
            temperature=self.settings.temperature,
            seed=derive_seed(self.seed, "sequential") >> 32,
            stop=stop,
        )
        with self.progress.stage("conclude"):
            self.progress.open("conclude", [])
            await self.asker.write(sink, trunk, call)
            text, ended = sink.close(), sink.finish_reason
        error = None if text else f"the model ended ({ended}) without any text"
        conclusion = Conclusion(text, "error" if error else ended, error)
        self.progress.close(conclusion)
        return self._result((), conclusion, fallback_reason=reason)

    # ---------------------------------------------------------------- the rest

    def _result(
        self,
        blocks: tuple[Block, ...],
        conclusion: Conclusion,
        fallback_reason: str | None = None,
        *,
        concluded: bool = True,
    ) -> ReasoningResult:
        result = ReasoningResult(
            question=self.ask.question,
            blocks=blocks,
            conclusion=conclusion.text,
            mode="parallel" if blocks else "sequential",
            fallback_reason=fallback_reason,
            finish_reason=conclusion.finish_reason,
            error=conclusion.error,
            concluded=concluded,
            model_name=self.model_name,
        )
        return self.progress.finish(result, self.asker.input_tokens)

    def _plan_trunk(self, wrong: str | None) -> TextTrunk:
        question, most = self.ask.question, self.settings.max_branches
        if wrong is None:
            text = self.prompts.for_plan(question, max_branches=most)
        else:
            text = self.prompts.for_retry(question, max_branches=most, error=wrong)
        if self.contract is not None:
            text += self.prompts.for_branch_schema(self.contract.json_schema)
        return self._trunk(text)

    def _sequential_trunk(self) -> TextTrunk:
        return self._trunk(self.prompts.for_sequential(self.ask.question))

    def _trunk(self, text: str) -> TextTrunk:
        messages = [*self.ask.messages[:-1], ("user", text)]
        self.progress.prompt(messages)
        steps = self.given.steps if self.given is not None else ()
        also = [part for step in steps for part in (step.title, step.prompt) if part]
        return self.asker.trunk(messages, also)
