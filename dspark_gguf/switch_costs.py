"""The cost of a new compute graph, which llama.cpp builds when the number of rows changes.

It reuses the graph of its last pass. With 30 layers a new one took 0.4 to 0.6 ms, 5 to 9 % of a
plain pass of the demo target on two cores. A draft pays for it twice: in the pass that verifies it,
where it is measured along, and in the plain pass that follows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

#: How fast both figures follow.
_GAIN = 1 / 16
#: Maximum share of a plain pass; anything more was another process.
_MAX = 0.25


class _Last(Enum):
    """The kind of the previous pass."""

    PLAIN, PROMPT, DRAFT = range(3)


@dataclass(slots=True)
class Switch:
    """Seconds relative to the common level, like all figures of `LearnedCosts`."""

    value: float = 0.0  # extra seconds of a plain pass after another kind of pass
    plain_after: float = 0.5  # share of drafts that are followed by a plain pass
    _last: _Last = field(default=_Last.PLAIN, init=False)
    _first: float = field(default=0.0, init=False)  # seconds of the plain pass after another kind

    @property
    def charge(self) -> float:
        """Average cost in the pass after a draft."""
        return self.value * self.plain_after

    def expect(self, value: float, usual: float) -> None:
        """Set what a profile measured, given the `usual` seconds of a plain pass."""
        self.value = min(max(value, 0.0), _MAX * usual)

    def prompted(self) -> None:
        """The last pass read a prompt."""
        self._last, self._first = _Last.PROMPT, 0.0

    def drafted(self) -> None:
        """The last pass verified a draft."""
        if self._last is _Last.DRAFT:
            self.plain_after -= _GAIN * self.plain_after
        self._last, self._first = _Last.DRAFT, 0.0

    def of_plain(self, seconds: float) -> float:
        """The part of a plain pass that was spent on a new graph.

        Learned from two consecutive plain passes, because a busy machine slows down both.
        """
        last, self._last = self._last, _Last.PLAIN
        if last is _Last.PLAIN:
            if self._first:
                more = min(max(self._first - seconds, -_MAX * seconds), _MAX * seconds)
                self.value = max(0.0, self.value + _GAIN * (more - self.value))
                self._first = 0.0
            return 0.0
        if last is _Last.DRAFT:
            self.plain_after += _GAIN * (1.0 - self.plain_after)
        self._first = seconds
        return min(self.value, _MAX * seconds)
