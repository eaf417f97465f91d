"""A sparse probability distribution over token ids.

Symbols used in the papers and here:

    papers   here     meaning
    p        target   the large model's distribution (Leviathan et al. write p, Chen et al. q)
    q        draft    the small model's distribution (Leviathan et al. write q, Chen et al. p)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]

_ONE: Probabilities = np.ones(1)


@dataclass(frozen=True, slots=True)
class Dist:
    """The token ids that can be drawn, and their probabilities."""

    ids: Ids  # ascending token ids, int64 [n]
    probs: Probabilities  # of these tokens, float64 [n], summing to 1

    @classmethod
    def point(cls, token: int) -> Dist:
        """All mass on one token: greedy decoding."""
        return cls(np.array([token]), _ONE)

    @property
    def top(self) -> int:
        """The most probable token; the smallest id among equals."""
        return int(self.ids[self.probs.argmax()])

    def prob(self, token: int) -> float:
        """Probability of `token`; 0 if it cannot be drawn."""
        if len(self.ids) == 1:
            return 1.0 if self.ids[0] == token else 0.0
        place = int(np.searchsorted(self.ids, token))
        found = place < len(self.ids) and self.ids[place] == token
        return float(self.probs[place]) if found else 0.0

    def draw(self, rng: np.random.Generator) -> int:
        """Draw a token. Uses one number of `rng`, or none if there is only one token."""
        if len(self.ids) == 1:
            return int(self.ids[0])
        edges = self.probs.cumsum()
        # The sum may be just below 1: scaling by it keeps a draw near 1 in range.
        place = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
        return int(self.ids[min(place, len(self.ids) - 1)])

    def residual(self, draft: Dist) -> Dist:
        """``max(0, target - draft)``, normalised: a rejected token's replacement is drawn from it.

        Leviathan et al. 2023, section 2.3; Chen et al. 2023, algorithm 2.
        """
        place = np.minimum(np.searchsorted(draft.ids, self.ids), len(draft.ids) - 1)
        proposed = np.where(draft.ids[place] == self.ids, draft.probs[place], 0.0)
        left = np.maximum(self.probs - proposed, 0.0)
        mass = left.sum()
        if mass <= 0.0:  # equal up to rounding: a rejection has probability ~1e-16
            return self
        kept = left > 0.0
        return Dist(self.ids[kept], left[kept] / mass)

    def entropy(self) -> float:
        """Shannon entropy in nats."""
        probs = self.probs[self.probs > 0.0]
        return float(-(probs * np.log(probs)).sum())
