"""Costs that are learned online: from a profile, then from every round."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from dspark_gguf.arrays import Floats
from dspark_gguf.attention_costs import Attention, Shares
from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.costs_record import MAX_SEEN, CostsRecord
from dspark_gguf.figures import BELIEVED, SURE, Figure, fill_in
from dspark_gguf.records import Round
from dspark_gguf.switch_costs import Switch

#: Maximum cost of a draft step, and of a first one, relative to a pass of the larger target.
_MAX_STEP, _MAX_FIRST = 1.1, 3.0
#: Variance of the common level, relative to that of an observation: after a profile, which may have
#: been disturbed as a whole, and what each observation adds. In the long run the level follows by
#: an eighth (another process, a machine that throttles).
_LEVEL_DOUBT, _LEVEL_DRIFT = 2.5, 1 / 56
#: Passes after which a number of rows that was not run since may be tried again.
_STALE = 512
#: Passes after which the gaps between reliable figures are interpolated again (up to 0.15 ms).
_FILL_EVERY = 32
#: First draft steps that read at least _LONG tokens show the cost of reading; with at most _USUAL,
#: the cost of a usual first step.
_USUAL, _LONG = 2, 16
#: Minimum share of a figure's first observation that is not attributed to attention.
_LEAST_OWN = 0.25
_STEPS, _ROWS = ("first", "step", "read"), np.arange(1.0, MAX_DRAFT + 2)


class LearnedCosts:
    """Costs from a short profile and from every round since.

    All figures are relative to a common level, which quickly follows whatever slows everything
    down. They hold near the start of a context; attention is added. Numbers of rows that were never
    run are interpolated. Figures of earlier runs count less: another day, another load.
    """

    limit = MAX_DRAFT
    rereads = False  # whether a rejection costs a pass over what was accepted

    def __init__(self) -> None:
        self.level = 1.0
        self._level_doubt, self._passes = _LEVEL_DOUBT, 0
        self.profiled = 0  # maximum draft tokens of a round that the profile covered
        self.starts = 0  # processes that started from these costs
        self._rows: dict[int, Figure] = {}
        self._first, self._step, self._read = Figure(), Figure(), Figure()
        self._curve: Floats | None = None  # target seconds near the start, relative to the level
        self.attention, self.switch = Attention(), Switch()
        self._found: tuple[object, Floats] | None = None  # `target_seconds` and what they depend on

    def covers(self, limit: int, drafts: bool) -> bool:
        """Whether enough was measured for `limit` draft tokens, with `drafts` or only lookup."""
        passes = 1 in self._rows and len(self._rows) > 1
        return passes and self.profiled >= limit and (self._step.seen > 0 or not drafts)

    @property
    def measured_rows(self) -> list[int]:
        """Numbers of rows that were run."""
        return sorted(self._rows)

    @property
    def target_seconds(self) -> Floats:
        """Of a round with a target pass of 1, 2, ... ``limit + 1`` rows, without drafting."""
        state = (self.level, self._passes, self.switch.charge, *self.attention.state)
        if self._found is None or self._found[0] != state:
            seconds = self._base + self.attention.of_passes(_ROWS)
            seconds[self.attention.conversations :] += self.switch.charge
            seconds *= self.level
            seconds.flags.writeable = False
            self._found = state, seconds
        return self._found[1]

    @property
    def _base(self) -> Floats:
        """Of a target pass near the start of a context, relative to the level."""
        if self._curve is None:
            self._curve = fill_in(self._rows, self.limit + 1)
        return self._curve

    @property
    def redo_seconds(self) -> Floats:
        """Of rereading 0, 1, ... accepted tokens, and the one before them."""
        return self.target_seconds * self.rereads

    @property
    def draft_seconds(self) -> Floats:
        """Of 1, 2, ... ``limit`` draft steps, cumulative; a target pass each, until measured."""
        one = float(self._base[0])
        step = self._step.bound(_MAX_STEP * one) if self._step.seen else one
        # The first step reads up to two tokens; for a block draft it is a whole block.
        most = max(_MAX_FIRST * step, _MAX_STEP * one)
        first = self._first.bound(most) if self._first.seen else step
        step = min(step, first)  # which reads more
        deep, _ = self.attention.of_draft_step()
        return (first - step + (step + deep) * _ROWS[:-1]) * self.level

    def catch_up_seconds(self, tokens: int) -> float:
        """Of reading `tokens` before the first draft step, which includes the usual few."""
        if tokens <= _USUAL:
            return 0.0
        step = self._step.value
        each = self._read.bound(step) if self._read.seen else step
        return (each + self.attention.of_reading(tokens)) * tokens * self.level

    @property
    def at_start(self) -> LearnedCosts:
        """The same costs for one conversation near its start."""
        other = copy(self)
        other.attention = replace(self.attention, depth=0.0, conversations=1)
        return other

    def expect_attention(self, target: float, draft: float, row: float) -> None:
        """Set guesses for attention: cost of a token of context, relative to a pass or draft step.

        And that of a further row, relative to the first. What was learned is kept.
        """
        self.attention.expect(target * float(self._base[0]), draft * self._step.value, row)

    def is_doubtful(self, rows: int) -> bool:
        """Whether passes of so many rows were seldom seen, or not recently."""
        figure = self._rows.get(rows, Figure())
        return figure.seen < BELIEVED or self._passes - figure.at > _STALE

    @property
    def was_disturbed(self) -> bool:
        """Whether the machine was busy when passes of one and two rows were measured."""
        return any(self._rows.get(rows, Figure()).seen < BELIEVED for rows in (1, 2))

    @property
    def is_draft_due(self) -> bool:
        """Whether to measure a draft that looks useless again: in starts 1, 2, 4, 8, ..."""
        unseen = all(len(each.last) < 2 for each in (self._first, self._step))
        return unseen and self.starts.bit_count() == 1

    @property
    def is_draft_doubtful(self) -> bool:
        """Whether draft steps or reading were seldom seen."""
        return min(each.seen for each in (self._first, self._step, self._read)) < BELIEVED

    def least_certain(self) -> list[int]:
        """Numbers of rows that were run, the least often and least recently seen first."""
        return sorted(self._rows, key=lambda rows: (self._rows[rows].seen, self._rows[rows].at))

    def observe(self, round: Round) -> None:
        """Learn from a finished round of a conversation with its own passes."""
        if round.prompt_tokens:
            self.attention.begin(round.prompt_tokens)
            self.switch.prompted()
        self._learn_from(round)
        self.attention.depth += len(round.tokens)

    def _learn_from(self, round: Round) -> None:
        if not round.tokens or round.prefill_seconds:
            return
        seconds = round.seconds - round.draft_seconds
        if round.reread <= self.limit:
            if round.reread:  # subtract its share of the seconds
                curve = self.target_seconds
                own, again = float(curve[round.drafted]), float(curve[round.reread - 1])
                seconds *= own / (own + again)
            self.add_round(1 + round.drafted, seconds)
        for segment in round.draft.segments:
            if segment.width:
                self.add_block(segment.width, sum(segment.seconds), segment.caught_up)
                continue
            for k, step in enumerate(segment.seconds):
                if k:
                    self.add_draft_step(step)
                else:
                    self.add_first_draft_step(step, segment.caught_up)

    def add_round(self, rows: int, seconds: float) -> None:
        """The pass of a round took `seconds`; a row per conversation means no draft."""
        if rows == self.attention.conversations:
            seconds -= self.switch.of_plain(seconds / self.level) * self.level
        else:
            self.switch.drafted()
        self.add_pass(rows, seconds)

    def add_profile(
        self, passes: Mapping[int, float], sure: Collection[int], switch: float = 0.0
    ) -> None:
        """A profile's seconds by rows, which of them are `sure`, and the seconds of a `switch`."""
        for rows, seconds in passes.items():
            for _ in range(BELIEVED if rows in sure else 1):
                self.add_pass(rows, seconds)
        self._level_doubt = _LEVEL_DOUBT
        self.switch.expect(switch / self.level, float(self._base[0]))

    def add_pass(self, rows: int, seconds: float) -> None:
        """A target pass of `rows` took `seconds`."""
        if seconds <= 0.0 or rows > self.limit + 1:
            return
        figure = self._rows.get(rows, Figure())
        self._see(figure, seconds, *self.attention.of_pass(rows), is_pass=True)
        self._rows[rows] = figure  # last, so that an exception leaves no unseen figure behind
        self._passes += 1
        figure.at = self._passes
        if self._curve is None or figure.seen < SURE or self._passes % _FILL_EVERY == 0:
            self._curve = fill_in(self._rows, self.limit + 1)
        else:
            self._curve[rows - 1] = figure.value

    def add_draft_step(self, seconds: float) -> None:
        """A draft step after the first took `seconds`."""
        if seconds > 0.0:
            self._see(self._step, seconds, *self.attention.of_draft_step())

    def add_first_draft_step(self, seconds: float, caught_up: int) -> None:
        """The first draft step, which read `caught_up` tokens, took `seconds`."""
        if seconds <= 0.0:
            return
        if caught_up <= _USUAL:
            self._see(self._first, seconds, *self.attention.of_draft_step())
        elif caught_up >= _LONG and self._step.seen:
            deep, _ = self.attention.of_draft_step()
            step = (self._step.value + deep) * self.level
            each = max((seconds - step) / (caught_up - 1), step / 1000)
            self._see(self._read, each, self.attention.of_reading(caught_up))

    def add_block(self, width: int, seconds: float, caught_up: int = 1) -> None:
        """A block draft's pass with `width` guesses, which read `caught_up` tokens, took `seconds`.

        One guess counts as a first draft step; the extra time of more guesses as further steps.
        """
        first, deep = self._first, self.attention.of_draft_step()
        usual = float(self.draft_seconds[width - 1])
        if caught_up >= _LONG:
            each = max((seconds - usual) / caught_up, usual / 1000)
            self._see(self._read, each, self.attention.of_reading(caught_up))
        elif caught_up <= _USUAL and (width == 1 or not first.seen):
            self._see(first, seconds, *deep)
        elif caught_up <= _USUAL:
            one = first.value * self.level
            self._see(self._step, max(seconds - one, one / 1000) / (width - 1), *deep)

    def _see(
        self,
        figure: Figure,
        seconds: float,
        deep: float = 0.0,
        shares: Shares = (),
        is_pass: bool = False,
    ) -> None:
        """Update the level, a figure and attention from an observation.

        `deep` are the seconds of attention in it, relative to the level, and `shares` its factors.
        """
        value = seconds / self.level
        if not figure.seen:
            value = max(value - deep, value * _LEAST_OWN)
            figure.value, figure.seen, figure.last = value, 1, (value,)
            return
        own = figure.value / (figure.value + deep)
        surprise, noise, doubt = figure.weigh(value * own)
        # A draft's figure that may have been disturbed must not move all those of the target.
        moves_level = is_pass or figure.seen >= BELIEVED
        level_doubt = self._level_doubt if moves_level else 0.0
        deep_shares = [(factor, share * (1.0 - own)) for factor, share in shares]
        whole = level_doubt + own * own * doubt + noise
        whole += sum(factor.doubt * share * share for factor, share in deep_shares)
        gain = level_doubt / whole
        figure.value *= surprise ** (own * doubt / whole)
        for factor, share in deep_shares:
            factor.follow(surprise, share, whole)
        self.level *= surprise**gain
        if moves_level:
            self._level_doubt = self._level_doubt * (1.0 - gain) + _LEVEL_DRIFT
        figure.seen = min(figure.seen + 1, MAX_SEEN)
        figure.last = (*figure.last[-2:], seconds / self.level * own)

    def as_dict(self) -> dict[str, Any]:
        """What was learned, as the values of a `CostsRecord`."""
        figures: dict[Any, Figure] = {**self._rows}
        figures |= zip(_STEPS, (self._first, self._step, self._read), strict=True)
        pairs = {str(name): [one.value, one.seen] for name, one in figures.items() if one.seen}
        known: dict[str, Any] = {"level": self.level, "profiled": self.profiled, "figures": pairs}
        known |= {"attention": self.attention.as_dict(), "starts": self.starts}
        return known | {"switch": self.switch.value}

    def restore(self, values: CostsRecord | dict[str, Any]) -> None:
        """Restore the values of `as_dict`; a ValueError if they are invalid."""
        known = CostsRecord.model_validate(values)
        figures = known.seen()
        self._first, self._step, self._read = (figures.pop(n, Figure()) for n in _STEPS)
        self.level, self.profiled, self.starts = known.level, known.profiled, known.starts + 1
        self._level_doubt = _LEVEL_DOUBT
        self._rows, self._curve, self._found = figures, None, None
        self.attention.restore(known.attention)
        self.switch = Switch(known.switch)
