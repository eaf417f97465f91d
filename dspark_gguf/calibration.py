"""Calibration: turn a raw score of a draft token into its true probability of acceptance.

Of all draft tokens predicted to survive with 0.8, 80 % do: the schedule relies on that. Survivors
are counted online along the scale of the score, with a forgetting factor. Only tested tokens count:
a token after a rejection, or one that was never verified, tells nothing, and a fully accepted draft
only tells that each of its tokens survived.

A raw score is any number that grows with confidence and is on the scale of log-odds: the gap
between the two best logits, or ``log_odds`` of a probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from dspark_gguf.arrays import Floats

#: Knots of the scale, in log-odds. A score between two of them belongs to both, in part: with 13
#: knots this ranks like 14 hard bins and is 0.3 % (gap) to 1.2 % (probability) faster in replay.
KNOTS = (-1.5, -0.5, 0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.25, 4.0, 5.0, 6.5, 9.0)
N_KNOTS = len(KNOTS)

#: Prior and memory for lookup tokens: their acceptance changes with the kind of text, and all of
#: them are tested for free.
_OF_LOOKUP = {"memory": 200.0, "slope": 0.6, "offset": -1.0, "weight": 8.0}
_PRIOR_WEIGHT = 4.0
_STICKINESS = 3.0

_Count = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
_Counts = Annotated[list[_Count], Field(min_length=N_KNOTS, max_length=N_KNOTS)]


class CalibrationRecord(BaseModel):
    """The counts of a `Calibration`, as saved in a file."""

    survived: _Counts
    tested: _Counts
    start: _Counts
    follow: Annotated[list[_Counts], Field(min_length=N_KNOTS, max_length=N_KNOTS)]

    @model_validator(mode="after")
    def _no_more_survivors_than_tests(self) -> CalibrationRecord:
        both = zip(self.survived, self.tested, strict=True)
        if any(survived > tested * (1 + 1e-9) for survived, tested in both):
            raise ValueError("more survivors than tests")
        return self


def log_odds(probability: float) -> float:
    """The score of a probability."""
    p = min(max(probability, 1e-6), 1.0 - 1e-6)
    return math.log(p / (1.0 - p))


def place_of(score: float) -> tuple[int, float]:
    """The knot below a score, and its relative distance to the next one, 0 to 1."""
    if score <= KNOTS[0]:
        return 0, 0.0
    for k in range(1, N_KNOTS):
        if score < KNOTS[k]:
            return k - 1, (score - KNOTS[k - 1]) / (KNOTS[k] - KNOTS[k - 1])
    return N_KNOTS - 2, 1.0


class Calibration:
    """Survival by score, and which score follows which; learned online.

    Args:
        memory: tested tokens after which an observation weighs 1/e.
        start_memory: the same for first scores, in drafts: they change with the kind of text.
        slope: prior log-odds of survival per unit of the score. The prior hardly matters: half or
            twice of it changes a replay by less than 0.2 %.
        offset: prior log-odds of survival at score 0.
        weight: observations that the prior is worth.
    """

    def __init__(
        self,
        memory: float = 1000.0,
        start_memory: float = 60.0,
        slope: float = 1.0,
        offset: float = 0.0,
        weight: float = 4.0,
    ) -> None:
        self._keep, self._keep_start = math.exp(-1.0 / memory), math.exp(-1.0 / start_memory)
        knots = np.array(KNOTS)
        self._prior = 1.0 / (1.0 + np.exp(-(slope * knots + offset)))
        self._weight = weight
        places = np.arange(N_KNOTS)
        # Confident tokens follow confident ones.
        self._prior_follow = _normalised(
            np.exp(-np.abs(np.subtract.outer(places, places)) / _STICKINESS)
        )
        self._survived, self._tested = np.zeros(N_KNOTS), np.zeros(N_KNOTS)
        self._follow, self._start = np.zeros((N_KNOTS, N_KNOTS)), np.zeros(N_KNOTS)

    @classmethod
    def of_copies(cls) -> Calibration:
        """One for tokens that lookup copies from the conversation."""
        return cls(**_OF_LOOKUP)

    def observe(self, scores: Sequence[float], survived: Sequence[float]) -> None:
        """Learn from one draft.

        `scores` are those of all draft steps in order, including a dropped one. `survived` has 1 or
        0, or the probability of 1, for each tested token: the accepted ones and the first rejected.
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
        """Number of tokens that it has learned from, less the forgotten part."""
        return float(self._tested.sum())

    @property
    def confidence(self) -> Floats:
        """Probability ``[N_KNOTS]`` that a token survives if all before it did."""
        seen: Floats = self._survived + self._weight * self._prior
        seen /= self._tested + self._weight
        return seen

    @property
    def start(self) -> Floats:
        """Distribution of a draft's first score ``[N_KNOTS]``."""
        return _normalised(self._start + _PRIOR_WEIGHT / N_KNOTS)

    @property
    def follow(self) -> Floats:
        """Distribution of the next score after each score ``[N_KNOTS, N_KNOTS]``."""
        return _normalised(self._follow + _PRIOR_WEIGHT * self._prior_follow)

    def as_dict(self) -> dict[str, Any]:
        """What was learned, as the values of a `CalibrationRecord`."""
        names = CalibrationRecord.model_fields
        return {name: getattr(self, f"_{name}").tolist() for name in names}

    def restore(self, values: CalibrationRecord | dict[str, Any]) -> None:
        """Restore the values of `as_dict`; a ValueError if they are invalid."""
        for name, counts in CalibrationRecord.model_validate(values):
            setattr(self, f"_{name}", np.array(counts))


def _add(counts: Floats, place: tuple[int, float], weight: float) -> None:
    low, part = place
    counts[low] += weight * (1.0 - part)
    counts[low + 1] += weight * part


def _normalised(counts: Floats) -> Floats:
    out: Floats = counts / counts.sum(axis=-1, keepdims=True)
    return out
