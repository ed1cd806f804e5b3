"""Results, and the chunks of them streamed while they are written; both can display themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from langchain_pos.results.data import Block, BranchResult, ResultData, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from langchain_pos.results.timeline import SequentialEstimate


class ReasoningResult(ResultData):
    """The answer and everything that led to it.

    Attributes:
        question: as asked.
        blocks: the rounds of plan and branches; empty when answered sequentially.
        conclusion: the text after the last block; the whole answer when answered sequentially.
        mode: "parallel", or "sequential" if that was requested or no plan came about.
        fallback_reason: why a question meant for parallel was answered sequentially; beginning
            with "not answered: ", why the model declined to answer it at all.
        finish_reason: how the conclusion ended.
        error: what went wrong in the conclusion if `finish_reason` is "error"; the branches are
            complete all the same.
        concluded: False if only the branches were requested (`conclude=False`), so that there is
            no conclusion.
        usage: prompt tokens, and every token written in any stage.
        timings: wall-clock seconds by stage.
        forward_passes: by stage.
        drafts: tokens guessed ahead, and how many of them were accepted.
        plan_attempts: skeletons attempted; 0 if the caller gave the steps.
        peak_slots: most KV-cache slots that the request held at once, including shared ones, and
            running states as the slots that are as large.
        cached_tokens: prompt tokens that were not fed, because an earlier question began alike.
        model_name: folder or hub name of the model.
        thoughts: what a thinking model thought before it answered; no part of its text.
    """

    def __str__(self) -> str:
        """The answer as a reader takes it: preamble, steps, conclusion; no figures.

        A list in the model's own form is its `text`; the paper's marks are left out.
        """
        if self.plan is not None and self.plan.form == "native":
            return self.text
        parts = []
        for block in self.blocks:
            branches = [f"{branch.title}: {branch.text}" for branch in block.branches]
            parts += [block.plan.preamble, "\n".join(branches)]
        return "\n\n".join(part for part in [*parts, self.conclusion] if part)

    def sequential_estimate(self) -> SequentialEstimate | None:
        """What sequential decoding would have cost; None if answered that way, or untimed."""
        from langchain_pos.results.timeline import SequentialEstimate

        return SequentialEstimate.of(self)

    def pretty_print(self, console: Console | None = None) -> None:
        """Print plan, branches, conclusion, a timeline and the figures.

        Args:
            console: a rich console; by default, one on standard output.
        """
        from langchain_pos.results.terminal import pretty_print

        pretty_print(self, console)

    def plot_timeline(self) -> Figure:
        """A matplotlib figure of the stages and branches over time; needs `langchain-pos[plot]`.

        Raises:
            MissingExtraError: matplotlib is not installed.
            InvalidRequestError: the result holds no timings.
        """
        from langchain_pos.results.figures import plot_timeline

        return plot_timeline(self)

    def plot_mask(
        self,
        block: int = 0,
        *,
        granularity: Literal["token", "segment"] = "token",
        max_prompt_tokens: int | None = 16,
        max_branch_tokens: int | None = 6,
    ) -> Figure:
        """A matplotlib figure of the mask in stage 2; needs `langchain-pos[plot]`.

        See `langchain_pos.results.figures.plot_mask`.
        """
        from langchain_pos.results.figures import plot_mask

        return plot_mask(
            self,
            block,
            granularity=granularity,
            max_prompt_tokens=max_prompt_tokens,
            max_branch_tokens=max_branch_tokens,
        )

    def _repr_html_(self) -> str:
        from langchain_pos.results.rendering import to_html

        return to_html(self)

    def _repr_markdown_(self) -> str:
        from langchain_pos.results.rendering import to_markdown

        return to_markdown(self)


class ReasoningChunk(ReasoningResult):
    """A piece of a result, streamed while it is written.

    `first + second + …` over a whole stream has the fields of the result that `invoke` returns:
    a chunk is a `ReasoningResult` not yet complete. A chunk that opens another block turns the
    conclusion so far into that block's preamble.

    Attributes:
        stage: the stage that wrote it.
        branch: index of the branch that wrote it, in stage "expand".
        delta: the new text: raw skeleton in stage "plan", a branch's body in "expand", the
            conclusion in "conclude"; empty if the chunk carries something else.
    """

    stage: Stage = "plan"
    branch: int | None = None
    delta: str = ""

    def __add__(self, other: ReasoningChunk) -> ReasoningChunk:
        if not isinstance(other, ReasoningChunk):
            return NotImplemented
        newer = {name: getattr(other, name) for name in other.model_fields_set}
        newer["blocks"] = _merge_blocks(self.blocks, other.blocks)
        opens_block = len(other.blocks) > len(self.blocks)
        newer["conclusion"] = ("" if opens_block else self.conclusion) + other.conclusion
        newer["delta"] = self.delta + other.delta
        newer["thoughts"] = self.thoughts + other.thoughts
        return self.model_copy(update=newer)

    def result(self) -> ReasoningResult:
        """The sum so far as a plain `ReasoningResult`."""
        fields = set(ReasoningResult.model_fields)
        return ReasoningResult(**{name: getattr(self, name) for name in fields})


def _merge_blocks(left: tuple[Block, ...], right: tuple[Block, ...]) -> tuple[Block, ...]:
    """Merge the blocks of two chunks by place, their branches by index, concatenating texts."""
    merged = list(left)
    for place, block in enumerate(right):
        if place >= len(merged):
            merged.append(block)
            continue
        branches = {branch.index: branch for branch in merged[place].branches}
        for branch in block.branches:
            known = branches.get(branch.index)
            branches[branch.index] = branch if known is None else _merge_branch(known, branch)
        ordered = tuple(branches[index] for index in sorted(branches))
        merged[place] = Block(plan=block.plan, branches=ordered)
    return tuple(merged)


def _merge_branch(known: BranchResult, more: BranchResult) -> BranchResult:
    update: dict[str, Any] = {name: getattr(more, name) for name in more.model_fields_set}
    return known.model_copy(update={**update, "text": known.text + more.text})
