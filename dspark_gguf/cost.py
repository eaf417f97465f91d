"""What a round costs on this machine: seconds of a target pass by rows, and of drafting by looks.

The curve is jagged (4 rows can be cheaper than 3), differs by quantization, cores and backend, and
becomes slower as the context grows: only measurement on this machine knows it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.errors import UsageError
from dspark_gguf.records import Round

Floats = npt.NDArray[np.float64]


class Costs(Protocol):
    """Seconds of the parts of a round."""

    @property
    def target_seconds(self) -> Floats:
        """Of a target pass of 1, 2, ... rows, with everything around it but drafting."""

    @property
    def draft_seconds(self) -> Floats:
        """Of 1, 2, ... looks at the draft's rows, cumulative."""

    @property
    def redo_seconds(self) -> Floats:
        """Of taking back a draft of which 0, 1, ... tokens were accepted, and reading these again.

        Nothing, where the target's cache takes back single tokens.
        """

    def catch_up_seconds(self, tokens: int) -> float:
        """Of the drafter reading `tokens` that it missed, before its first look."""

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""


class FixedCosts:
    """A table that does not change: for replays.

    Args:
        target_seconds: of a pass of 1, 2, ... rows.
        draft_seconds: of 1, 2, ... looks, cumulative.
        replays: whether a rejection costs a pass over what was accepted.

    Raises:
        ValueError: empty, not finite, not positive, or draft seconds that fall.

    """

    def __init__(
        self,
        target_seconds: npt.ArrayLike,
        draft_seconds: npt.ArrayLike,
        *,
        replays: bool = False,
    ) -> None:
        self.target_seconds = _seconds(target_seconds, "target_seconds")
        self.draft_seconds = _seconds(draft_seconds, "draft_seconds")
        self.redo_seconds = self.target_seconds * replays
        if (np.diff(self.draft_seconds) < 0).any():
            raise ValueError("draft_seconds are cumulative: they cannot fall")

    @property
    def limit(self) -> int:
        """Most draft tokens that both lists cover."""
        return min(len(self.target_seconds) - 1, len(self.draft_seconds))

    def catch_up_seconds(self, tokens: int) -> float:
        """Nothing: tables do not know it."""
        return 0.0

    def observe(self, round: Round) -> None:
        """Nothing to learn."""


#: One slow pass must not turn drafting off, nor a fast one on: an observation counts as at most
#: this many times what was expected, or 1 over it.
_CLIP = 2.0
#: A pass over n rows takes at most this many times n passes over one row.
_MOST_OVER = 1.1
#: How fast the common level follows (a longer context, a machine that throttles), and how fast a
#: single figure does once it was seen often.
_LEVEL_GAIN, _GAIN = 1 / 8, 1 / 32
#: No pass takes so long: a file that says so is damaged.
_MOST_SECONDS = 1e6
#: First looks after this many missed tokens say what reading costs; up to _USUAL, what a first
#: look usually costs.
_USUAL, _LONG = 2, 16


class _Figure:
    """A running geometric mean that trusts its first values less and less."""

    __slots__ = ("seen", "value")

    def __init__(self, value: float = 0.0, seen: int = 0) -> None:
        self.value, self.seen = value, seen

    def add(self, value: float) -> float:
        """Take in an observation; returns it over what was expected, clipped."""
        if not self.seen:
            self.value, self.seen = value, 1
            return 1.0
        surprise = min(max(value / self.value, 1.0 / _CLIP), _CLIP)
        self.value *= surprise ** max(1.0 / (self.seen + 1), _GAIN)
        self.seen = min(self.seen + 1, 1_000_000)
        return float(surprise)


