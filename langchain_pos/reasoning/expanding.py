"""Stage 2: a branch for each step of the plan, all written together.

A branch begins where the trunk ends, so it sees the question and what was said before the steps,
and nothing of the other branches; or their titles, or the first of them, which is written before
the others then (`visibility`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from langchain_pos.engine.seeds import derive_seed
from langchain_pos.errors import ContextLengthError, ServerError
from langchain_pos.reasoning.budget import LEAST_BRANCH
from langchain_pos.reasoning.chat_template import THOUGHT, THOUGHT_END
from langchain_pos.reasoning.decoder import BranchTask
from langchain_pos.reasoning.first_branch import EXAMPLE, Ahead
from langchain_pos.reasoning.stage import StageWriter
from langchain_pos.results.data import Block, BranchResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_pos.errors import ParallelReasoningError
    from langchain_pos.reasoning.decoder import Decoder, Trunk, Written
    from langchain_pos.reasoning.first_branch import First
    from langchain_pos.reasoning.form import OpenedStep
    from langchain_pos.reasoning.question import Question
    from langchain_pos.results.data import Plan


_ENTRIES = 5
"""For so many entries such as the first one there must be room, or it is not written ahead."""


class Layout(NamedTuple):
    """How the branches of a plan begin, and how long they may get.

    Attributes:
        seen: text after the trunk that all branches see: nothing (the paper), the outline, or the
            first step, whose body is there.
        openings: each branch's first text.
        budgets: tokens of each branch's body.
    """

    seen: str
    openings: list[str]
    budgets: list[int]


def lay_out(
    decoder: Decoder,
    question: Question,
    trunk: Trunk,
    plan: Plan,
    first: str | None = None,
    uncounted: int = 0,
) -> Layout:
    """What the branches see and how they begin, and the budget of each.

    Args:
        decoder: counts tokens.
        question: what is asked, and its bounds.
        trunk: what the branches stand on.
        plan: the steps.
        first: the first step's body, if it is finished; then the others are laid out, which see it
            unless it is empty.
        uncounted: tokens to add to those of the answer so far.

    Raises:
        ContextLengthError: there is no room for all of them.
    """
    settings, form = question.settings, question.form
    seen = form.outline(plan) if settings.visibility == "titles" else ""
    if first:
        seen = plan.entry(0, first) + plan.between
    steps = list(enumerate(plan.steps))[first is not None :]
    openings = [form.opening(plan, index) for index, _ in steps]
    thinking = settings.max_branch_thinking_tokens if decoder.may_think else 0
    lengths = [decoder.tokens(trunk, opening, after=seen) + thinking for opening in openings]
    most = [step.max_tokens or settings.max_branch_tokens for _, step in steps]
    written = question.progress.output_tokens + uncounted + thinking * len(openings)
    # The caller's own steps are written in any case, however short they get.
    given = question.given is not None and plan.steps is question.given.steps
    least = 1 if given else LEAST_BRANCH
    budgets = decoder.budget.branches(trunk.count(seen), lengths, most, written, least=least)
    return Layout(seen, openings, budgets)


class Expander(StageWriter):
    """Has the branches of one question written."""

    def first(self, trunk: Trunk, opened: OpenedStep, blocks: list[Block]) -> Ahead | None:
        """The branch of the step that has just opened a block, if it may be an example.

        Args:
            trunk: what it stands on.
            opened: the step.
            blocks: those before.
        """
        settings, plan = self._settings, self._form.alone(opened)
        apart = settings.join == "reuse" or settings.max_branch_thinking_tokens
        wanted = settings.visibility == "first" or (settings.visibility == "auto" and not apart)
        if plan is None or not wanted:
            return None
        opening = self._form.opening(plan, 0)
        entries = min(_ENTRIES, settings.max_branches)
        try:
            share, *_ = self._decoder.budget.branches(
                trunk.count(),
                [self._decoder.tokens(trunk, opening)] * entries,
                [min(EXAMPLE, settings.max_branch_tokens)] * entries,
                self._progress.output_tokens,
                least=EXAMPLE // 3,
            )
        except ContextLengthError:
            return None
        task = self._task([*blocks, Block(plan=plan)], 0, opening, settings.max_branch_tokens)
        # There is no plan yet, whose branch it could be.
        return Ahead(replace(task, on_text=lambda piece: None), share)

    async def expand(
        self, trunk: Trunk, blocks: list[Block], first: First | None = None
    ) -> tuple[BranchResult, ...]:
        """Write a branch for each step of the last block's plan.

        Args:
            trunk: what the branches stand on; left as it is.
            blocks: the last one holds the plan.
            first: its first branch, as far as it is written.

        Returns:
            the branches in the plan's order. One that failed says so, and the others are whole.

        Raises:
            ServerError: the server failed all of them.
        """
        plan = blocks[-1].plan
        results = [
            BranchResult(index=index, title=title) for index, title in enumerate(plan.titles)
        ]
        failures: dict[int, ParallelReasoningError] = {}

        def start(index: int, reads: str, started: float) -> None:
            results[index] = results[index].model_copy(update={"started": started})
            self._progress.branch_start(blocks, index, reads, started)

        def end(index: int, written: Written, ended: float) -> None:
            results[index] = self._result(results[index], written, ended)
            if written.failure is not None:
                failures[index] = written.failure
            self._progress.branch_end(blocks, results[index], written.passes)

        async def write(layout: Layout, indices: Sequence[int]) -> None:
            if self._settings.max_branch_thinking_tokens and self._decoder.may_think:
                layout = await self._thought(trunk, blocks, layout)
            pieces = zip(indices, layout.openings, layout.budgets, strict=False)
            tasks = [self._task(blocks, *piece) for piece in pieces]
            if first is not None and not indices[0]:
                tasks[0] = replace(
                    tasks[0],
                    goes_on=True,
                    max_tokens=max(tasks[0].max_tokens, first.tokens + 1),
                )

            def on_start(at: int) -> None:
                if not tasks[at].goes_on:
                    start(indices[at], layout.seen + layout.openings[at], self._progress.now)

            await self._decoder.write_branches(
                trunk,
                layout.seen,
                tasks,
                parallel=self._settings.max_parallel_branches,
                on_start=on_start,
                on_end=lambda at, written: end(indices[at], written, self._progress.now),
            )

        done = 0
        if first is not None:
            start(0, self._form.opening(plan, 0), first.started)
            if not first.written.unfinished:
                self._progress.output_tokens += first.tokens
                self._progress.branch_text(blocks, 0, first.written.text)
                end(0, first.written, first.ended)
                done = 1
        if plan.first_seen and not done:
            await write(lay_out(self._decoder, self._question, trunk, plan), range(1))
            done = 1
        shown = plan.first_seen and results[0].error is None
        seen = (results[0].text if shown else "") if done else None
        layout = lay_out(self._decoder, self._question, trunk, plan, seen)
        await write(layout, range(done, len(results)))
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

        pieces = zip(range(len(thoughts)), layout.openings, layout.budgets, strict=True)
        tasks = [self._task(blocks, *piece) for piece in pieces]
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

    def _task(self, blocks: list[Block], index: int, opening: str, max_tokens: int) -> BranchTask:
        plan, settings = blocks[-1].plan, self._settings
        step = plan.steps[index]
        seed = step.seed
        if seed is None:
            seed = derive_seed(self._seed, "branch", len(blocks), index)
        return BranchTask(
            opening=opening,
            max_tokens=max_tokens,
            temperature=settings.temperature if step.temperature is None else step.temperature,
            seed=seed,
            # In JSON, the form's marks and stop texts are text like any other.
            stop=() if self._schema else (*self._form.stop, *settings.stop, *step.stop),
            schema=self._schema,
            strip=self._form.strip(plan, index) if self._schema is None else False,
            end=self._form.entry_end(plan) if self._schema is None else None,
            on_text=partial(self._progress.branch_text, blocks, index),
        )

    def _result(self, branch: BranchResult, written: Written, ended: float) -> BranchResult:
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
                "ended": ended,
                "error": error,
                "parsed": parsed,
            }
        )
