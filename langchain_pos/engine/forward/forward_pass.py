"""One forward pass over ragged rows: any number of tokens for any number of segments.

The model is transformers' own, unmodified. It is given a batch of one sequence whose tokens are
the pass's rows, their positions, the forest's mask, and a cache that knows the slots.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from langchain_pos.engine.attention import FOLDED
from langchain_pos.engine.cache.key_values import SlotCache
from langchain_pos.engine.cache.mixers import keeps_state, wrap_mixers
from langchain_pos.engine.cache.states import PassStates, TextState
from langchain_pos.engine.forest.parts import (
    LEAST_SAVED,
    Block,
    Feeds,
    Part,
    Plan,
    plan,
    whole,
)
from langchain_pos.engine.forest.segments import Ledger, SegmentForest
from langchain_pos.engine.forest.states import rows_by_position, with_states
from langchain_pos.engine.forward.alibi import by_positions, place_biases
from langchain_pos.engine.forward.cuda_graphs import MOST_SAMPLED, ROWS, StepGraphs, slots_bucket
from langchain_pos.engine.forward.masks import PassMasks
from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Columns(NamedTuple):
    """What a pass's rows are, each an entry."""

    tokens: list[int]
    positions: list[int]
    slots: list[int]
    segments: list[int]


MaskForm = Literal["by_layer_type", "single"]
"""How a model takes its mask: a dict by layer type, or one tensor for all layers."""


