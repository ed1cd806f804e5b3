"""The paper's algorithm as it was published (Yu, arXiv 2503.20533), on transformers' own parts.

    prompt ── skeleton, token by token ─┐ the cache is cut back to before the first `####`
                                        │
    pass 0   a0 b0 c0                   │ the titles, one token of each branch a pass
    pass 1   a1 b1 c1                   │
    pass 2   a2 b2 c2                   │ then the bodies, until the longest has ended:
    …                                   │ who has ended before goes on computing
                                        │ the cache is cut back again
    joined text in one pass ── conclusion, token by token

All branches share the position of a pass. Keys and values are concatenated by `DynamicCache`. The
belt mask is made anew for every pass, by a loop over all passes so far.

It is a peer to measure against, and an oracle: it writes what our engine writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from benchmarks.measuring import Clock, Run


class PaperAlgorithm:
    """The three stages over one cache. Greedy.

    Args:
        model: transformers causal language model with `sdpa` attention.

    Attributes:
        passes: forward passes so far.
        peak_kv_bytes: keys and values held at most.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        self.passes = 0
        self.peak_kv_bytes = 0

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self.cache.get_seq_length())

    def cut_back(self, length: int) -> None:
        """Forget what is in the cache behind the first `length` tokens."""
        if self.length > length:
            self.cache.crop(length - self.length)

    @torch.inference_mode()
    def prefill(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Feed tokens in one pass; the logits `[vocabulary]` after the last of them."""
        return self._pass(token_ids)[0]

    @torch.inference_mode()
    def write(
        self, logits: torch.Tensor, count: int, forced: Sequence[int] | None = None
    ) -> list[int]:
        """Decode `count` tokens one after another (stages 1 and 3).

        Args:
            logits: `[vocabulary]`, after what is in the cache.
            count: tokens to write.
            forced: what is written in place of the model's choice, which is made all the same.

        Returns:
            the tokens; the last one is not fed.
        """
        written: list[int] = []
        for step in range(count):
            token = int(logits.argmax())
            written.append(token if forced is None else forced[step])
            if step < count - 1:
                logits = self._pass(written[-1:])[0]
        return written

    @torch.inference_mode()
    def expand(
        self,
        openings: Sequence[Sequence[int]],
        lengths: Sequence[int],
        forced: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """Decode all branches in lock-step behind what is in the cache (stage 2).

        Args:
            openings: the first tokens of each branch.
            lengths: tokens that each writes; the shorter ones go on with what counts no more.
            forced: what each writes in place of the model's choice.

        Returns:
            `lengths[i]` tokens of each branch.
        """
        start = self.length
        branches = [list(opening) for opening in openings]
        ends = [len(opening) + length for opening, length in zip(openings, lengths, strict=True)]
        for step in range(max(ends) - 1):
            tokens = [branch[step] for branch in branches]
            positions = [start + step] * len(branches)
            logits = self._pass(tokens, positions, self._belt(start, len(branches), step))
            chosen = logits.argmax(dim=-1).tolist()
            for index, branch in enumerate(branches):
                if len(branch) > step + 1:
                    continue  # its title is not fed yet
                place = len(branch) - len(openings[index])
                if forced is not None and place < len(forced[index]):
                    branch.append(forced[index][place])
                else:
                    branch.append(chosen[index])
        return [
            branch[len(opening) : end]
            for branch, opening, end in zip(branches, openings, ends, strict=True)
        ]

    def _belt(self, start: int, width: int, step: int) -> torch.Tensor:
        """What the tokens of pass `step` see: the prefix, and their own branch in every pass."""
        dtype, device = self.model.dtype, self.model.device
        shape = (1, 1, width, start + width * (step + 1))
        mask = torch.full(shape, float("-inf"), dtype=dtype, device=device)
        mask[..., :start] = 0
        own = torch.zeros(width, width, dtype=dtype, device=device)
        own.fill_(float("-inf")).fill_diagonal_(0)
        for earlier in range(step + 1):
            begin = start + earlier * width
            mask[0, 0, :, begin : begin + width] = own
        return mask

    def _pass(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int] | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One forward pass: logits, float32 `[1, vocabulary]`, or `[N, vocabulary]` with a mask."""
        device, begin = self.model.device, self.length
        if positions is None:
            positions = range(begin, begin + len(token_ids))
        output = self.model(
            input_ids=torch.tensor([list(token_ids)], device=device),
            position_ids=torch.tensor([list(positions)], device=device),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1 if mask is None else 0,
        )
        self.passes += 1
        held = kv_bytes(self.cache)
        self.peak_kv_bytes = max(self.peak_kv_bytes, held)
        logits: torch.Tensor = output.logits[0].float()
        return logits


def kv_bytes(cache: DynamicCache) -> int:
    """Bytes of a cache's keys and values."""
    layers: list[Any] = list(cache.layers)
    filled = [layer for layer in layers if getattr(layer, "keys", None) is not None]
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in filled)


def keeps_states(cache: DynamicCache) -> bool:
    """Whether some layers keep a state: then it cannot be cut back."""
    return any(hasattr(layer, "recurrent_states") for layer in cache.layers)


def expand(
    algorithm: PaperAlgorithm,
    prefix: int,
    openings: Sequence[Sequence[int]],
    lengths: Sequence[int],
    forced: Sequence[Sequence[int]] | None = None,
) -> Run:
    """Stage 2 alone, measured behind the `prefix` tokens in the cache, and cut back afterwards."""
    passes = algorithm.passes
    algorithm.peak_kv_bytes = 0
    clock = Clock(algorithm.model.device)
    written = algorithm.expand(openings, lengths, forced)
    seconds = clock()
    algorithm.cut_back(prefix)
    return Run(
        seconds=seconds,
        tokens=sum(lengths),
        passes=algorithm.passes - passes,
        kv_bytes=algorithm.peak_kv_bytes,
        written=tuple(map(tuple, written)),
    )
