"""The tokens that a repetition penalty makes less likely, tracked while a sequence grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


class PenaltyHistory:
    """The distinct tokens of a sequence so far, prompt included.

    They are kept on the device where they were last requested, and grow there: a step costs only
    its new tokens.

    Args:
        token_ids: the initial tokens.
    """

    def __init__(self, token_ids: Iterable[int] = ()) -> None:
        self._seen: set[int] = set()
        self._new: list[int] = []  # not in the tensor yet
        self._ids = torch.empty(0, dtype=torch.int64)
        self.extend(token_ids)

    def __len__(self) -> int:
        return len(self._seen)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add further tokens."""
        for token_id in token_ids:
            if token_id not in self._seen:
                self._seen.add(token_id)
                self._new.append(token_id)

    def ids(self, device: torch.device, ahead: Sequence[int] = ()) -> torch.Tensor:
        """The tokens, and those of a draft not yet accepted; int64 `[n]`.

        A token may occur twice, once as a draft's.
        """
        if self._new or self._ids.device != device:
            new = torch.tensor(self._new, dtype=torch.int64, device=device)
            self._ids, self._new = torch.cat([self._ids.to(device), new]), []
        if not ahead:
            return self._ids
        return torch.cat([self._ids, torch.tensor(ahead, dtype=torch.int64, device=device)])


def penalise(logits: torch.Tensor, token_ids: torch.Tensor, penalty: float) -> None:
    """Make tokens less likely, in place, like transformers' `RepetitionPenaltyLogitsProcessor`.

    Args:
        logits: `[vocabulary]`.
        token_ids: int64 `[n]`; one that occurs twice is penalised once.
        penalty: above 1 makes them less likely, below 1 more likely.
    """
    scores = logits[token_ids]
    logits[token_ids] = torch.where(scores < 0, scores * penalty, scores / penalty)
