"""Stage 2: a branch for each step of the plan, all decoded together.

A branch is forked where the trunk ends, so it sees the question and what was said before the
steps, and nothing of the other branches (or, with `visibility="titles"`, their titles). One that
has ended is no longer fed, and one that waits takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.decoding.drafts import PromptLookup
from langchain_pos.engine.decoding.sequence import Feed, decode
from langchain_pos.engine.sampling import SamplingParams, derive_seed
from langchain_pos.reasoning.branch_schema import Closer
from langchain_pos.reasoning.prompts import opening, outline_text
from langchain_pos.results.data import STEP_MARK, Block, BranchResult, Plan, Step

if TYPE_CHECKING:
    from langchain_pos.engine.decoding.sequence import DecodingSequence, Steps
    from langchain_pos.engine.engine import Engine
    from langchain_pos.local.trunk import Trunk
    from langchain_pos.reasoning.branch_schema import BranchSchema
    from langchain_pos.reasoning.budget import Budget
    from langchain_pos.reasoning.progress import Progress
    from langchain_pos.reasoning.settings import ReasoningSettings


class Expanded(NamedTuple):
    """What stage 2 has made.

    Attributes:
        branches: in the plan's order.
        grown: how they were decoded, in the same order, where the conclusion will reuse them;
            otherwise nothing, and their slots are free.
    """

    branches: tuple[BranchResult, ...]
    grown: list[DecodingSequence]


class Expander:
    """Decodes the branches of one request.

    Args:
        engine: decodes.
        settings: bounds and stop sequences.
        sampling: how tokens are chosen, where a step does not say.
        seed: the request's seed.
        budget: what fits.
        progress: is told the branches' text, and counts the tokens.
        contract: what every branch must be; None for free text.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ReasoningSettings,
        sampling: SamplingParams,
        seed: int,
        budget: Budget,
        progress: Progress,
        contract: BranchSchema | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._sampling = sampling
        self._seed = seed
        self._budget = budget
        self._progress = progress
        self._contract = contract
        self._constraint: Constraint | None = None
        if contract is not None:
            self._constraint = Constraint("json_schema", contract.json_schema)
            engine.constraints.state(self._constraint)  # compiled here, before any work

    def expand(self, trunk: Trunk, blocks: list[Block]) -> Steps[Expanded]:
        """Fork a branch for each step at the trunk's end, and decode them together.

        Args:
            trunk: what the branches grow on; left as it is.
            blocks: the last one holds the plan.
        """
        steps = blocks[-1].plan.steps
        # 1. What a branch sees besides the trunk, how it opens, and how long it may get.
        outline, openings, budgets = self.lay_out(trunk, blocks[-1].plan)
        seen = [*trunk.token_ids, *outline]
        parallel = self._budget.parallel(
            len(seen), openings, budgets, self._settings.max_parallel_branches
        )

        lookup = PromptLookup(seen) if self._settings.drafts else None

        # 2. A sequence for each step, made when its turn comes: one that waits holds no slots.
        results = [BranchResult(index=index, title=step.title) for index, step in enumerate(steps)]
        running: dict[DecodingSequence, tuple[int, float, Closer | None]] = {}
        grown: dict[int, DecodingSequence] = {}

        def sequences() -> Iterator[DecodingSequence]:
            for index, (ids, step) in enumerate(zip(openings, steps, strict=True)):
                seed, closer = step.seed, None
                if seed is None:
                    seed = derive_seed(self._seed, "branch", len(blocks), index)
                if self._contract is not None:
                    closer = Closer(budgets[index], trunk.encode)
                self._progress.branch_start(blocks, index)
                sequence = self._engine.sequence(
                    self._engine.fork(trunk.segment, at=trunk.end + len(outline)),
                    ids,
                    max_new_tokens=budgets[index],
                    sampling=self._sampling_of(step),
                    seed=seed,
                    # In JSON, `####` and stop texts are text like any other.
                    stop=() if closer else (STEP_MARK, *self._settings.stop, *step.stop),
                    constraint=self._constraint,
                    strip=closer is None,
                    context_ids=seen,
                    on_text=partial(self._progress.branch_text, blocks, index),
                    on_token=closer,
                    lookup=lookup,
                )
                running[sequence] = index, self._progress.now, closer
                yield sequence

        def ended(sequence: DecodingSequence) -> None:
            index, started, closer = running.pop(sequence)
            if self._settings.join == "reuse" and self._settings.conclude:
                grown[index] = sequence
            else:
                self._engine.release(sequence.segment)
            results[index] = self._branch(index, steps[index].title, sequence, started, closer)
            self._progress.output_tokens += len(sequence.token_ids)
            self._progress.drafts += sequence.drafts
            self._progress.branch_end(blocks, results[index], sequence.forward_passes)

        # 3. What of the trunk is not fed yet goes along with the openings, in the same pass.
        unfed = [*trunk.unfed, *outline]
        first = [Feed(trunk.segment, unfed)] if unfed else []
        yield from decode(sequences(), first=first, max_parallel=parallel, on_end=ended)
        self._engine.truncate(trunk.segment, trunk.end)
        return Expanded(tuple(results), [grown[index] for index in sorted(grown)])

    def lay_out(self, trunk: Trunk, plan: Plan) -> tuple[list[int], list[list[int]], list[int]]:
        """What the branches see besides the trunk, their openings, and the budget of each.

        Besides the trunk they see nothing (the paper), or the outline.

        Raises:
            ContextLengthError: there is no room for all of them.
        """
        outline: list[int] = []
        if self._settings.visibility == "titles":
            outline = trunk.encode(outline_text(plan.titles))
        openings = [
            trunk.encode(opening(step.title, step.prompt), lead=not outline) for step in plan.steps
        ]
        base = len(trunk.token_ids) + len(outline)
        wanted = [step.max_tokens or self._settings.max_branch_tokens for step in plan.steps]
        return outline, openings, self._budget.branches(base, openings, wanted)

    def _sampling_of(self, step: Step) -> SamplingParams:
        if step.temperature is None:
            return self._sampling
        return replace(self._sampling, temperature=step.temperature)

    def _branch(
        self,
        index: int,
        title: str,
        sequence: DecodingSequence,
        started: float,
        closer: Closer | None,
    ) -> BranchResult:
        done = sequence.completion()
        reason, error, parsed = done.finish_reason, done.error, None
        if closer is not None and closer.closed:
            reason = "length"
        if self._contract is not None and error is None and done.text:
            parsed, error = self._contract.read(done.text, done.finish_reason)
            if error is not None and reason == "stop":
                reason = "error"
        if not done.text and error is None:  # never an empty answer as if it were one
            reason, error = "error", f"the branch ended ({reason}) without writing any text"
        return BranchResult(
            index=index,
            title=title,
            text=done.text,
            finish_reason=reason,
            usage=done.usage,
            started=started,
            ended=self._progress.now,
            error=error,
            parsed=parsed,
        )
