"""How long passes take, by their rows, as learnt from those that were run."""

from __future__ import annotations

_RECENT = 1 / 32
"""How much less each pass counts than the one after it."""
_PRIOR = 16.0
"""How much the cost of a row counts that was measured at load: as that sum of squared deviations of
the rows."""
_OUTLIER = 3.0
"""A pass counts as no longer than so many times what was expected: the machine was busy."""


class Pace:
    """A line through recent passes: `seconds = base + row * rows`, by least squares.

    A row costs several times as much behind a long prompt as behind none, and the host's work for
    it as well, so what is measured at load is only where this begins.

    Args:
        row_seconds: cost of a row, measured at load.
    """

    def __init__(self, row_seconds: float) -> None:
        self._at_load = row_seconds
        self._weight = self._rows = self._seconds = 0.0
        self._squares = self._products = 0.0  # of deviations from the means

    @property
    def known(self) -> bool:
        """Whether any pass has been noted."""
        return self._weight > 0

    @property
    def row(self) -> float:
        """Seconds that a further row takes."""
        products = self._products + _PRIOR * self._at_load
        return max(products / (self._squares + _PRIOR), 0.0)

    def seconds(self, rows: int) -> float:
        """Expected duration of a pass of so many rows; meaningless before one was noted."""
        expected = self._seconds + self.row * (rows - self._rows)
        return max(expected, 0.1 * self._seconds, 1e-9)

    def note(self, rows: int, seconds: float) -> None:
        """Take note of a pass."""
        if self.known and _OUTLIER * seconds < self.seconds(rows):
            self._weight = self._squares = self._products = 0.0  # what was believed was a pause
        if self.known:
            seconds = min(seconds, _OUTLIER * self.seconds(rows))
        kept = (1 - _RECENT) * self._weight
        self._weight = kept + 1
        off, late = rows - self._rows, seconds - self._seconds
        self._rows += off / self._weight
        self._seconds += late / self._weight
        share = kept / self._weight
        self._squares = (1 - _RECENT) * self._squares + share * off * off
        self._products = (1 - _RECENT) * self._products + share * off * late