class LearnedCosts:
    """Costs from a short profile and from every round since.

    All figures are kept relative to a common level, which follows quickly what makes everything
    slower at once. A number of rows that was never run is filled in between its neighbours; beyond
    the largest one, rows cost in proportion: nothing is trusted where nothing was measured.

    """

    limit = MAX_DRAFT
    #: Most draft tokens of a round that the profile had in mind.
    profiled: int
    #: Whether a rejection costs a pass over what was accepted.
    replays = False

    def __init__(self) -> None:
        self.level = 1.0
        self.profiled = 0
        self._rows: dict[int, _Figure] = {}
        self._first, self._step, self._read = _Figure(), _Figure(), _Figure()
        self._curve: Floats | None = None  # of the target's seconds, over the level

    def covers(self, limit: int, looks: bool) -> bool:
        """Whether enough was measured to decide by.

        Args:
            limit: most draft tokens of a round.
            looks: whether somebody looks.

        """
        passes = 1 in self._rows and len(self._rows) > 1
        return passes and self.profiled >= limit and (self._step.seen > 0 or not looks)

    @property
    def measured_rows(self) -> list[int]:
        """Numbers of rows that were run."""
        return sorted(self._rows)

    @property
    def target_seconds(self) -> Floats:
        """Of a target pass of 1, 2, ... ``limit + 1`` rows, with everything around it."""
        if self._curve is None:
            self._curve = self._fill_in()
        return self._curve * self.level

    @property
    def redo_seconds(self) -> Floats:
        """Of reading 0, 1, ... accepted tokens again, and the one before them."""
        return self.target_seconds * self.replays

    def _fill_in(self) -> Floats:
        rows = np.arange(1, self.limit + 2)
        if not self._rows:
            return rows.astype(np.float64)
        seen = self.measured_rows
        seconds = np.interp(rows, seen, [self._rows[k].value for k in seen])
        beyond = rows > seen[-1]
        seconds[beyond] = self._rows[seen[-1]].value * rows[beyond] / seen[-1]
        # One by one is always possible: much more is what a disturbed measurement said.
        out: Floats = np.minimum(seconds, _MOST_OVER * seconds[0] * rows)
        return out

    @property
    def draft_seconds(self) -> Floats:
        """Of 1, 2, ... ``limit`` looks, cumulative; never measured: as dear as target passes."""
        plain = float(self.target_seconds[0]) / self.level
        step = self._step.value if self._step.seen else plain
        first = self._first.value if self._first.seen else step
        looks = np.arange(self.limit, dtype=np.float64)
        return (first + step * looks) * self.level

    def catch_up_seconds(self, tokens: int) -> float:
        """Of reading `tokens` before the first look; the usual ones are part of the look."""
        if tokens <= _USUAL:
            return 0.0
        read = self._read.value if self._read.seen else self._step.value
        return read * tokens * self.level

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""
        if not round.tokens or round.prefill_seconds:
            return
        seconds = round.seconds - round.draft_seconds
        if round.reread <= self.limit:
            self.add_pass(1 + round.drafted, seconds * self._own_share(round))
        for segment in round.draft.segments:
            for k, look in enumerate(segment.seconds):
                if k:
                    self.add_look(look)
                else:
                    self.add_first_look(look, segment.caught_up)

    def _own_share(self, round: Round) -> float:
        """Share of the pass in its seconds: the rest is what was read again before it."""
        if not round.reread:
            return 1.0
        curve = self.target_seconds
        own, again = float(curve[round.drafted]), float(curve[round.reread - 1])
        return own / (own + again)

    def add_pass(self, rows: int, seconds: float) -> None:
        """A target pass of so many rows took so long."""
        if seconds <= 0.0 or rows > self.limit + 1:
            return
        figure = self._rows.get(rows, _Figure())
        surprise = figure.add(seconds / self.level)
        self._rows[rows] = figure  # last, so that no exception leaves one that was never seen
        self._curve = None
        if figure.seen > 2:
            self.level *= surprise**_LEVEL_GAIN

    def add_look(self, seconds: float) -> None:
        """A look after the first of a draft took so long."""
        if seconds > 0.0:
            self._step.add(seconds / self.level)

    def add_first_look(self, seconds: float, caught_up: int) -> None:
        """The first look of a draft, which read so many tokens."""
        if seconds <= 0.0:
            return
        if caught_up <= _USUAL:
            self._first.add(seconds / self.level)
        elif caught_up >= _LONG and self._step.seen:
            rest = seconds / self.level - self._step.value
            self._read.add(max(rest / (caught_up - 1), self._step.value / 1000))

    def as_dict(self) -> dict[str, Any]:
        """What was learned, as plain values."""
        figures = {str(rows): figure for rows, figure in self._rows.items()}
        figures |= {"first": self._first, "step": self._step, "read": self._read}
        return {
            "level": self.level,
            "profiled": self.profiled,
            "figures": {name: [figure.value, figure.seen] for name, figure in figures.items()},
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Take over what `as_dict` gave.

        Raises:
            ValueError: it does not fit.

        """
        level = float(values["level"])
        figures = {
            name: _Figure(float(value), int(seen))
            for name, (value, seen) in dict(values["figures"]).items()
        }
        good = all(0 <= f.value < _MOST_SECONDS and f.seen >= 0 for f in figures.values())
        if not (good and 0 < level < _MOST_SECONDS):
            raise ValueError("seconds that are none")
        first, step, read = (figures.pop(name) for name in ("first", "step", "read"))
        rows = {int(name): figure for name, figure in figures.items()}
        known = range(1, self.limit + 2)
        if any(count not in known or not figure.value > 0 for count, figure in rows.items()):
            raise ValueError("rows that are none")
        self.level, self._rows = level, rows
        self.profiled = int(values.get("profiled", 12))
        self._first, self._step, self._read = first, step, read
        self._curve = None


def _seconds(values: npt.ArrayLike, name: str) -> Floats:
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1 or not len(out) or not np.isfinite(out).all() or (out < 0).any():
        raise ValueError(f"{name}: a list of finite seconds, 0 or more")
    if name == "target_seconds" and not (out > 0).all():
        raise ValueError(f"{name}: seconds above 0")
    return out


def load_table(path: Path) -> FixedCosts:
    """A cost table: ``{"target_seconds": [...], "draft_seconds": [...]}``.

    Raises:
        UsageError: it is no such file.

    """
    wanted = f'{{"target_seconds": [...], "draft_seconds": [...]}} in {path}'
    try:
        values = json.loads(path.read_text("utf-8"))
        return FixedCosts(values["target_seconds"], values["draft_seconds"])
    except OSError as error:
        raise UsageError("a cost table", f"{error.strerror}: {path}", "check the path") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        got = str(error) if type(error) is ValueError else "something else"
        raise UsageError(wanted, got, "see `dspark-gguf profile --json`") from None
