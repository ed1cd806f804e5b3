"""The fair queue: whose turn it is, and who goes when it is full."""

from __future__ import annotations

import random

from langchain_pos.engine.scheduler.fair_queue import Caller, FairQueue


def filled(*names: str) -> FairQueue[str]:
    """A queue with items such as "a1", of account "a", or "a.x1", of its user "x"."""
    queue: FairQueue[str] = FairQueue()
    for name in names:
        queue.add(of(name), name)
    return queue


def of(name: str) -> Caller:
    """Whose an item is."""
    account, _, user = name.rstrip("0123456789").partition(".")
    return Caller(account, user)


def taken(queue: FairQueue[str]) -> list[str]:
    """All items in the order in which they are taken."""
    return [queue.take() or "" for _ in range(len(queue))]


def test_one_of_a_caller_waits_for_one_of_each_other() -> None:
    """Behind fifty requests of another caller, one is next but one."""
    queue = filled(*(f"a{n}" for n in range(50)), "b0")
    assert taken(queue)[:3] == ["a0", "b0", "a1"]


def test_callers_take_turns_in_their_own_order() -> None:
    """The example of the module."""
    queue = filled("a1", "a2", "a3", "a4", "b1", "c1", "c2")
    assert taken(queue) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


def test_users_split_their_own_callers_turns_only() -> None:
    """A caller that invents a user for each request gets no more turns than one that does not."""
    queue = filled("a.x1", "a.y1", "a.z1", "a.x2", "b1", "b2")
    assert taken(queue) == ["a.x1", "b1", "a.y1", "b2", "a.z1", "a.x2"]


def test_who_comes_back_stands_behind_who_waits() -> None:
    """Its turn was just now, whether it had more waiting then or not."""
    queue = filled("a1", "b1", "c1")
    assert queue.take() == "a1"
    queue.add(of("a2"), "a2")
    assert taken(queue) == ["b1", "c1", "a2"]


def test_nobody_starves() -> None:
    """Whatever comes and goes, no item sees another caller served twice between its own."""
    rng = random.Random(0)
    queue: FairQueue[str] = FairQueue()
    waiting: dict[str, list[str]] = {}
    passed: dict[str, dict[str, int]] = {}  # for each who waits: turns of others since its last
    for number in range(2000):
        if rng.random() < 0.55 or not queue:
            account = rng.choice("abcdeaaaaaaaa")
            queue.add(Caller(account), f"{account}{number}")
            if not waiting.setdefault(account, []):
                passed[account] = {}
            waiting[account].append(f"{account}{number}")
        else:
            item = queue.take()
            assert item is not None
            assert waiting[item[0]].pop(0) == item, "first in, first out within a caller"
            passed[item[0]] = {}
            for other, items in waiting.items():
                if items and other != item[0]:
                    passed[other][item[0]] = passed[other].get(item[0], 0) + 1
                    assert passed[other][item[0]] == 1
    assert len(queue) == sum(map(len, waiting.values())) > 100


def test_what_is_removed_is_never_taken() -> None:
    """From the middle, and the last one of its caller; twice is once."""
    queue = filled("a1", "a2", "a3", "b1")
    assert queue.remove(of("a2"), "a2")
    assert queue.remove(of("b1"), "b1")
    assert not queue.remove(of("b1"), "b1")
    assert not queue.remove(Caller("nobody"), "a1")
    assert taken(queue) == ["a1", "a3"]
    assert queue.take() is None


def test_who_has_most_makes_room() -> None:
    """Its newest goes, until both have as many; then the comer is who must go."""
    queue = filled("a1", "a2", "a3", "a4")
    gone = []
    for name in ("b1", "b2"):
        gone.append(queue.make_room(of(name)))
        queue.add(of(name), name)
    assert gone == ["a4", "a3"]
    assert queue.make_room(of("b3")) is None
    assert queue.make_room(of("a5")) is None
    assert queue.make_room(of("c1")) in ("a2", "b2")
    assert len(queue) == 3


def test_users_make_room_within_their_own_caller_only() -> None:
    """They do as callers do; inventing one pushes nobody out but those of the same caller."""
    queue = filled("a.x1", "a.x2", "a.x3", "b1", "b2")
    for name, gone in (("a.y1", "a.x3"), ("a.z1", "a.x2"), ("a.v1", None), ("a.x2", None)):
        assert queue.make_room(of(name)) == gone
        if gone is not None:
            queue.add(of(name), name)
    assert sorted(taken(queue)) == ["a.x1", "a.y1", "a.z1", "b1", "b2"]


def test_an_empty_queue_has_no_room_to_make() -> None:
    """Where nobody may wait at all, the comer goes."""
    assert filled().make_room(of("a1")) is None
