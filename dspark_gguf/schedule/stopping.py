"""Optimal stopping for a rate: how long to draft for the most tokens per second.

Let ``rate`` be the long-run tokens per second. A round that takes t seconds and emits n tokens is
worth ``n - rate * t``; under the best policy the expected worth of a round is zero (Dinkelbach
1967). For a given rate the best policy is found by backward induction over the draft steps; the
rate at which its worth is zero, by a few secant steps.

State at draft step k: its score, and the survival of the tokens before it. Choices:

    drop   verify the k - 1 tokens before; the step is paid for, its token is not drawn
    stop   draw token k and verify k tokens
    go     draw token k and pay for one more step

If the target's cache cannot drop single tokens, a rejection costs a pass over the accepted tokens:
each token k is charged the probability that it is the first rejected one, times the seconds of that
pass.

All three are decided before token k is drawn, from scores that do not depend on it: lossless with
any acceptance rule. SpecDec++ (arXiv 2405.19715) shows that the best rule is a threshold on the
survival; here that is one coordinate of the state, and the threshold follows from measured costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dspark_gguf.arrays import Floats
from dspark_gguf.calibration import Calibration, place_of

_GRID = 33
_SURVIVAL = np.linspace(0.0, 1.0, _GRID)
_EVALUATIONS = 4


@dataclass(frozen=True, slots=True)
class Policy:
    """The best policy for the current estimates."""

    rate: float  # tokens per second if every round drafts
    plain_rate: float  # the same of plain decoding
    confidence: Floats  # at each knot of the score [knots]
    target_seconds: Floats  # of 1, 2, ... rows [limit + 1]
    redo_seconds: Floats  # of a rejection after 0, 1, ... accepted tokens [limit]
    #: Worth of continuing after step k, by its score and the survival including its token
    #: [limit, knots, grid], less the seconds of the next step.
    ahead: Floats
    #: Worth of a first step after k free tokens, by their survival [limit, grid], less the seconds
    #: of that step.
    opening: Floats

    def slowed(self, factor: float) -> Policy:
        """The same policy if everything takes `factor` times as long; worths are in tokens."""
        return replace(
            self,
            rate=self.rate / factor,
            plain_rate=self.plain_rate / factor,
            target_seconds=self.target_seconds * factor,
            redo_seconds=self.redo_seconds * factor,
        )

    def worth_of_steps(self, survival: Sequence[float]) -> Floats:
        """Worth of a draft step after 0, 1, ... tokens of this survival, beyond these tokens."""
        count = min(len(survival), len(self.opening))
        return np.array([np.interp(survival[k], _SURVIVAL, self.opening[k]) for k in range(count)])

    @property
    def limit(self) -> int:
        """Maximum tokens of a draft."""
        return len(self.redo_seconds)

    @property
    def drafts(self) -> bool:
        """Whether drafting beats plain decoding."""
        return self.rate > self.plain_rate

    def choose(self, k: int, score: float, survival: float) -> tuple[bool, bool, float]:
        """What to do after draft step `k` (from 1), given its row's score and the survival so far.

        Returns whether to draw its token, whether to take one more step after it, and the survival
        including it.
        """
        low, part = place_of(score)
        confidence = self.confidence[low] * (1.0 - part) + self.confidence[low + 1] * part
        after = survival * float(confidence)
        rate = max(self.rate, self.plain_rate)
        drop = -rate * self.target_seconds[k - 1]
        gain = after - rate * self.redo_seconds[k - 1] * (survival - after)
        stop = gain - rate * self.target_seconds[k]
        go = -np.inf
        if k < len(self.ahead):
            x = after * (_GRID - 1)
            place = min(int(x), _GRID - 2)
            ends = self.ahead[k - 1, low : low + 2, place : place + 2].tolist()
            (a, b), (c, d) = ends
            left, right = a * (1.0 - part) + c * part, b * (1.0 - part) + d * part
            go = gain + left + (x - place) * (right - left)
        return bool(max(stop, go) > drop), bool(go > stop), after


def solve(
    calibration: Calibration,
    target_seconds: Floats,
    draft_seconds: Floats,
    guess: float | None = None,
    redo_seconds: Floats | None = None,
) -> Policy:
    """The policy with the highest rate.

    Args:
        calibration: confidence by score, and the distributions of scores.
        target_seconds: of a pass of 1, 2, ... rows ``[limit + 1]``.
        draft_seconds: of 1, 2, ... draft steps, cumulative ``[limit]``.
        guess: an initial rate, such as the last policy's.
        redo_seconds: of a rejection after 0, 1, ... accepted tokens ``[limit]``; default: 0.

    """
    redo = np.zeros_like(draft_seconds) if redo_seconds is None else redo_seconds
    problem = _Problem(calibration, target_seconds, draft_seconds, redo)
    low = plain = 1.0 / float(target_seconds[0])
    worth_low, ahead, opening = problem.solve(plain)
    # The worth of a round falls with the rate, and never by more than the longest round takes.
    rate = low + worth_low * plain / (3.0 if worth_low > 0.0 else 1.0)
    if worth_low > 0.0 and guess is not None and guess > low:
        rate = guess
    for _ in range(_EVALUATIONS - 1):
        worth, *there = problem.solve(rate)
        if rate >= plain:
            ahead, opening = there
        slope = (worth_low - worth) / (rate - low) if rate != low else 0.0
        if slope <= 0.0:
            break
        better = max(rate + worth / slope, 0.05 * plain)
        done = abs(better - rate) < 1e-3 * plain
        if worth > 0.0 or worth_low <= 0.0:
            low, worth_low = rate, worth
        rate = better
        if done or better < plain:  # below plain decoding, a rough figure is enough
            break
    return Policy(rate, plain, problem.confidence, target_seconds, redo, ahead, opening)


class _Problem:
    """One set of probabilities and costs, solved for several rates."""

    def __init__(
        self,
        calibration: Calibration,
        target_seconds: Floats,
        draft_seconds: Floats,
        redo_seconds: Floats,
    ) -> None:
        self.confidence, self.start = calibration.confidence, calibration.start
        self.follow = calibration.follow
        self.target_seconds, self.redo_seconds = target_seconds, redo_seconds
        self.step_seconds = np.diff(draft_seconds, prepend=0.0)
        self.after = self.confidence[:, None] * _SURVIVAL  # with the token [knots, grid]
        self.rejected = _SURVIVAL - self.after  # here, and not before
        x = self.after * (_GRID - 1)
        low = np.minimum(x.astype(np.intp), _GRID - 2)
        self._part = x - low
        self._low = low + np.arange(len(low))[:, None] * _GRID  # into a flat [knots * grid]
        self._high = self._low + 1

    def solve(self, rate: float) -> tuple[float, Floats, Floats]:
        """Worth of a round of at least one step, what lies ahead of each step, and openings."""
        limit = len(self.step_seconds)
        opening = np.empty((limit, _GRID))
        ahead = np.full((limit, *self.after.shape), -np.inf)
        value = np.zeros_like(self.after)
        for k in range(limit, 0, -1):
            gain = self.after
            if redo := rate * self.redo_seconds[k - 1]:
                gain = gain - redo * self.rejected
            best = gain - rate * self.target_seconds[k]  # stop
            if k < limit:
                line = self.follow @ value - rate * self.step_seconds[k]
                ahead[k - 1] = line
                flat = line.ravel()
                low = flat.take(self._low)
                go = gain + low + self._part * (flat.take(self._high) - low)
                np.maximum(best, go, out=best)
            value = np.maximum(best, -rate * self.target_seconds[k - 1])  # drop
            opening[k - 1] = self.start @ value
        opening -= rate * self.step_seconds[0]
        return 1.0 + float(opening[0, -1]), ahead, opening