class ForwardPass:
    """The model with its forest and its cache.

    Args:
        model: transformers model in eval mode.
        mask_form: how the model takes its mask; the loader finds out.
        max_slots: slots that may ever exist.
        slot_bytes: bytes of a slot's keys and values, where states shall count as slots.
        graphs: run small passes in fixed shapes, recorded on CUDA; see `cuda_graphs.py`. The
            logits of a pass are then valid until the next one, and all slots are allocated at
            once, so that what is recorded stays valid.
        in_parts: the model passes its mask on to our attention as it is, so that rows may be
            attended to in parts; the loader finds out.

    Attributes:
        model: transformers model in eval mode.
        forest: labels of the slots.
        cache: keys and values of the slots.
        states: the layers that keep a state.
        mask_form: how the model takes its mask; the loader finds out.
        vocabulary: token ids that the model has embeddings for.
        graphs: the recorded passes, None where there are none.
        no_graphs: why not.
        in_parts: whether rows may be attended to in parts.
        least_saved: see `plan`.
        count: passes run so far.
        rows: rows fed so far, over all passes.
        pairs: pairs of a row and a slot that attention has looked at so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_form: MaskForm = "single",
        max_slots: int = 1 << 30,
        slot_bytes: int | None = None,
        graphs: bool = False,
        in_parts: bool = False,
    ) -> None:
        self.in_parts = in_parts
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        embeddings: torch.nn.Parameter = model.get_input_embeddings().weight  # type: ignore[assignment]
        self.device = embeddings.device
        self.states = wrap_mixers(model)
        self._alibi = place_biases(model)
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        if self.states:
            self.no_graphs = "off: some layers keep a state"
        elif self._alibi:
            self.no_graphs = "off: attention is biased by positions"
        else:
            self.no_graphs = "" if graphs else "off"
        graphs = not self.no_graphs
        self.least_saved = LEAST_SAVED["cuda" if self.device.type == "cuda" else "cpu"]
        self.forest = SegmentForest(
            self.device,
            max_slots=max_slots,
            spare_slots=int(graphs),
            segments=256 if graphs else 64,
            keeps_states=bool(self.states),
            state_slots=-(-self.states.nbytes // slot_bytes) if slot_bytes else 0,
        )
        self.cache = SlotCache()
        self._made: Iterable[TextState] = ()  # states of the last pass that are still held
        if graphs and self.device.type == "cuda":
            # What is recorded is void when a tensor moves, so none shall grow.
            self.forest.allocate(max_slots)
            self.cache.allocate(max_slots)
        self.graphs: StepGraphs | None = None
        if graphs:
            self.graphs = StepGraphs(self._fixed_step, self.device, self._addresses)
        self.mask_form = mask_form
        self.vocabulary = embeddings.shape[0]
        self.count = 0
        self.rows = 0
        self.pairs = 0

    @torch.inference_mode()
    def run(
        self,
        feeds: Feeds,
        sampled: Sequence[int],
        drafted: Sequence[int] = (),
    ) -> torch.Tensor:
        """Feed tokens to segments in one pass.

        Args:
            feeds: segments and the tokens that each gets next. A segment may occur again, with
                what follows; not one that is sampled from.
            sampled: indices into `feeds` whose last token's logits are wanted.
            drafted: for each of `sampled`, how many tokens before the last one count as well: a
                draft's. None are by default.

        Returns:
            logits in the model's dtype, `[R, vocabulary]`, on the device: for each of `sampled` in
            turn its `1 + drafted` last tokens, in order. Where the model has broken down, the
            row's first logit is NaN.

        Raises:
            OutOfSlotsError: there are not enough slots. As after any error of the model, no
                segment has grown then.
        """
        ends = [segment.end for segment, _ in feeds]
        try:
            return self._run(feeds, sampled, drafted or [0] * len(sampled))
        except BaseException:
            for (segment, _), end in zip(feeds, ends, strict=True):
                self.forest.truncate(segment, end)
            raise

    def _run(
        self,
        feeds: Feeds,
        sampled: Sequence[int],
        drafted: Sequence[int],
    ) -> torch.Tensor:
        # 1. Slots for the new tokens, and how the rows are attended to.
        positions = []
        for segment, new in feeds:
            positions.append(list(range(segment.end, segment.end + len(new))))
            self.forest.extend(segment, len(new))
        plans = None
        if self.states:
            drafting = {feeds[i][0] for i, more in zip(sampled, drafted, strict=True) if more}
            asking = [feeds[i][0] for i in sampled]
            plans, feeds, positions = with_states(feeds, positions, drafting)
            order = {segment: index for index, (segment, _) in enumerate(feeds)}
            sampled = [order[segment] for segment in asking]
        rows = sum(map(len, positions))
        asked = len(sampled) + sum(drafted)
        recorded = (
            self.graphs is not None and self.graphs.takes(rows, asked) and bool(self.cache.layers)
        )
        extent = self.forest.extent
        if self.in_parts and not recorded:
            parts = plan(feeds, extent, self.least_saved)
        else:
            parts = whole(feeds, extent)

        # 2. The rows on the host, in the plan's order.
        columns = _Columns([], [], [], [])
        last_rows = [0] * len(feeds)
        for block in parts.blocks:
            segment, new = feeds[block.feed]
            where = positions[block.feed][block.begin : block.end]
            columns.tokens.extend(new[block.begin : block.end])
            columns.positions.extend(where)
            columns.slots.extend(segment.slots[at - segment.start] for at in where)
            columns.segments.extend([segment.id] * block.rows)
            last_rows[block.feed] = len(columns.tokens) - 1
        wanted = [
            row
            for index, more in zip(sampled, drafted, strict=True)
            for row in range(last_rows[index] - more, last_rows[index] + 1)
        ]

        # 3. A pass of a recorded shape, or as it comes.
        if plans is not None:
            rows_of = rows_by_position(feeds, columns.segments, columns.positions)
            self.cache.states = PassStates(plans, rows_of, self.states, self.device)
        logits = self._replay(columns, wanted) if recorded else None
        if logits is None:
            logits = self._as_it_comes(columns, wanted, parts)
        if plans is not None:
            plans.settle()
        if self.cache.states is not None:
            # A state that outlives the next pass too shall not hold all that it was made with.
            for state in list(self._made):
                state.move_out()
            self._made = self.cache.states.made
        self.cache.states = None
        self.count += 1
        self.rows += rows
        self.pairs += parts.pairs
        return logits[: len(wanted)]

    def _as_it_comes(self, columns: _Columns, wanted: list[int], parts: Plan) -> torch.Tensor:
        freed = list(self.forest.freed)
        batch = parts.batch.layout(parts.together) if parts.batch is not None else ()
        lists = [*columns, wanted or [0], freed, *batch]
        flat = torch.tensor(  # one copy to the device
            [number for numbers in lists for number in numbers],
            dtype=torch.int64,
            pin_memory=self.device.type == "cuda",  # else the copy would wait for the device
        )
        sent = flat.to(self.device, non_blocking=True).split(list(map(len, lists)))
        if freed:
            self.forest.unlabel(sent[5])
        self.forest.send_reach()
        extent = self.forest.extent
        with by_positions(
            self._alibi, self.forest.slot_position[:extent], 1 + max(columns.positions)
        ):
            return self._compute(torch.stack(sent[:4]), sent[4], parts, sent[6:], extent)

    def _replay(self, columns: _Columns, wanted: list[int]) -> torch.Tensor | None:
        """A pass of a recorded shape; None where it cannot be recorded."""
        if self.graphs is None:
            return None
        extent = min(slots_bucket(self.forest.extent), self.forest.capacity)
        self.cache.make_room(extent, self.forest.max_slots)
        if self.forest.freed:
            pinned = self.device.type == "cuda"
            freed = torch.tensor(self.forest.freed, dtype=torch.int64, pin_memory=pinned)
            self.forest.unlabel(freed.to(self.device, non_blocking=True))
        self.forest.send_reach()
        logits = self.graphs.run(*columns, wanted, extent)
        if logits is None and not self.graphs.recorded:
            self.no_graphs = f"cannot be recorded: {self.graphs.refused}"
            self.graphs = None
        return logits

    @torch.inference_mode()
    def warm_up(self, extent: int, rows: int = 128) -> int:
        """Record the shapes of passes of up to `rows` rows that read up to `extent` slots.

        Otherwise a shape is recorded when it first comes, and a request waits for it.

        Returns:
            shapes recorded; 0 where nothing is recorded.
        """
        if self.graphs is None:
            return 0
        if not self.cache.layers:  # a first pass makes them
            root = self.forest.root(Ledger())
            self.run([(root, [0])], [0])
            self.forest.release(root)
        most = min(slots_bucket(extent), self.forest.capacity)
        self.cache.make_room(most, self.forest.max_slots)
        self.forest.send_reach()
        before = self.graphs.recorded
        extents = sorted({min(slots_bucket(slots), most) for slots in range(1, most + 1, 256)})
        for slots in reversed(extents):  # the largest first: the others fit into its memory
            for count in reversed([count for count in ROWS if count <= rows]):
                self.graphs.prepare(count, slots)
        return self.graphs.recorded - before

    def _fixed_step(self, layout: torch.Tensor, extent: int) -> torch.Tensor:
        rows = Block(0, 0, layout.shape[1])
        everything = Plan((rows,), 0, (), None, (Part((0, rows.end), ((0, extent),)),))
        return self._compute(layout[:4], layout[4, :MOST_SAMPLED], everything, (), extent)

    def _addresses(self) -> tuple[int, ...]:
        return self.forest.addresses() + self.cache.addresses()

    def _compute(
        self,
        columns: torch.Tensor,
        keep: torch.Tensor,
        parts: Plan,
        batch: Sequence[torch.Tensor],
        extent: int,
    ) -> torch.Tensor:
        """What the device does in a pass; nothing in it waits for the host.

        Args:
            columns: token ids, positions, slots and segments, int64 `[4, Q]`.
            keep: rows whose logits are sampled from, int64 `[R]`.
            parts: rows and the slots that they look at.
            batch: see `PassMasks`.
            extent: slots that attention reads, from 0; whole pages.

        Returns:
            logits in the model's dtype, `[R, vocabulary]`.
        """
        # 1. Label the slots; make the masks from the labels, once for all layers.
        token_ids, position_ids, slots, segments = columns.unbind(0)
        owner, position = segments.int(), position_ids.int()
        self.forest.label(slots, owner, position)
        self.cache.begin(slots, extent=extent, max_slots=self.forest.max_slots)
        masks = PassMasks(
            parts,
            self.forest,
            owner,
            position,
            batch,
            extent=extent,
            groups=self._folded,
            dtype=self.model.dtype,
        )

        # 2. The model. Logits only where they are needed: a vocabulary is wide.
        where = {"position_ids": position_ids[None]} if self._takes_positions else {}
        output = self.model(
            input_ids=token_ids[None],
            attention_mask=self._model_mask(masks) if self.states.attention else None,
            use_cache=self.states.use_cache,
            logits_to_keep=keep,
            **{self.states.cache: self.cache},
            **where,
        )

        # 3. The cache holds no NaN; whoever sees a token that had one shall notice it here. One
        #    NaN in a row is enough: its maximum is NaN then.
        self.forest.mark_broken(slots, self.cache.broken())
        logits: torch.Tensor = output.logits[0]
        logits[:, 0].masked_fill_(masks.broken()[keep], float("nan"))
        return logits

    @property
    def _folded(self) -> int:
        """Query heads to a key/value head, where our attention folds them into rows; else 1."""
        if self.config._attn_implementation != FOLDED:
            return 1
        heads: int = self.config.num_attention_heads
        return heads // (getattr(self.config, "num_key_value_heads", None) or heads)

    def _model_mask(self, masks: PassMasks) -> torch.Tensor | dict[str, torch.Tensor | None]:
        """The masks in the form that the model takes."""
        width = getattr(self.config, "sliding_window", None)
        types = set(getattr(self.config, "layer_types", None) or ())
        if self.mask_form == "by_layer_type":
            attend = {kind for kind in types if not keeps_state(kind)}
            if self.states:  # layers that do both ask for the mask of their attention
                attend.add("sliding_attention" if "hybrid_sliding" in types else "full_attention")
            found: dict[str, torch.Tensor | None] = dict.fromkeys({"linear_attention", *types})
            for kind in attend:
                found[kind] = masks.mask(width if kind == "sliding_attention" else None)
            return found
        slides = not types or types == {"sliding_attention"}
        return masks.mask(width if slides else None)

    def check(self, token_ids: Sequence[int]) -> None:
        """Refuse ids that the model has no embedding for; on a GPU they would end the process.

        Raises:
            InvalidRequestError: naming the first such id.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self.vocabulary:
                raise InvalidRequestError(
                    f"token id {token_id} is not one of the model's {self.vocabulary}; does the "
                    "tokenizer belong to this model?"
                )
