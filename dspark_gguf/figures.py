"""Measured figures, relative to a common level, and checks that they are plausible.

Other programs only make a pass slower, never faster. So a figure that was seldom seen and cannot be
true was disturbed, and the true one is lower; of several repeats the smallest is the closest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from dspark_gguf.arrays import Floats

#: One slow pass must not turn drafting off, nor a fast one turn it on: an observation is clipped to
#: this factor of the expected value, up and down; a lower one of a figure that was seldom seen, to
#: 1 over the second factor.
_CLIP, _CLIP_LOWER = 2.0, 8.0
#: Observations after which a figure is no longer assumed to be too high (BELIEVED), below which a
#: lower observation counts as nearly free of noise (FEW), and after which a figure is believed
#: whatever the others say (SURE).
BELIEVED, FEW, SURE = 3, 4, 8
#: Weight of an observation once a figure was seen often.
_GAIN = 1 / 32
#: Variance of a lower observation of a figure that was seldom seen, relative to any other.
_LOWER = 0.1
#: If a pass over more rows is cheaper by more than this factor, the other one was disturbed: 4 rows
#: can really be cheaper than 3, by a fifth on the machines that were measured.
_MAX_FALL = 1.3
#: A further row costs at most this many passes over one row.
_MAX_ROW = 1.1


class Figure:
    """A running geometric mean in which the first values fade."""

    __slots__ = ("at", "last", "seen", "value")

    def __init__(self, value: float = 0.0, seen: int = 0) -> None:
        self.value, self.seen = value, seen
        self.at = 0  # when it was seen last
        self.last: tuple[float, ...] = (value,) if seen else ()

    def weigh(self, value: float) -> tuple[float, float, float]:
        """Weigh an observation: its ratio to the expected value, its variance, and the figure's.

        The ratio is that of the median of the last three, so that a single stall has no effect.
        """
        doubt = max(1.0 / self.seen, _GAIN)
        if value < self.value and self.seen < FEW:
            return max(value / self.value, 1.0 / _CLIP_LOWER), _LOWER, doubt
        last = sorted((*self.last[-2:], value))
        middle = last[(len(last) - 1) // 2]
        return min(max(middle / self.value, 1.0 / _CLIP), _CLIP), 1.0, doubt

    def bound(self, most: float) -> float:
        """Its value, lowered to `most` unless it was seen often."""
        if self.seen < SURE:
            self.value = min(self.value, most)
        return self.value


def plausible(figures: Mapping[int, Figure]) -> list[float]:
    """Values of passes by number of rows, in order; lowers those that cannot be true.

    A figure that was seldom seen, and should be lower according to its neighbours, counts half: a
    busy moment is more likely than a step in the curve.
    """
    counts, least = sorted(figures), math.inf
    for count in reversed(counts):
        least = min(least, figures[count].bound(_MAX_FALL * least))
    values = [figures[counts[0]].value]
    row = _MAX_ROW * values[0] / counts[0]
    for before, count in pairwise(counts):
        values.append(figures[count].bound(values[-1] + row * (count - before)))
    out, sure = values[:1], 0.0
    for count, value, low in zip(counts[1:], values[1:], _hull(counts, values)[1:], strict=True):
        if figures[count].seen < BELIEVED:
            out.append(max(math.sqrt(value * low), min(sure, value)))
        else:
            out.append(value)
            sure = max(sure, value)
    return out


def _hull(places: Sequence[int], values: Sequence[float]) -> list[float]:
    """The lower convex hull of these points, at these places."""
    ends: list[tuple[int, float]] = []
    for x, y in zip(places, values, strict=True):
        while len(ends) > 1:
            (a, b), (c, d) = ends[-2:]
            if (d - b) * (x - a) < (y - b) * (c - a):
                break
            ends.pop()
        ends.append((x, y))
    xs, ys = [x for x, _ in ends], [y for _, y in ends]
    return [float(y) for y in np.interp(places, xs, ys)]


def fill_in(figures: Mapping[int, Figure], most: int) -> Floats:
    """Seconds of passes of 1, 2, ... `most` rows, relative to the level.

    Interpolated linearly; extrapolated with the slope over all figures or of the last two,
    whichever is steeper, until the first real pass.
    """
    rows, seen = np.arange(1, most + 1), sorted(figures)
    if not seen:
        return rows.astype(np.float64)
    values = plausible(figures)
    out: Floats = np.interp(rows, seen, values)
    end, last = seen[-1], values[-1]
    slopes = [(last - y) / (end - x) for x, y in zip(seen, values, strict=True) if x < end]
    slope = min(max(slopes[0], slopes[-1]), last / end) if slopes else last / end
    out[end:] = last + slope * (rows[end:] - end)
    return out
