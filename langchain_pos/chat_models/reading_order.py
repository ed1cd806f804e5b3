"""An answer in native form as one text, in the order in which it is read, while it is written.

Its branches are written together, but are read one after the other: the first one is passed on
live, the others as soon as all before them have ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_pos.results.data import BranchResult, Plan


class ReadingOrder:
    """The pieces of one block, which add up to `Block.text` without its preamble.

    Args:
        plan: of the block.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._bodies = [""] * len(plan.steps)
        self._ended: set[int] = set()
        self._current = 0
        self._passed = 0  # characters of the current body

    def begin(self) -> str:
        """The first head."""
        return self._plan.heads[0]

    def take(self, branch: BranchResult, *, ended: bool) -> str:
        """Take a piece of a branch; what can be passed on now, often nothing."""
        self._bodies[branch.index] += branch.text
        if ended:
            self._ended.add(branch.index)
        pieces = [self._rest()]
        while self._current in self._ended and self._current + 1 < len(self._bodies):
            self._current, self._passed = self._current + 1, 0
            pieces += [self._plan.gap, self._plan.heads[self._current], self._rest()]
        return "".join(pieces)

    def _rest(self) -> str:
        """What of the current body has not been passed on."""
        body, head = self._bodies[self._current], self._plan.heads[self._current]
        rest = body[self._passed :]
        first = not self._passed and bool(body)
        self._passed = len(body)
        on_the_head_s_line = not head.endswith("\n") and not body.startswith("\n")
        return f" {rest}" if first and on_the_head_s_line else rest
