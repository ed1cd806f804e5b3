"""A decoder over this package's own engine; its scheduler steps the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

from langchain_pos.engine.completion import TokenUsage
from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.decoding.drafts import PromptLookup
from langchain_pos.engine.decoding.sequence import Feed, decode, feed
from langchain_pos.engine.forest.state import NO_REUSE
from langchain_pos.engine.sampling import SamplingParams
from langchain_pos.engine.scheduler.scheduler import SHARED
from langchain_pos.engine.tokenization.text import TextStream
from langchain_pos.errors import (
    ContextLengthError,
    InvalidRequestError,
    NonFiniteLogitsError,
    OutOfSlotsError,
)
from langchain_pos.local.joining import reuse
from langchain_pos.local.outlines import OutlineInProgress
from langchain_pos.local.own_text import OwnText, line_after
from langchain_pos.local.trunk import LocalTrunk
from langchain_pos.reasoning.branch_schema import Closer
from langchain_pos.reasoning.chat_template import encode_prompt, may_think, thinks
from langchain_pos.reasoning.decoder import Written

if TYPE_CHECKING:
    from langchain_pos.engine.decoding.sequence import DecodingSequence
    from langchain_pos.engine.engine import Engine
    from langchain_pos.engine.forest.slots import SlotPool
    from langchain_pos.engine.scheduler.pending import Pending
    from langchain_pos.engine.scheduler.request import Request
    from langchain_pos.errors import ParallelReasoningError
    from langchain_pos.reasoning.budget import Budget
    from langchain_pos.reasoning.decoder import (
        BranchTask,
        Decoder,
        Outline,
        Passage,
        Trunk,
    )
    from langchain_pos.reasoning.prompts import Messages
    from langchain_pos.reasoning.question import Question
    from langchain_pos.results.result import ReasoningResult


_END_TOKENS = 16
"""Of a prompt, in which the mark that opens a thought lies if there is one."""


class _Branch(NamedTuple):
    sequence: DecodingSequence
    closer: Closer | None


class LocalDecoder:
    """Decodes for one question; see `reasoning.decoder.Decoder`.

    Args:
        engine: the model.
        question: to answer. Its grammars are compiled here, while others decode.
    """

    model_name = ""

    def __init__(self, engine: Engine, question: Question) -> None:
        self.budget: Budget
        self.input_tokens = 0
        self._engine = engine
        self._settings = question.settings
        self._options = question.options
        forest = engine.forward.forest
        if forest.keeps_states and self._settings.join == "reuse":
            raise InvalidRequestError(NO_REUSE)
        self._at_once, self._slots = _share_out(
            forest.pool, self._settings.max_parallel_branches, engine.context_length
        )
        self._progress = question.progress
        self._sampling = SamplingParams(
            temperature=self._settings.temperature,
            top_k=self._settings.top_k,
            top_p=self._settings.top_p,
            min_p=self._settings.min_p,
            repetition_penalty=self._settings.repetition_penalty,
        )
        self._schema: Constraint | None = None
        if question.schema is not None:
            self._schema = Constraint("json_schema", question.schema.json_schema)
        for constraint in (self._schema, self._options.constraint):
            if constraint is not None:
                engine.constraints.state(constraint)
        self._prompts: dict[str, list[int]] = {}
        self._request: Request[ReasoningResult]  # from `start` on
        self._branches: list[DecodingSequence] = []  # of the last block, for a join that reuses
        self._begun: _Branch | None = None  # beside a skeleton, and not finished there

    # ------------------------------------------------------------------- its size

    @property
    def may_think(self) -> bool:
        """See `Decoder`."""
        off = self._settings.enable_thinking is False or self._options.prefilled
        return not off and may_think(self._engine.tokenizer)

    @property
    def limit(self) -> int:
        """See `Decoder`: the model's positions, or the engine's slots if fewer."""
        return min(self._engine.context_length or self._slots, self._slots)

    @property
    def passes(self) -> int:
        """See `Decoder`."""
        return self._request.passes

    @property
    def peak_slots(self) -> int:
        """See `Decoder`."""
        return self._request.peak_slots

    @property
    def cached_tokens(self) -> int:
        """See `Decoder`."""
        return self._request.cached_tokens

    def too_long(self, prompt: int, room: int) -> ParallelReasoningError:
        """See `Decoder`."""
        given = f"the prompt has {prompt} tokens, and {room} must be left for the answer"
        if self.limit == self._engine.context_length:
            return ContextLengthError(
                f"{given}; the model has {self.limit} positions. Shorten the question, or use a "
                "model with a longer context"
            )
        beside = ""
        if self._engine.forward.forest.keeps_states:
            beside = f" beside the states of {1 + self._at_once} segments"
        return OutOfSlotsError(
            f"{given}; the engine may hold {self.limit} KV-cache slots{beside}. Shorten the "
            "question, or raise max_slots"
        )

    def prompt_tokens(self, messages: Messages) -> int:
        """See `Decoder`."""
        return len(self.encode(messages))

    def tokens(self, trunk: Trunk, text: str, *, after: str = "") -> int:
        """See `Decoder`."""
        return len(_local(trunk).encode(text, after=after))

    def encode(self, messages: Messages) -> list[int]:
        """The tokens of a prompt; see `prompt_tokens`."""
        text = messages[-1][1]
        if text not in self._prompts:
            if self._options.encode is not None:
                self._prompts[text] = self._options.encode(text)
            else:
                self._prompts[text] = encode_prompt(
                    self._engine.tokenizer, messages, self._settings.enable_thinking
                )
        return self._prompts[text]

    # -------------------------------------------------------------------- writing

    async def start(self, pending: Pending[ReasoningResult]) -> None:
        """See `Decoder`."""
        self._request = cast("Request[ReasoningResult]", pending)

    def open(self, messages: Messages) -> LocalTrunk:
        """See `Decoder`. Nothing is fed yet."""
        before = list(self._request.ledger.segments)
        self._begun = None
        token_ids = self.encode(messages)
        root = self._engine.scheduler.root(self._request, token_ids)
        for segment in before:  # after the new root exists: what they share is not parked
            self._engine.release(segment)
        self.input_tokens += len(token_ids)
        self._progress.has_read(len(token_ids))
        tokenizer, forest = self._engine.tokenizer, self._engine.forward.forest
        thinking: bool | None = False
        if self.may_think:
            thinking = thinks(str(tokenizer.decode(token_ids[-_END_TOKENS:])))
        return LocalTrunk(tokenizer, forest, root, list(token_ids), thinks=thinking)

    async def write_outline(self, trunk: Trunk, outline: Outline) -> Written:
        """See `Decoder`. The grammar forces its form, the outline's bounds its length."""
        if outline.list_began is not None:
            aside = _local(outline.list_began).copy()
            aside.segment = self._engine.fork(aside.segment, at=aside.end)
            aside.settle(outline.skeleton.so_far)
            try:
                return await self.write_outline(aside, replace(outline, list_began=None))
            finally:
                self._engine.release(aside.segment)
        self._drop()
        trunk = _local(trunk)
        where = len(trunk.token_ids)
        begun = OutlineInProgress(self._engine, outline)
        skeleton = begun.sequence(
            trunk,
            self._to_feed(trunk, outline.skeleton.begin),
            self._sampling,
            drafts=self._settings.drafts,
        )
        sequences, first = [skeleton], None
        if outline.first is not None:
            lookup = PromptLookup(trunk.token_ids) if self._settings.drafts else None
            opening = trunk.encode(outline.first.opening)
            first = self._begin(outline.first, opening, trunk, trunk.token_ids, lookup)
            sequences.append(first.sequence)

        wait = outline.most

        def ended(sequence: DecodingSequence) -> None:
            nonlocal wait
            if first is None:
                return
            if sequence is first.sequence:
                self._engine.release(sequence.segment)
                self._count(sequence)
                if sequence.finish_reason != "cancelled":
                    outline.on_first(self._branch_written(first))
            elif first.sequence.finish_reason is None:
                wait = 0 if sequence.error is not None else min(wait, outline.wait(written()))
                if not wait:
                    first.sequence.finish("cancelled")  # it is nobody's example

        def waited_for(sequence: DecodingSequence) -> bool:
            return skeleton.finish_reason is not None and len(sequence.token_ids) >= wait

        def written() -> Written:
            return begun.whole(self._written(skeleton, where))

        try:
            await decode(sequences, on_end=ended, enough=waited_for)
        finally:
            self._count(skeleton)
        if first is not None and first.sequence.finish_reason is None:
            self._begun = first
            self._progress.output_tokens += len(first.sequence.token_ids)
            text, usage = first.sequence.text, _usage(first.sequence)
            outline.on_first(Written(text, text, "length", usage, unfinished=True))
        self._engine.truncate(trunk.segment, skeleton.end_of_seen)
        if skeleton.error is not None:
            raise NonFiniteLogitsError(skeleton.error)
        return written()

    async def write_branches(
        self,
        trunk: Trunk,
        seen: str,
        tasks: Sequence[BranchTask],
        *,
        parallel: int,
        on_start: Callable[[int], None],
        on_end: Callable[[int, Written], None],
    ) -> None:
        """See `Decoder`.

        A branch that has ended is no longer fed, and a waiting one takes its place at once; a
        waiting branch holds no slots.
        """
        trunk = _local(trunk)
        outline = trunk.encode(seen) if seen else []
        openings = [trunk.encode(task.opening, after=seen) for task in tasks]
        known = [*trunk.token_ids, *outline]
        fit = self.budget.parallel(
            len(known),
            list(map(len, openings)),
            [task.max_tokens for task in tasks],
            min(parallel, self._at_once),
        )
        lookup = PromptLookup(known) if self._settings.drafts else None
        keeps = self._settings.join == "reuse" and self._settings.conclude
        running: dict[DecodingSequence, tuple[int, _Branch]] = {}
        self._branches = []

        def sequences() -> Iterator[DecodingSequence]:
            for index, (task, opening) in enumerate(zip(tasks, openings, strict=True)):
                on_start(index)
                if task.goes_on and self._begun is not None:
                    branch = self._take_up(self._begun, task)
                else:
                    branch = self._begin(task, opening, trunk, known, lookup)
                running[branch.sequence] = index, branch
                if keeps:
                    self._branches.append(branch.sequence)
                yield branch.sequence

        def ended(sequence: DecodingSequence) -> None:
            index, branch = running.pop(sequence)
            if not keeps:
                self._engine.release(sequence.segment)
            self._count(sequence)
            on_end(index, self._branch_written(branch))

        # The part of the trunk not fed yet goes along with the openings, in the same pass.
        unfed = [*trunk.unfed, *outline]
        first = [Feed(trunk.segment, unfed)] if unfed else []
        await decode(sequences(), first=first, max_parallel=fit, on_end=ended)
        self._engine.truncate(trunk.segment, trunk.end)

    def _begin(
        self,
        task: BranchTask,
        opening: Sequence[int],
        trunk: LocalTrunk,
        known: Sequence[int],
        lookup: PromptLookup | None,
    ) -> _Branch:
        """A branch after the trunk, and after what of `known` all branches see after that."""
        closer = None
        if task.schema is not None:
            closer = Closer(task.max_tokens, trunk.encode)
        sequence = self._engine.sequence(
            self._engine.fork(trunk.segment, at=len(known) - trunk.shift),
            opening,
            max_new_tokens=task.max_tokens,
            sampling=replace(self._sampling, temperature=task.temperature),
            seed=task.seed,
            stop=task.stop,
            constraint=self._schema if task.schema is not None else None,
            strip=task.strip,
            end=task.end,
            context_ids=known,
            on_text=task.on_text,
            on_token=closer,
            lookup=lookup,
        )
        return _Branch(sequence, closer)

    def _take_up(self, branch: _Branch, task: BranchTask) -> _Branch:
        """The branch that was left unfinished, with the budget that the plan gives it."""
        self._begun = None
        if branch.closer is not None:
            branch.closer.budget = task.max_tokens
        branch.sequence.go_on(task.max_tokens, task.on_text)
        return branch

    def _drop(self) -> None:
        """What was left unfinished is of no use: no plan came of its skeleton."""
        if self._begun is not None:
            self._engine.release(self._begun.sequence.segment)
            self._begun = None

    def _branch_written(self, branch: _Branch) -> Written:
        closed = branch.closer is not None and branch.closer.closed
        return replace(self._written(branch.sequence), closed=closed)

    def join(self, trunk: Trunk, joined: str, tail: str, bodies: Sequence[str]) -> None:
        """See `Decoder`. With `join="reuse"`, the branches are not fed again."""
        trunk = _local(trunk)
        if self._branches:
            reuse(self._engine, trunk, joined, tail, bodies, self._branches)
            self._branches = []
        else:
            trunk.settle(joined)

    async def write(self, trunk: Trunk, passage: Passage) -> Written:
        """See `Decoder`."""
        self._drop()
        trunk, constraint = _local(trunk), passage.options.constraint
        lead = ""
        if passage.new_line and constraint is None:
            lead = trunk.hold_back(passage.stop)
            grammar = line_after(lead, needed=passage.needed, not_first=passage.not_first)
            constraint = Constraint("ebnf", grammar)
        own = OwnText(lead, passage.on_text, strip=passage.strip)
        where, unfed = len(trunk.token_ids), self._to_feed(trunk)
        context = trunk.fed
        sequence = self._engine.sequence(
            trunk.segment,
            unfed,
            max_new_tokens=passage.max_tokens + bool(lead),
            sampling=self._sampling,
            seed=passage.seed,
            stop=passage.stop,
            strip=passage.strip and not lead,
            first_step=passage.first_token,
            constraint=constraint,
            context_ids=context,
            on_text=own.push,
            lookup=PromptLookup(context) if self._settings.drafts else None,
            logprobs=passage.options.logprobs,
        )
        first, trunk.feeds = trunk.feeds, []
        opened = None
        try:
            while sequence.finish_reason is None and opened is None:
                *_, sampled = await feed([*first, sequence.feed()])
                first = []
                sequence.accept(sampled)
                text = own.of(sequence.text)
                if passage.opened is not None and sequence.finish_reason is None:
                    opened = passage.opened(text)
        finally:
            self._count(sequence)
        self._engine.truncate(trunk.segment, sequence.end_of_seen)
        usage = _usage(sequence)
        if lead and sequence.token_ids:  # counted when it was written first
            self._progress.output_tokens -= 1
            usage = replace(usage, output_tokens=usage.output_tokens - 1)
        if opened is None:
            written = replace(self._written(sequence, where), usage=usage)
            return replace(written, text=own.of(written.text))
        return Written(
            text=text,
            raw=self._raw(trunk, sequence.token_ids),
            finish_reason="stop",
            usage=usage,
            passes=sequence.forward_passes,
            token_ids=tuple(sequence.token_ids),
            opened=opened,
            own=len(lead),
            where=where,
        )

    # -------------------------------------------------------------------- internals

    def _to_feed(self, trunk: LocalTrunk, text: str = "") -> list[int]:
        """What of a trunk and a text after it is not read; if all is, the last token once more."""
        more = trunk.encode(text) if text else []
        if not trunk.unfed and not more:
            self._engine.truncate(trunk.segment, trunk.segment.end - 1)
        return [*trunk.unfed, *more]

    def _raw(self, trunk: LocalTrunk, token_ids: Sequence[int]) -> str:
        stream = TextStream(self._engine.tokenizer, trunk.token_ids)
        return "".join(map(stream.decode, token_ids))

    def _count(self, sequence: DecodingSequence) -> None:
        self._progress.output_tokens += len(sequence.token_ids)
        self._progress.drafts += sequence.drafts

    def _written(self, sequence: DecodingSequence, where: int | None = None) -> Written:
        done = sequence.completion()
        failure = None if done.error is None else NonFiniteLogitsError(done.error)
        return Written(
            text=done.text,
            raw=done.text,
            finish_reason=done.finish_reason,
            usage=done.usage,
            passes=done.forward_passes,
            token_ids=done.token_ids,
            failure=failure,
            where=where,
        )


def _share_out(pool: SlotPool, branches: int, context: int | None) -> tuple[int, int]:
    """How many branches a question may have at once, and the slots for its tokens.

    Where its states and all positions do not fit together, the states get half of the slots.
    """
    others = 1 + SHARED
    if context is None or pool.room(others + branches) < context:
        each = pool.states(1)
        branches = min(branches, max(pool.total // (2 * each) - others, 1)) if each else branches
    return branches, pool.room(others + branches)


def _usage(sequence: DecodingSequence) -> TokenUsage:
    return TokenUsage(len(sequence.prompt_ids), len(sequence.token_ids))


def _local(trunk: Trunk) -> LocalTrunk:
    if not isinstance(trunk, LocalTrunk):
        raise TypeError(f"a local decoder writes after its own trunks, not {type(trunk).__name__}")
    return trunk


if TYPE_CHECKING:

    def _is_a_decoder(decoder: LocalDecoder) -> Decoder:
        return decoder
