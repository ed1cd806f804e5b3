"""One forward pass over ragged rows: any number of tokens for any number of segments.

The model is transformers' own, unmodified. It is given a batch of one sequence whose tokens are
the pass's rows, their positions, the forest's mask, and a cache that knows the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from langchain_pos.engine.attention import FOLDED, fold_mask
from langchain_pos.engine.cache.key_values import SlotCache
from langchain_pos.engine.forest.row_groups import (
    LEAST_SAVED,
    RowGroup,
    grouped_mask,
    row_groups,
    whole,
)
from langchain_pos.engine.forest.segments import NOBODY, Segment, SegmentForest, within
from langchain_pos.engine.forward.cuda_graphs import StepGraphs, slots_bucket
from langchain_pos.errors import InvalidRequestError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MaskForm = Literal["by_layer_type", "single"]
"""How a model takes its mask: a dict by layer type, or one tensor for all layers."""


class ForwardPass:
    """The model with its forest and its cache.

    Args:
        model: transformers model in eval mode.
        mask_form: how the model takes its mask; the loader finds out.
        max_slots: slots that may ever exist.
        graphs: run small passes in fixed shapes, recorded on CUDA; see `engine/graphs.py`. The
            logits of a pass are then valid until the next one.
        groups_rows: the model passes its mask on to our attention as it is, so that rows may be
            attended to in groups; the loader finds out.

    Attributes:
        model: transformers model in eval mode.
        forest: labels of the slots.
        cache: keys and values of the slots.
        mask_form: how the model takes its mask; the loader finds out.
        vocabulary: token ids that the model has embeddings for.
        graphs: the recorded passes, None where there are none.
        no_graphs: why not.
        groups_rows: whether rows may be attended to in groups.
        least_saved: see `row_groups`.
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
        graphs: bool = False,
        groups_rows: bool = False,
    ) -> None:
        self.groups_rows = groups_rows
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        embeddings: torch.nn.Parameter = model.get_input_embeddings().weight  # type: ignore[assignment]
        self.device = embeddings.device
        self.least_saved = LEAST_SAVED["cuda" if self.device.type == "cuda" else "cpu"]
        self.forest = SegmentForest(self.device, max_slots=max_slots, spare_slots=int(graphs))
        self.cache = SlotCache()
        self.graphs: StepGraphs | None = None
        self.no_graphs = "" if graphs else "off"
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
        feeds: Sequence[tuple[Segment, Sequence[int]]],
        sampled: Sequence[int],
        drafted: Sequence[int] = (),
    ) -> torch.Tensor:
        """Feed tokens to segments in one pass.

        Args:
            feeds: segments and the tokens that each gets next. A segment occurs once.
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
        feeds: Sequence[tuple[Segment, Sequence[int]]],
        sampled: Sequence[int],
        drafted: Sequence[int],
    ) -> torch.Tensor:
        # 1. Lay out the rows on the host.
        tokens: list[int] = []
        segments: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last_rows: list[int] = []
        for segment, new in feeds:
            positions.extend(range(segment.end, segment.end + len(new)))
            slots.extend(self.forest.extend(segment, len(new)))
            segments.extend([segment.id] * len(new))
            tokens.extend(new)
            last_rows.append(len(tokens) - 1)
        wanted = [
            row
            for index, more in zip(sampled, drafted, strict=True)
            for row in range(last_rows[index] - more, last_rows[index] + 1)
        ]

        # 2. A pass of a recorded shape, if it is small enough and the cache is there.
        if self.graphs is not None and self.graphs.takes(len(tokens)) and self.cache.layers:
            logits = self._replay(tokens, positions, slots, segments, wanted)
            if logits is not None:
                self.count += 1
                self.rows += len(tokens)
                self.pairs += len(tokens) * self.forest.extent
                return logits[: len(wanted)]

        # 3. Otherwise one copy to the device,
        freed = list(self.forest.freed)
        parts = [tokens, positions, slots, segments, wanted or [0], freed]
        flat = torch.tensor(
            [number for part in parts for number in part],
            dtype=torch.int64,
            pin_memory=self.device.type == "cuda",  # else the copy would wait for the device
        )
        sizes = [len(part) for part in parts]
        ids, where, places, owners, keep, gone = flat.to(self.device, non_blocking=True).split(
            sizes
        )
        if freed:
            self.forest.unlabel(gone)
        self.forest.send_reach()

        #    and the pass as it comes.
        if self.groups_rows:
            groups = row_groups(feeds, slots, self.forest, self.least_saved)
        else:
            groups = whole(len(tokens), self.forest.extent)
        extent = self.forest.extent
        logits = self._compute(ids, where, places, owners, keep, groups, extent=extent)
        self.count += 1
        self.rows += len(tokens)
        self.pairs += sum(group.pairs for group in groups)
        return logits[: len(wanted)]

    def _replay(
        self,
        tokens: list[int],
        positions: list[int],
        slots: list[int],
        segments: list[int],
        wanted: list[int],
    ) -> torch.Tensor | None:
        """A pass of a recorded shape; None where the model cannot be recorded."""
        if self.graphs is None:
            return None
        extent = min(slots_bucket(self.forest.extent), self.forest.capacity)
        self.cache.make_room(extent, self.forest.max_slots)
        if self.forest.freed:
            pinned = self.device.type == "cuda"
            freed = torch.tensor(self.forest.freed, dtype=torch.int64, pin_memory=pinned)
            self.forest.unlabel(freed.to(self.device, non_blocking=True))
        self.forest.send_reach()
        try:
            return self.graphs.run(tokens, positions, slots, segments, wanted, extent)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if self.graphs.recorded:  # it could be recorded before: this is something else
                raise
            self.graphs, self.no_graphs = None, f"cannot be recorded: {str(error).splitlines()[0]}"
            return None

    def _fixed_step(self, layout: torch.Tensor, extent: int) -> torch.Tensor:
        token_ids, position_ids, slots, segments, keep = layout.unbind(0)
        groups = whole(len(slots), extent)
        return self._compute(token_ids, position_ids, slots, segments, keep, groups, extent=extent)

    def _addresses(self) -> tuple[int, ...]:
        return self.forest.addresses() + self.cache.addresses()

    def _compute(
        self,
        token_ids: torch.Tensor,
        position_ids: torch.Tensor,
        slots: torch.Tensor,
        segments: torch.Tensor,
        keep: torch.Tensor,
        groups: Sequence[RowGroup],
        *,
        extent: int,
    ) -> torch.Tensor:
        """What the device does in a pass; nothing in it waits for the host.

        Args:
            token_ids: int64 `[Q]`.
            position_ids: int64 `[Q]`.
            slots: where the tokens lie, int64 `[Q]`.
            segments: whose they are, int64 `[Q]`.
            keep: rows whose logits are wanted, int64 `[R]`.
            groups: rows and the slots that they look at.
            extent: slots that attention reads, from 0.

        Returns:
            logits in the model's dtype, `[R, vocabulary]`.
        """
        # 1. Label the slots; make the mask from the labels, once for all layers.
        owner, position = segments.int(), position_ids.int()
        self.forest.label(slots, owner, position)
        self.cache.begin(slots, extent=extent, max_slots=self.forest.max_slots)
        seen = [
            self.forest.mask(owner[begin:end], position[begin:end], group)
            for group in groups
            for begin, end in [group.rows]
        ]

        # 2. The model. Logits only where they are wanted: a vocabulary is wide.
        output = self.model(
            input_ids=token_ids[None],
            position_ids=position_ids[None],
            attention_mask=self._model_mask(groups, seen, owner, position, extent),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        )

        # 3. The cache holds no NaN; whoever sees a token that had one shall notice it here. One
        #    NaN in a row is enough: its maximum is NaN then.
        self.forest.mark_broken(slots, self.cache.broken())
        logits: torch.Tensor = output.logits[0]
        if len(groups) == 1:
            broken = self.forest.sees_broken(seen[0][keep], groups[0])
        else:
            broken = torch.cat(list(map(self.forest.sees_broken, seen, groups)))[keep]
        logits[:, 0].masked_fill_(broken, float("nan"))
        return logits

    def _model_mask(
        self,
        groups: Sequence[RowGroup],
        seen: Sequence[torch.Tensor],
        owner: torch.Tensor,
        position: torch.Tensor,
        extent: int,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The mask in the form that the model takes, from what each row sees of the slots."""

        def mask(window: int | None) -> torch.Tensor:
            masks = [
                self._layer_mask(group, some, owner[begin:end], position[begin:end], window)
                for group, some in zip(groups, seen, strict=True)
                for begin, end in [group.rows]
            ]
            return grouped_mask(groups, masks, extent)

        width = getattr(self.config, "sliding_window", None)
        types = set(getattr(self.config, "layer_types", None) or ())
        if self.mask_form == "by_layer_type":
            return {kind: mask(width if kind == "sliding_attention" else None) for kind in types}
        slides = not types or types == {"sliding_attention"}
        return mask(width if slides else None)

    def _layer_mask(
        self,
        group: RowGroup,
        seen: torch.Tensor,
        owner: torch.Tensor,
        position: torch.Tensor,
        window: int | None,
    ) -> torch.Tensor:
        """0 where a query sees a slot, minus infinity elsewhere: `[1, 1, (G *) rows, slots]`.

        `eager` adds its mask, and `sdpa` would turn a bool mask into this one in every layer.
        """
        if window:
            seen = seen & within(window, position, group.of(self.forest.slot_position, 0))
        heads = self.config.num_attention_heads
        groups = heads // (getattr(self.config, "num_key_value_heads", None) or heads)
        # A row that only fills up sees everything: a softmax over nothing would be NaN.
        seen = seen | (owner == NOBODY)[:, None]
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        mask = mask.masked_fill_(~seen, float("-inf"))[None, None]
        folds = self.config._attn_implementation == FOLDED
        return fold_mask(mask, groups) if folds else mask

    def check(self, token_ids: Sequence[int]) -> None:
        """Refuse ids that the model has no embedding for; on a GPU they would end the process.

        Raises:
            InvalidRequestError: naming the first such id.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self.vocabulary:
                raise InvalidRequestError(
                    f"token id {token_id} is none of the model's {self.vocabulary}; does the "
                    "tokenizer belong to this model?"
                )
