"""Stage 2 over HTTP: a request for each step of the plan, side by side.

All of them begin with the same text, the trunk, which a server with a prefix cache reads once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from langchain_pos.engine.completion import FinishReason
from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import ParallelReasoningError
from langchain_pos.reasoning.prompts import opening, outline_text
from langchain_pos.reasoning.skeleton import RETRY_TEMPERATURE
from langchain_pos.remote.asking import TextTrunk
from langchain_pos.remote.dialects import Call
from langchain_pos.remote.sinks import TextSink
from langchain_pos.results.data import STEP_MARK, Block, BranchResult, Plan

if TYPE_CHECKING:
    from langchain_pos.reasoning.branch_schema import BranchSchema
    from langchain_pos.remote.asking import Asker


class RemoteExpander:
    """Asks for the branches of one question.

    Args:
        asker: asks the server.
        contract: what every branch must be; None for free text.
    """

    def __init__(self, asker: Asker, contract: BranchSchema | None = None) -> None:
        self._asker = asker
        self._settings = asker.settings
        self._progress = asker.progress
        self._seed = asker.seed
        self._contract = contract

    async def expand(self, trunk: TextTrunk, blocks: list[Block]) -> tuple[BranchResult, ...]:
        """Ask for a branch for each step, side by side; in the plan's order.

        Raises:
            ServerError: none of them came through.
        """
        outline, budgets = self.lay_out(trunk, blocks[-1].plan)
        seen = TextTrunk(trunk.head, trunk.text + outline)
        slots = asyncio.Semaphore(self._settings.max_parallel_branches)
        failures: dict[int, ParallelReasoningError] = {}

        async def branch(index: int) -> BranchResult:
            async with slots:
                return await self._branch(seen, blocks, index, budgets[index], failures)

        tasks = [asyncio.create_task(branch(index)) for index in range(len(budgets))]
        try:
            branches = await asyncio.gather(*tasks)
        finally:  # cancelled; or one has failed in a way that is not its own
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if len(failures) == len(tasks):
            raise failures[0]
        return tuple(branches)

    async def _branch(
        self,
        seen: TextTrunk,
        blocks: list[Block],
        index: int,
        budget: int,
        failures: dict[int, ParallelReasoningError],
    ) -> BranchResult:
        """One branch. What goes wrong with it stays in it.

        Where the server holds nothing to a schema, one that is not met is tried again, and nothing
        is told before it is.
        """
        self._progress.branch_start(blocks, index)
        step = blocks[-1].plan.steps[index]
        tell = partial(self._progress.branch_text, blocks, index)
        again = self._contract is not None and not self._asker.constrained
        branch = BranchResult(index=index, title=step.title, started=self._progress.now)
        # In JSON, `####` and stop texts are text like any other.
        stop = () if self._contract else (STEP_MARK, *self._settings.stop, *step.stop)
        seed = step.seed
        if seed is None:
            seed = derive_seed(self._seed, "branch", len(blocks), index) >> 32
        temperature = self._settings.temperature if step.temperature is None else step.temperature

        async def write(tries: int) -> BranchResult:
            sink = TextSink(
                None if again else tell,
                stop=stop,
                strip=self._contract is None,
                restartable=not self._progress.deltas,
            )
            call = Call(
                max_tokens=budget,
                temperature=max(temperature, RETRY_TEMPERATURE) if tries else temperature,
                seed=seed + tries,
                stop=stop,
                json_schema=self._contract.json_schema if self._contract else None,
            )
            error: str | None = None
            try:
                await self._asker.write(sink, seen, call, opening(step.title, step.prompt))
            except ParallelReasoningError as failure:
                failures[index] = failure
                error = str(failure)
            return self._read(branch, sink, error)

        for tries in range(self._settings.max_plan_attempts if again else 1):
            spent = branch.usage
            branch = await write(tries)
            branch = branch.model_copy(update={"usage": spent + branch.usage})
            if branch.error is None or index in failures or branch.finish_reason == "length":
                break
        if again and branch.text:
            tell(branch.text)
        branch = branch.model_copy(update={"ended": self._progress.now})
        self._progress.branch_end(blocks, branch, 0)
        return branch

    def _read(self, branch: BranchResult, sink: TextSink, error: str | None) -> BranchResult:
        """What a branch has written, and what is wrong with it."""
        text, parsed = sink.close(), None
        reason: FinishReason = sink.finish_reason if error is None else "error"
        if error is None and not text:  # never an empty answer as if it were one
            error = f"the branch ended ({reason}) without writing any text"
            reason = "error"
        elif error is None and self._contract is not None:
            parsed, error = self._contract.read(text, reason)
            if error is not None and reason == "stop":
                reason = "error"
        return branch.model_copy(
            update={
                "text": text,
                "finish_reason": reason,
                "usage": sink.usage,
                "error": error,
                "parsed": parsed,
            }
        )

    def lay_out(self, trunk: TextTrunk, plan: Plan) -> tuple[str, list[int]]:
        """What the branches see besides the trunk, and the budget of each.

        Raises:
            ContextLengthError: there is no room for all of them.
        """
        outline = outline_text(plan.titles) if self._settings.visibility == "titles" else ""
        wanted = [step.max_tokens or self._settings.max_branch_tokens for step in plan.steps]
        if self._asker.budget is None:
            return outline, wanted
        openings = [self._asker.encode(opening(step.title, step.prompt)) for step in plan.steps]
        base = self._asker.length(trunk, outline)
        return outline, self._asker.budget.branches(base, openings, wanted)
