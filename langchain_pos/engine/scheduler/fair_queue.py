"""Requests that wait, so that callers take turns.

    Ann   a1 a2 a3 … a50        taken: a1 b1 a2 c1 a3 c2 a4 …
    Ben   b1
    Cy    c1 c2

In the engine, a caller is one call: all questions of a batch are one, each other question is one of
its own. In the server it is who the server knows it to be: by API key, or by address where there
are no keys. What a caller calls its own users (`safety_identifier`, `user`) splits that caller's
turns in the same way and no one else's, so nobody is served sooner for inventing names.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
N = TypeVar("N", bound=Hashable)


class Caller(NamedTuple):
    """Who asks."""

    account: Hashable
    """As it is known here: which API key, or which address; which call."""
    user: str = ""
    """Whom the caller says it asks for."""


class FairQueue(Generic[T]):
    """First in, first out for each user of each account; accounts take turns, and so do users.

    Who comes newly queues up behind the others, so each waits for one turn of every other caller
    at most before each of its own: nobody starves.
    """

    def __init__(self) -> None:
        # Whose turn it is stands first, among accounts and among an account's users.
        self._accounts: OrderedDict[Hashable, OrderedDict[str, deque[T]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, caller: Caller, item: T) -> None:
        """Behind what its caller has here."""
        users = self._accounts.setdefault(caller.account, OrderedDict())
        users.setdefault(caller.user, deque()).append(item)
        self._length += 1

    def __iter__(self) -> Iterator[T]:
        """All items, those of one caller together."""
        for users in self._accounts.values():
            for items in users.values():
                yield from items

    def first(self) -> T | None:
        """Whose turn it is, None if nobody waits; it stays."""
        for users in self._accounts.values():
            return next(iter(users.values()))[0]
        return None

    def take(self) -> T | None:
        """Whose turn it is, None if nobody waits; the turn is over then."""
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
        """Take an item out of the middle; whether it was there."""
        users = self._accounts.get(caller.account, OrderedDict())
        items = users.get(caller.user, deque())
        if item not in items:
            return False
        items.remove(item)
        self._left(caller)
        return True

    def make_room(self, comer: Caller) -> T | None:
        """Take out the newest item of whoever has most, if `comer` has less even with one more.

        Returns:
            the item; None where `comer` itself is who has most: then it is `comer` that must go.
        """
        counts = {name: _count(users) for name, users in self._accounts.items()}
        account = _longest(counts, comer.account)
        if account is None:
            # Its own account has most; within it the same goes for its users.
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
        """An item of the caller is gone: forget whoever has no more."""
        self._length -= 1
        users = self._accounts[caller.account]
        if not users[caller.user]:
            del users[caller.user]
        if not users:
            del self._accounts[caller.account]


def _count(users: OrderedDict[str, deque[T]]) -> int:
    return sum(map(len, users.values()))


def _longest(counts: dict[N, int], comer: N) -> N | None:
    """Who has most, if that is more than `comer` would have with one more."""
    longest = max(counts, key=counts.__getitem__, default=None)
    if longest is None or counts[longest] <= counts.get(comer, 0) + 1:
        return None
    return longest
