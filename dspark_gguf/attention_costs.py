"""The cost of a long context: attention reads all of it in every pass, partly once per row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dspark_gguf.arrays import Floats

#: Variance of the log of a figure: guessed from file sizes, from an earlier run, and the minimum.
GUESSED, KEPT, _SUREST = 30.0, 1.0, 0.02

#: Variance added by a jump to another depth, in full from so many tokens on.
_JUMP, _NEAR = 3.0, 1000.0


@dataclass(slots=True)
class Factor:
    """A figure and its doubt, the variance of its log. A value of 0 is unknown, and stays 0."""

    value: float = 0.0
    doubt: float = GUESSED

    def follow(self, surprise: float, weight: float, whole: float) -> None:
        """Update from a surprise to which it contributed with `weight`; `whole` is the variance."""
        gain = self.doubt * weight / whole
        self.value *= surprise**gain
        self.doubt = max(self.doubt * (1.0 - gain * weight), _SUREST)


#: The factors in an observation, each with its share of what attention adds.
Shares = tuple[tuple[Factor, float], ...]


@dataclass(slots=True)
class Attention:
    """Seconds that attention adds to passes, relative to the common level.

    Reading a context of `depth` tokens adds ``target * depth`` to a pass over one row, ``draft *
    depth`` to a draft step. A further row of the same conversation costs `row` times that: hardly
    anything where reading memory is what takes time, and all of it again where computing is.
    """

    depth: float = 0.0  # tokens of context; of several conversations: the mean
    conversations: int = 1  # that share each pass
    target: Factor = field(default_factory=Factor)
    draft: Factor = field(default_factory=Factor)
    row: Factor = field(default_factory=lambda: Factor(1.0))

    def expect(self, target: float, draft: float, row: float) -> None:
        """Set guesses for what is unknown."""
        if not self.target.value:
            self.target, self.row = Factor(target), Factor(row)
        if not self.draft.value:
            self.draft = Factor(draft)

    def begin(self, depth: float) -> None:
        """A prompt of `depth` tokens was read: what depends on depth is uncertain again."""
        moved = abs(depth - self.depth) / max(depth, self.depth, _NEAR)
        for each in (self.target, self.draft, self.row):
            each.doubt = min(each.doubt + _JUMP * moved, GUESSED)
        self.depth, self.conversations = depth, 1

    @property
    def state(self) -> tuple[float, ...]:
        """What `of_passes` depends on."""
        return self.depth, self.conversations, self.target.value, self.row.value

    def of_passes(self, rows: Floats) -> Floats:
        """Seconds added to target passes of so many rows."""
        first = np.minimum(rows, self.conversations)
        found: Floats = self.depth * self.target.value * (first + self.row.value * (rows - first))
        return found

    def of_pass(self, rows: int) -> tuple[float, Shares]:
        """Seconds added to one pass, and the factors in them."""
        first = min(rows, self.conversations)
        further = self.row.value * (rows - first)
        reads = first + further
        seconds = self.depth * self.target.value * reads
        return seconds, ((self.target, 1.0), (self.row, further / reads))

    def of_draft_step(self) -> tuple[float, Shares]:
        """Seconds added to a draft step, and the factors in them."""
        return self.depth * self.draft.value, ((self.draft, 1.0),)

    def of_reading(self, tokens: int) -> float:
        """Seconds added per token when a draft reads the last `tokens`."""
        before = max(0.0, self.depth - tokens / 2)
        return before * self.draft.value * self.row.value

    def restore(self, values: Mapping[Any, float]) -> None:
        """Restore what an earlier run has learned."""
        for name in ("target", "draft", "row"):
            if value := values.get(name):
                setattr(self, name, Factor(value, KEPT))

    def as_dict(self) -> dict[str, float]:
        """The values for `restore`."""
        names = ("target", "draft", "row")
        return {name: value for name in names if (value := getattr(self, name).value)}
