"""Stage 2: a branch for each step of the plan, all written together.

A branch begins where the trunk ends, so it sees the question and what was said before the steps,
and nothing of the other branches (or, with `visibility="titles"`, their titles).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import ServerError
from langchain_pos.reasoning.budget import LEAST_BRANCH
from langchain_pos.reasoning.chat_template import THOUGHT, THOUGHT_END
from langchain_pos.reasoning.decoder import BranchTask
from langchain_pos.reasoning.stage import StageWriter
from langchain_pos.results.data import BranchResult

if TYPE_CHECKING:
    from langchain_pos.errors import ParallelReasoningError
    from langchain_pos.reasoning.decoder import Decoder, Trunk, Written
    from langchain_pos.reasoning.question import Question
    from langchain_pos.results.data import Block, Plan


class Layout(NamedTuple):
    """How the branches of a plan begin, and how long they may get.

    Attributes:
        seen: text after the trunk that all branches see: nothing (the paper), or the outline.
        openings: each branch's first text.
        budgets: tokens of each branch's body.
    """

    seen: str
    openings: list[str]
    budgets: list[int]


def lay_out(decoder: Decoder, question: Question, trunk: Trunk, plan: Plan) -> Layout:
    """What the branches see and how they begin, and the budget of each.

    Raises:
        ContextLengthError: there is no room for all of them.
    """
    settings, form = question.settings, question.form
    seen = form.outline(plan) if settings.visibility == "titles" else ""
    openings = [form.opening(plan, index) for index in range(len(plan.steps))]
    thinking = settings.max_branch_thinking_tokens if decoder.may_think else 0
    lengths = [decoder.tokens(trunk, opening, after=seen) + thinking for opening in openings]
    most = [step.max_tokens or settings.max_branch_tokens for step in plan.steps]
    written = question.progress.output_tokens + thinking * len(openings)
    # The caller's own steps are written in any case, however short they get.
    least = 1 if plan is question.given else LEAST_BRANCH
    budgets = decoder.budget.branches(trunk.count(seen), lengths, most, written, least=least)
    return Layout(seen, openings, budgets)


class Expander(StageWriter):
    """Has the branches of one question written."""

    async def expand(self, trunk: Trunk, blocks: list[Block]) -> tuple[BranchResult, ...]:
        """Write a branch for each step of the last block's plan.

        Args:
            trunk: what the branches stand on; left as it is.
            blocks: the last one holds the plan.

        Returns:
            the branches in the plan's order. One that failed says so, and the others are whole.

        Raises:
            ServerError: the server failed all of them.
        """
        plan = blocks[-1].plan
        layout = lay_out(self._decoder, self._question, trunk, plan)
        if self._settings.max_branch_thinking_tokens and self._decoder.may_think:
            layout = await self._thought(trunk, blocks, layout)
        results = [
            BranchResult(index=index, title=title) for index, title in enumerate(plan.titles)
        ]
        failures: dict[int, ParallelReasoningError] = {}

        def on_start(index: int) -> None:
            started = self._progress.now
            results[index] = results[index].model_copy(update={"started": started})
            self._progress.branch_start(blocks, index, layout.openings[index])

        def on_end(index: int, written: Written) -> None:
            results[index] = self._result(results[index], written)
            if written.failure is not None:
                failures[index] = written.failure
            self._progress.branch_end(blocks, results[index], written.passes)

        await self._decoder.write_branches(
            trunk,
            layout.seen,
            [self._task(blocks, index, layout) for index in range(len(results))],
            parallel=self._settings.max_parallel_branches,
            on_start=on_start,
            on_end=on_end,
        )
        if len(failures) == len(results) and isinstance(failures[0], ServerError):
            raise failures[0]  # what failed is what all of them need, and no branch
        return tuple(results)

    async def _thought(self, trunk: Trunk, blocks: list[Block], layout: Layout) -> Layout:
        """The same layout, after what each branch thinks before its body."""
        thoughts = [""] * len(layout.openings)

        def on_end(index: int, written: Written) -> None:
            thoughts[index] = written.text
            if written.text:
                self._progress.thought_text(f"\n{blocks[-1].plan.titles[index]}: {written.text}")

        tasks = [self._task(blocks, index, layout) for index in range(len(thoughts))]
        await self._decoder.write_branches(
            trunk,
            layout.seen,
            [
                replace(
                    task,
                    opening=f"{task.opening} {THOUGHT}\n",
                    max_tokens=self._settings.max_branch_thinking_tokens,
                    seed=derive_seed(task.seed, "thoughts"),
                    stop=(THOUGHT_END,),
                    schema=None,
                    strip=True,
                    end=None,
                    on_text=lambda _: None,
                )
                for task in tasks
            ],
            parallel=self._settings.max_parallel_branches,
            on_start=lambda _: None,
            on_end=on_end,
        )
        pairs = zip(layout.openings, thoughts, strict=True)
        return layout._replace(
            openings=[f"{begun} {THOUGHT}\n{own}\n{THOUGHT_END}\n" for begun, own in pairs]
        )

    def _task(self, blocks: list[Block], index: int, layout: Layout) -> BranchTask:
        step, settings = blocks[-1].plan.steps[index], self._settings
        seed = step.seed
        if seed is None:
            seed = derive_seed(self._seed, "branch", len(blocks), index)
        return BranchTask(
            opening=layout.openings[index],
            max_tokens=layout.budgets[index],
            temperature=settings.temperature if step.temperature is None else step.temperature,
            seed=seed,
            # In JSON, the form's marks and stop texts are text like any other.
            stop=() if self._schema else (*self._form.stop, *settings.stop, *step.stop),
            schema=self._schema,
            strip=self._form.strip if self._schema is None else False,
            end=self._form.entry_end(blocks[-1].plan) if self._schema is None else None,
            on_text=partial(self._progress.branch_text, blocks, index),
        )

    def _result(self, branch: BranchResult, written: Written) -> BranchResult:
        """What a branch has written, and what is wrong with it."""
        reason, error, parsed = written.finish_reason, None, None
        if written.failure is not None:
            reason, error = "error", str(written.failure)
        elif not written.text:  # never an empty answer as if it were one
            error = f"the branch ended ({reason}) without writing any text"
            reason = "error"
        elif self._schema is not None:
            parsed, error = self._schema.read(written.text, reason)
            if error is not None and reason == "stop":
                reason = "error"
            elif written.closed:
                reason = "length"
        return branch.model_copy(
            update={
                "text": written.text,
                "finish_reason": reason,
                "usage": written.usage,
                "ended": self._progress.now,
                "error": error,
                "parsed": parsed,
            }
        )
