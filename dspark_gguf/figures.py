"""Single measured figures, relative to a common level, and what of them is plausible.

Other programs only make a pass slower, never faster. So a figure that was hardly seen and cannot be
true was disturbed, and the true one is lower; and of several repeats the least is nearest to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from dspark_gguf.arrays import Floats

#: One slow pass must not turn drafting off, nor a fast one on: an observation counts as at most
#: this many times what was expected, or 1 over it; one that is lower than a figure that was hardly
#: seen, as 1 over the second.
_CLIP, _CLIP_LOWER = 2.0, 8.0
#: What was seen BELIEVED times is no longer taken to be too dear; below FEW, a lower observation
#: counts as nearly free of noise; from SURE on a figure is believed whatever the others say.
BELIEVED, FEW, SURE = 3, 4, 8
#: How fast a single figure follows once it was seen often.
_GAIN = 1 / 32
#: Variance of a lower observation of a figure that was hardly seen, over that of any other.
_LOWER = 0.1
#: A pass over more rows that is cheaper by more than this shows that the other one was disturbed:
#: 4 rows can truly be cheaper than 3, by a fifth on the machines that were measured.
_MAX_FALL = 1.3
#: One by one is always possible: a row more costs at most this many passes over one row.
_MAX_ROW = 1.1


class Figure:
    """A running geometric mean that trusts its first values less and less."""

    __slots__ = ("at", "last", "seen", "value")

    def __init__(self, value: float = 0.0, seen: int = 0) -> None:
        self.value, self.seen = value, seen
        self.at = 0  # when it was seen last
        self.last: tuple[float, ...] = (value,) if seen else ()

    def weigh(self, value: float) -> tuple[float, float, float]:
        """What an observation says: over what was expected, its variance, and the figure's.

        That is the median of the last three, so that a single stall says nothing.
        """
        doubt = max(1.0 / self.seen, _GAIN)
        if value < self.value and self.seen < FEW:
            return max(value / self.value, 1.0 / _CLIP_LOWER), _LOWER, doubt
        last = sorted((*self.last[-2:], value))
        middle = last[(len(last) - 1) // 2]
        return min(max(middle / self.value, 1.0 / _CLIP), _CLIP), 1.0, doubt

    def bound(self, most: float) -> float:
        """Its value, and at most `most` until it was seen often."""
        if self.seen < SURE:
            self.value = min(self.value, most)
        return self.value


def plausible(figures: Mapping[int, Figure]) -> list[float]:
    """Values of passes of these numbers of rows, in order; lowers those that cannot be true.

    A figure that was hardly seen, between others that say that it should be lower, counts half:
    what stands in the way of its being tried is a busy moment more often than a step of the curve.
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
    """The convex curve below these points that touches as many as it can, at these places."""
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
    """Seconds of passes of 1, 2, ... `most` rows, over the level.

    Between two figures in proportion; beyond the last one as steeply as from the first to it or
    just before it, whichever is steeper: the first real pass will tell.
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
