"""How much of a new prompt a pass reads while others wait for their tokens."""

from __future__ import annotations

from dspark_gguf.config import MAX_ROWS
from dspark_gguf.cost import seconds_at
from dspark_gguf.learned_costs import LearnedCosts

#: Smaller pieces waste passes: one takes nearly as long as a piece of so many tokens.
_LEAST = 16
#: How fast the seconds of a token follow.
_GAIN = 0.25


class Pieces:
    """Chooses pieces by seconds: those who wait care for these, not for tokens.

    Args:
        costs: of passes over rows.
        patience: seconds that running answers wait at most, if `_LEAST` tokens allow that.
        n_batch: most tokens of a pass.

    """

    def __init__(self, costs: LearnedCosts, patience: float, n_batch: int) -> None:
        self.costs, self.patience, self.n_batch = costs, patience, n_batch
        self._each = 0.0  # seconds of a token of a piece

    def size(self, rows: int) -> int:
        """Tokens of a prompt to read beside so many rows of others."""
        if not rows:
            return self.n_batch
        seconds = self.costs.target_seconds
        each = self._each or float(seconds[-1] - seconds[0]) / (len(seconds) - 1)
        most, size = (self.patience - float(seconds_at(seconds, rows))) / each, _LEAST
        while 2 * size <= min(most, self.n_batch - MAX_ROWS):
            size *= 2
        return size

    def observe(self, count: int, rows: int, seconds: float) -> None:
        """A piece of `count` tokens beside so many rows took `seconds`, all together."""
        if rows:
            seconds -= float(seconds_at(self.costs.target_seconds, rows))
        each = max(seconds / count, 1e-9)
        self._each = (self._each or each) * (1.0 - _GAIN) + each * _GAIN
