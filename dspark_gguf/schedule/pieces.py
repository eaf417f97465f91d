"""Chunked prefill: how much of a new prompt a pass reads while others wait for their tokens."""

from __future__ import annotations

from dspark_gguf.config import MAX_ROWS
from dspark_gguf.cost import seconds_at
from dspark_gguf.learned_costs import LearnedCosts

#: Smaller chunks waste passes: they take nearly as long as a chunk of so many tokens.
_LEAST = 16
#: How fast the estimate of the seconds per token follows.
_GAIN = 0.25


class PrefillChunks:
    """Chooses the size of prefill chunks by their seconds, which is what others wait for.

    Args:
        costs: of passes over rows.
        patience: maximum seconds that running answers wait, unless `_LEAST` tokens take longer.
        n_batch: maximum tokens of a pass.

    """

    def __init__(self, costs: LearnedCosts, patience: float, n_batch: int) -> None:
        self.costs, self.patience, self.n_batch = costs, patience, n_batch
        self._each = 0.0  # seconds per token of a chunk

    def size(self, rows: int) -> int:
        """Prompt tokens to read beside so many rows of others."""
        if not rows:
            return self.n_batch
        seconds = self.costs.target_seconds
        each = self._each or float(seconds[-1] - seconds[0]) / (len(seconds) - 1)
        most, size = (self.patience - float(seconds_at(seconds, rows))) / each, _LEAST
        while 2 * size <= min(most, self.n_batch - MAX_ROWS):
            size *= 2
        return size

    def observe(self, count: int, rows: int, seconds: float) -> None:
        """A chunk of `count` tokens and so many rows took `seconds` together."""
        if rows:
            seconds -= float(seconds_at(self.costs.target_seconds, rows))
        each = max(seconds / count, 1e-9)
        self._each = (self._each or each) * (1.0 - _GAIN) + each * _GAIN
