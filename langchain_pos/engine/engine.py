"""The engine's entry point: token ids in, token ids out. No prompts and no LangChain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from langchain_pos.engine.completion import Completion, TokenUsage
from langchain_pos.engine.constraints import Constraint
from langchain_pos.engine.cpu.dtypes import computes_in_bfloat16
from langchain_pos.engine.cpu.openmp import give_back_workers
from langchain_pos.engine.cpu.row_cost import DRAFT_ROWS, RowCost, measure_row_cost
from langchain_pos.engine.cpu.weight_packing import (
    PackedModelError,
    can_pack,
    pack,
    require_quantization,
)
from langchain_pos.engine.decoding.drafts import PromptLookup
from langchain_pos.engine.decoding.sequence import Feed, Steps, decode
from langchain_pos.engine.forest.slots import ROOM
from langchain_pos.engine.forward.forward_pass import ForwardPass
from langchain_pos.engine.loading import (
    check_int8_settings,
    default_quantization,
    load,
    prepare,
)
from langchain_pos.engine.rope import RopeFactors, fix_frequencies
from langchain_pos.engine.sampling import SamplingParams, derive_seed
from langchain_pos.engine.scheduler.request import Request
from langchain_pos.engine.scheduler.scheduler import Scheduler
from langchain_pos.engine.sequences import Sequences
from langchain_pos.engine.sizing import (
    can_record,
    check_room,
    eos_token_ids,
    pass_seconds,
    slots_that_fit,
)
from langchain_pos.engine.tokenization.stopping import check_stop
from langchain_pos.engine.tokenization.text import backend
from langchain_pos.errors import ContextLengthError, InvalidRequestError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
GREEDY = SamplingParams()
PREFIX_CACHE_TOKENS = 16384


class Engine(Sequences):
    """A model that decodes many sequences of one forest together.

    Safe to use from several threads: their requests share forward passes.

    Args:
        model: transformers causal language model; its attention implementation is set.
        tokenizer: its fast tokenizer.
        attn_implementation: "auto", or one of transformers' names ("sdpa", "eager").
        max_slots: most KV-cache slots to hold; None takes what fits in half of the memory
            available now. States of layers that carry one count as the slots that are as large.
        max_rows: most tokens fed in one forward pass.
        draft_rows: rows up to which drafts may fill a pass; None measures how many cost little
            more than one, and lets concurrent requests draft more where it pays.
        prefix_cache_tokens: most prompt tokens whose keys and values are kept for later prompts
            that begin alike, and at most a quarter of the slots; 0 keeps none.
        cuda_graphs: record small passes as CUDA graphs; None does so if the whole model is on one
            CUDA device. Elsewhere True runs the same fixed shapes unrecorded, for tests.
        pack_weights: rewrite the weights in place for faster steps on the CPU, where that helps;
            the model can then neither be saved nor moved. See `engine/cpu`.
        quantization: "int8" packs the weights in eight bits, on a CPU; see `engine/cpu/matrices`.
        rope_factors: for models with two sets of RoPE frequencies, such as Phi-3: "short" for texts
            as long as in its original training, "long" for its whole context. The set is fixed in
            the model: see `engine/rope.py`.

    Raises:
        ModelLoadError: the model's weights cannot be quantised so.
        UnsupportedModelError: the model cannot keep branches apart.
        OutOfSlotsError: `max_slots` does not hold the states of one segment.
        PackedModelError: it does not work with packed weights, but may without.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        attn_implementation: str = "auto",
        max_slots: int | None = None,
        max_rows: int = 1024,
        draft_rows: int | None = DRAFT_ROWS,
        prefix_cache_tokens: int = PREFIX_CACHE_TOKENS,
        cuda_graphs: bool | None = None,
        pack_weights: bool = False,
        quantization: str | None = None,
        rope_factors: RopeFactors = "short",
    ) -> None:
        backend(tokenizer)  # refuses slow tokenizers before any work
        self.model = model
        self.parameters = sum(p.numel() for p in model.parameters())
        self._rope = fix_frequencies(model, rope_factors)
        packed = 0
        if quantization is not None:
            require_quantization(quantization, model)
            packed = pack(model, quantization)
        elif pack_weights and can_pack(model):
            packed = pack(model)
        how = f" in {quantization}" if quantization else ""
        self.weights = f"{packed} layers packed{how}" if packed else "as loaded"
        try:
            found = prepare(model, attn_implementation)
        except UnsupportedModelError as error:
            if packed:
                raise PackedModelError(str(error)) from error
            raise
        slots = max_slots if max_slots is not None else slots_that_fit(model, found.slot_bytes)
        forward = ForwardPass(
            model,
            mask_form=found.mask_form,
            max_slots=slots,
            slot_bytes=found.slot_bytes,
            graphs=can_record(model) if cuda_graphs is None else cuda_graphs,
            in_parts=found.in_parts,
        )
        super().__init__(tokenizer, forward, eos_token_ids(model, tokenizer, forward.vocabulary))
        pool = forward.forest.pool
        check_room(pool)
        kept = min(prefix_cache_tokens, slots // 4)
        cost = RowCost(draft_rows or DRAFT_ROWS)
        if draft_rows is None:
            most = min(pool.room(1), max_rows, self.context_length or slots)
            cost = measure_row_cost(pass_seconds(self.forward), most)
        self.scheduler = Scheduler(
            self.forward,
            max_rows=max_rows,
            draft_rows=cost.free,
            row_seconds=cost.seconds,
            max_parked=kept,
        )
        give_back_workers()  # the thread that loads a model is not the one that drives it

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        attn_implementation: str = "auto",
        max_slots: int | None = None,
        draft_rows: int | None = None,
        prefix_cache_tokens: int = PREFIX_CACHE_TOKENS,
        cuda_graphs: bool | None = None,
        pack_weights: bool | None = None,
        quantization: str | None = None,
        rope_factors: RopeFactors = "short",
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        """Load a folder or hub name; see `langchain_pos.engine.loading.load`.

        Nothing else holds this model, so packing its weights is safe and the default here.

        Raises:
            ModelLoadError: it cannot be loaded, or its weights cannot be quantised so.
        """
        if quantization is not None:
            check_int8_settings(quantization, device, dtype, pack_weights, model_kwargs)

        def loaded(*, packed: bool) -> Any:
            model, tokenizer = load(
                name,
                dtype=dtype,
                device=device,
                revision=revision,
                trust_remote_code=trust_remote_code,
                use_safetensors=use_safetensors,
                **model_kwargs,
            )
            standard = default_quantization(model) if packed and dtype == "auto" else None
            return cls(
                model,
                tokenizer,
                attn_implementation=attn_implementation,
                max_slots=max_slots,
                draft_rows=draft_rows,
                prefix_cache_tokens=prefix_cache_tokens,
                cuda_graphs=cuda_graphs,
                pack_weights=packed,
                quantization=quantization or standard,
                rope_factors=rope_factors,
            )

        engine: Self
        try:
            engine = loaded(packed=pack_weights is not False)
        except PackedModelError:
            if quantization is not None:
                raise
            engine = loaded(packed=False)
        return engine

    # ---------------------------------------------------------- whole completions

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams = GREEDY,
        constraint: Constraint | None = None,
        stop: Sequence[str] = (),
        drafts: bool = True,
    ) -> Completion:
        """Decode one sequence after a prompt.

        Args:
            prompt_ids: at least one token.
            max_new_tokens: budget in tokens.
            sampling: how tokens are chosen.
            constraint: the language that the completion must belong to.
            stop: texts that end it.
            drafts: guess by prompt look-up: the same tokens in fewer passes.

        Raises:
            InvalidRequestError: empty prompt, budget or stop text, invalid constraint.
            ContextLengthError: prompt and budget exceed the model's positions.
            OutOfSlotsError: they exceed the slots.
            NonFiniteLogitsError: the model returned unusable logits.
        """
        self.check(prompt_ids, max_new_tokens)
        check_stop(stop)
        if constraint is not None:
            self.constraints.state(constraint)  # compiled here, while others decode
        seed = self.seed(sampling)

        async def steps(request: Request[Completion]) -> Completion:
            root = self.scheduler.root(request, prompt_ids)
            known = prompt_ids[: root.end]
            sequence = self.sequence(
                root,
                prompt_ids[root.end :],
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                seed=seed,
                constraint=constraint,
                stop=stop,
                context_ids=known,
                lookup=PromptLookup(known) if drafts else None,
            )
            await decode([sequence])
            if sequence.failure is not None:
                raise sequence.failure
            done = sequence.completion()
            return replace(done, usage=TokenUsage(len(prompt_ids), done.usage.output_tokens))

        return self.run(
            steps,
            reserve=len(prompt_ids) + max_new_tokens,
            expected=len(prompt_ids) + ROOM,
            segments=1,
        )

    def decode_branches(
        self,
        prefix_ids: Sequence[int],
        openings: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: SamplingParams = GREEDY,
        stop: Sequence[str] = (),
        max_parallel: int | None = None,
        drafts: bool = True,
    ) -> list[Completion]:
        """Decode branches that share a prefix and do not see each other.

        Args:
            prefix_ids: the tokens that all branches see; at least one.
            openings: the first tokens of each branch; at least one each.
            max_new_tokens: each branch's budget in tokens.
            sampling: how tokens are chosen; branch i has its own seed, derived from the seed and
                i, so it draws the same tokens whatever runs beside it.
            stop: texts that end a branch.
            max_parallel: branches decoded at the same time; the others wait.
            drafts: guess by prompt look-up: the same tokens in fewer passes.

        Returns:
            a completion for each opening, in order. One that failed has the finish reason "error"
            and the reason; the others are complete.

        Raises:
            InvalidRequestError: like `generate`, as are the other errors that concern all branches.
        """
        longest = max((len(opening) for opening in openings), default=0)
        if not openings or not all(openings):
            raise InvalidRequestError("every branch needs an opening of at least one token")
        if max_parallel is not None and max_parallel < 1:
            raise InvalidRequestError(
                f"max_parallel={max_parallel}: it must be at least 1, or None"
            )
        check_stop(stop)
        for opening in openings:
            self.forward.check(opening)
        self.check([*prefix_ids, *[0] * longest] if prefix_ids else (), max_new_tokens)
        seed = self.seed(sampling)
        together = min(len(openings), max_parallel or len(openings))

        async def steps(request: Request[list[Completion]]) -> list[Completion]:
            root = self.scheduler.root(request, prefix_ids)
            lookup = PromptLookup(prefix_ids) if drafts else None
            sequences = [
                self.sequence(
                    self.fork(root, at=len(prefix_ids)),
                    opening,
                    max_new_tokens=max_new_tokens,
                    sampling=sampling,
                    seed=derive_seed(seed, index),
                    stop=stop,
                    context_ids=prefix_ids,
                    lookup=lookup,
                )
                for index, opening in enumerate(openings)
            ]
            await decode(
                sequences,
                first=[Feed(root, prefix_ids[root.end :])],
                max_parallel=max_parallel,
                on_end=lambda sequence: self.release(sequence.segment),
            )
            return [sequence.completion() for sequence in sequences]

        reserve = len(prefix_ids) + together * (longest + max_new_tokens)
        expected = len(prefix_ids) + together * longest + ROOM
        return self.run(steps, reserve=reserve, expected=expected, segments=1 + together)

    def run(
        self,
        make: Callable[[Request[T]], Steps[T]],
        *,
        reserve: int,
        expected: int | None = None,
        segments: int | None = None,
    ) -> T:
        """Run a request to its end; see `Scheduler.submit`."""
        return self.scheduler.submit(
            make, reserve=reserve, expected=expected, segments=segments
        ).wait()

    # --------------------------------------------------------------------- limits

    @property
    def context_length(self) -> int | None:
        """Positions that a request may have; None if the model specifies no limit.

        The model's own limit, or fewer if its RoPE frequencies cover less.
        """
        if self._rope.positions is not None:
            return self._rope.positions
        limit = getattr(self.forward.config, "max_position_embeddings", None)
        return int(limit) if limit else None

    def check(self, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
        """Refuse requests that cannot be served, before any work."""
        if not prompt_ids:
            raise InvalidRequestError("the prompt has no tokens; give at least one")
        if max_new_tokens < 1:
            raise InvalidRequestError(f"max_new_tokens={max_new_tokens}: it must be at least 1")
        self.forward.check(prompt_ids)
        limit = self.context_length
        if limit is not None and len(prompt_ids) + max_new_tokens > limit:
            note = f" ({self._rope.note})" if self._rope.note else ""
            raise ContextLengthError(
                f"a prompt of {len(prompt_ids)} tokens and up to {max_new_tokens} new ones exceed "
                f"the model's {limit} positions{note}; shorten the prompt or the budget"
            )

    @property
    def slots_in_use(self) -> int:
        """Slots that live requests hold now."""
        return self.forward.forest.slots_in_use

    def _computes_in(self) -> str:
        """Which dtypes are fast here: why a bfloat16 checkpoint may be loaded as float32."""
        if self.forward.device.type != "cpu":
            return str(self.forward.device)
        return "computes in bfloat16" if computes_in_bfloat16() else "computes in float32 only"

    def _states(self) -> str:
        """How much a segment carries beside its slots."""
        if not self.forward.states:
            return "none"
        layers, slots = self.forward.states, self.forward.forest.pool.states(1)
        return (
            f"{len(layers.numbers)} layers, {layers.nbytes:,} bytes a state; those of a branch "
            f"count as {slots:,} slots"
        )

    def describe(self) -> dict[str, str]:
        """The basics: model, device, dtype, attention, limits."""
        config = self.forward.config
        apart = ", in parts" if self.forward.in_parts else ""
        attention = f"{config._attn_implementation} ({self.forward.mask_form} mask{apart})"
        origin = getattr(self.model, "unpacked_from", None)
        return {
            "model": str(getattr(self.model, "name_or_path", "") or config.model_type),
            **({"gguf": origin} if origin else {}),
            "architecture": type(self.model).__name__,
            "parameters": f"{self.parameters:,}",
            "device": str(self.forward.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "processor": self._computes_in(),
            "weights": self.weights,
            "attention": attention,
            "layers": str(config.num_hidden_layers),
            "states": self._states(),
            "positions": str(self.context_length or "no limit")
            + (f" ({self._rope.note})" if self._rope.note else ""),
            "max_slots": str(self.forward.forest.max_slots),
            "cuda_graphs": self.forward.no_graphs or "on",
            "draft_rows": str(self.scheduler.budget.draft_rows),
            "probe": "passed",
        }
