"""Waiting requests, ordered so that callers take turns.

    Ann   a1 a2 a3 … a50        taken: a1 b1 a2 c1 a3 c2 a4 …
    Ben   b1
    Cy    c1 c2

In the engine, a caller is one call: a batch, or a single question. In the server, it is identified
by API key, or by address if there are no keys. The names that a caller gives its own users
(`safety_identifier`, `user`) split only that caller's turns, so inventing names gains nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
N = TypeVar("N", bound=Hashable)


class Caller(NamedTuple):
    """The origin of a request."""

    account: Hashable
    """Verified: the API key or address, or the call."""
    user: str = ""
    """The user named by the caller."""


class FairQueue(Generic[T]):
    """First in, first out for each user of each account; accounts take turns, and so do users.

    A new caller queues after the others, so each waits for at most one turn of every other caller
    before each of its own: none starves.
    """

    def __init__(self) -> None:
        # The next in turn comes first, among accounts and among an account's users.
        self._accounts: OrderedDict[Hashable, OrderedDict[str, deque[T]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, caller: Caller, item: T) -> None:
        """Queue an item after its caller's others."""
        users = self._accounts.setdefault(caller.account, OrderedDict())
        users.setdefault(caller.user, deque()).append(item)
        self._length += 1

    def __iter__(self) -> Iterator[T]:
        """All items, grouped by caller."""
        for users in self._accounts.values():
            for items in users.values():
                yield from items

    def first(self) -> T | None:
        """The next item, None if there is none; it stays."""
        for users in self._accounts.values():
            return next(iter(users.values()))[0]
        return None

    def take(self) -> T | None:
        """Take the next item, None if there is none; ends its caller's turn."""
        if not self._accounts:
            return None
        account, users = next(iter(self._accounts.items()))
        user, items = next(iter(users.items()))
        item = items.popleft()
        users.move_to_end(user)
        self._accounts.move_to_end(account)
        self._left(Caller(account, user))
        return item

    def remove(self, caller: Caller, item: T) -> bool:
        """Remove any item; returns whether it was there."""
        users = self._accounts.get(caller.account, OrderedDict())
        items = users.get(caller.user, deque())
        if item not in items:
            return False
        items.remove(item)
        self._left(caller)
        return True

    def make_room(self, comer: Caller) -> T | None:
        """Remove the newest item of the caller with most, if `comer` would still have fewer.

        Returns:
            the item; None if `comer` itself has most, so that `comer` must be refused.
        """
        counts = {name: _count(users) for name, users in self._accounts.items()}
        account = _longest(counts, comer.account)
        if account is None:
            # Its own account has most; the same rule applies among its users.
            users = self._accounts.get(comer.account, OrderedDict())
            user = _longest({name: len(items) for name, items in users.items()}, comer.user)
            if user is None:
                return None
            account = comer.account
        else:
            users = self._accounts[account]
            user = max(users, key=lambda name: len(users[name]))
        item = self._accounts[account][user].pop()
        self._left(Caller(account, user))
        return item

    def _left(self, caller: Caller) -> None:
        """Forget a caller and account without further items."""
        self._length -= 1
        users = self._accounts[caller.account]
        if not users[caller.user]:
            del users[caller.user]
        if not users:
            del self._accounts[caller.account]


def _count(users: OrderedDict[str, deque[T]]) -> int:
    return sum(map(len, users.values()))


def _longest(counts: dict[N, int], comer: N) -> N | None:
    """The key with most items, if more than `comer` would have with one more."""
    longest = max(counts, key=counts.__getitem__, default=None)
    if longest is None or counts[longest] <= counts.get(comer, 0) + 1:
        return None
    return longest
