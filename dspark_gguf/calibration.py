"""From a raw score of the draft's row to a probability that is true.

Of all draft tokens told 0.8, 80 % survive: that is what the schedule counts on. On line, survivors
are counted along the scale of the score, with a forgetting factor. Only what was tested counts: a
token after a rejection, or one that was never sent, says nothing, and a draft that was accepted as
a whole says no more than that each of its tokens survived.

A raw score is any number that grows with confidence and lives on the scale of log-odds: the gap
between the two best logits, or ``log_odds`` of a probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Knots of the scale, in log-odds. A score between two of them belongs to both, in part: with 13
#: knots this ranks like 14 hard bins and is 0.3 % (gap) to 1.2 % (probability) faster in replay.
KNOTS = (-1.5, -0.5, 0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.25, 4.0, 5.0, 6.5, 9.0)
N_KNOTS = len(KNOTS)

#: What is believed before anything was seen, and how many observations that is worth. The replay
#: hardly depends on these: within 0.2 % for half and for twice of each.
_PRIOR_SLOPE, _PRIOR_OFFSET, _PRIOR_WEIGHT = 1.0, 0.0, 4.0
#: The same for copies from the conversation, and their memory: what copies are worth follows the
#: kind of text, and all of them are tested for nothing.
_COPIES_SLOPE, _COPIES_OFFSET, _COPIES_WEIGHT, _COPIES_MEMORY = 0.6, -1.0, 8.0, 200.0
_LAW_WEIGHT = 4.0
_STICKINESS = 3.0

_LEARNED = ("survived", "tested", "follow", "start")


def log_odds(probability: float) -> float:
    """Score of a probability."""
    p = min(max(probability, 1e-6), 1.0 - 1e-6)
    return math.log(p / (1.0 - p))


def place_of(score: float) -> tuple[int, float]:
    """The knot below a score, and how far it is on the way to the next one, 0 to 1."""
    if score <= KNOTS[0]:
        return 0, 0.0
    for k in range(1, N_KNOTS):
        if score < KNOTS[k]:
            return k - 1, (score - KNOTS[k - 1]) / (KNOTS[k] - KNOTS[k - 1])
    return N_KNOTS - 2, 1.0


class Calibration:
    """Survival along the scale of the score, and how scores follow each other; learned on line.

    Args:
        memory: tested tokens after which an observation weighs 1/e.
        start_memory: drafts after which the first score of one does: it follows the kind of text.
        slope: of the log-odds of surviving, over the score, as believed at first.
        offset: of the same at score 0.
        weight: observations that this belief is worth.

    """

    def __init__(
        self,
        memory: float = 1000.0,
        start_memory: float = 60.0,
        slope: float = _PRIOR_SLOPE,
        offset: float = _PRIOR_OFFSET,
        weight: float = _PRIOR_WEIGHT,
    ) -> None:
        self._keep, self._keep_start = math.exp(-1.0 / memory), math.exp(-1.0 / start_memory)
        knots = np.array(KNOTS)
        self._prior = 1.0 / (1.0 + np.exp(-(slope * knots + offset)))
        self._weight = weight
        places = np.arange(N_KNOTS)
        # Sure tokens follow sure ones.
        self._prior_follow = _law(np.exp(-np.abs(np.subtract.outer(places, places)) / _STICKINESS))
        self._prior_start = np.full(N_KNOTS, 1.0 / N_KNOTS)
        self._survived, self._tested = np.zeros(N_KNOTS), np.zeros(N_KNOTS)
        self._follow, self._start = np.zeros((N_KNOTS, N_KNOTS)), np.zeros(N_KNOTS)

    @classmethod
    def of_copies(cls) -> Calibration:
        """One for guesses that are copied from the conversation."""
        return cls(
            _COPIES_MEMORY, slope=_COPIES_SLOPE, offset=_COPIES_OFFSET, weight=_COPIES_WEIGHT
        )

    def observe(self, scores: Sequence[float], survived: Sequence[float]) -> None:
        """Learn from one draft.

        Args:
            scores: of all looks, in order, the dropped one included.
            survived: of each token whose fate was seen (the accepted ones and the first rejected
                one), 1 or 0, or the probability that it had.

        """
        if not scores:
            return
        places = [place_of(score) for score in scores]
        self._start *= self._keep_start
        _add(self._start, places[0], 1.0)
        keep = self._keep ** max(1, len(survived))
        for counts in (self._survived, self._tested, self._follow):
            counts *= keep
        for place, chance in zip(places, survived):  # noqa: B905 - fewer are tested than looked at
            _add(self._tested, place, 1.0)
            _add(self._survived, place, chance)
        for (low, part), place in pairwise(places):
            _add(self._follow[low], place, 1.0 - part)
            _add(self._follow[low + 1], place, part)

    @property
    def tested(self) -> float:
        """Tokens that it has learned from, the forgotten part taken off."""
        return float(self._tested.sum())

    @property
    def confidence(self) -> Floats:
        """Probability ``[N_KNOTS]`` that a token survives, given that all before it did."""
        seen: Floats = self._survived + self._weight * self._prior
        seen /= self._tested + self._weight
        return seen

    @property
    def start(self) -> Floats:
        """Law of a draft's first score ``[N_KNOTS]``."""
        return _law(self._start + _LAW_WEIGHT * self._prior_start)

    @property
    def follow(self) -> Floats:
        """Law of the next score after each ``[N_KNOTS, N_KNOTS]``."""
        return _law(self._follow + _LAW_WEIGHT * self._prior_follow)

    def as_dict(self) -> dict[str, Any]:
        """What was learned, as plain lists."""
        return {name: getattr(self, f"_{name}").tolist() for name in _LEARNED}

    def restore(self, values: dict[str, Any]) -> None:
        """Take over what `as_dict` gave.

        Raises:
            ValueError: it does not fit.

        """
        learned = {}
        for name in _LEARNED:
            counts = np.asarray(values.get(name), dtype=np.float64)
            if counts.shape != getattr(self, f"_{name}").shape:
                raise ValueError(f"{name} of another shape")
            if not ((counts >= 0) & (counts < 1e12)).all():
                raise ValueError(f"{name} with a count that is none")
            learned[f"_{name}"] = counts
        if (learned["_survived"] > learned["_tested"] * (1 + 1e-9)).any():
            raise ValueError("more survivors than tests")
        vars(self).update(learned)


def _add(counts: Floats, place: tuple[int, float], weight: float) -> None:
    low, part = place
    counts[low] += weight * (1.0 - part)
    counts[low + 1] += weight * part


def _law(counts: Floats) -> Floats:
    out: Floats = counts / counts.sum(axis=-1, keepdims=True)
    return out
