"""Answers that are kept for a while, each with what had been said before it."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """An answer.

    Attributes:
        response: as its client got it.
        items: what a next request goes on from: input and output of all turns.
        size: bytes of both as JSON. Turns of one conversation share what they hold, so that they
            count for more than they take.
    """

    response: Json
    items: tuple[Json, ...]
    size: int


class ResponseStore:
    """Keeps the answers that were used last; each is there for its own caller alone.

    Args:
        most_bytes: see `ServerLimits.max_stored_bytes`.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._stored: OrderedDict[tuple[str, str], Stored] = OrderedDict()

    def keep(self, account: str, response: Json, items: tuple[Json, ...]) -> bool:
        """Keep an answer, if it is not larger than all that may be kept."""
        size = len(json.dumps([response, items]))
        if size > self._most_bytes:
            return False
        self._stored[account, response["id"]] = Stored(response, items, size)
        self._bytes += size
        while self._bytes > self._most_bytes:
            _, oldest = self._stored.popitem(last=False)
            self._bytes -= oldest.size
        return True

    def get(self, account: str, response_id: str) -> Stored | None:
        """An answer; None where there is none (any more)."""
        found = self._stored.get((account, response_id))
        if found is not None:
            self._stored.move_to_end((account, response_id))
        return found

    def forget(self, account: str, response_id: str) -> bool:
        """Forget an answer; whether it was there."""
        found = self._stored.pop((account, response_id), None)
        self._bytes -= found.size if found is not None else 0
        return found is not None
