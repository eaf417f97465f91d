"""A simulated machine whose clock is disturbed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np

from dspark_gguf.cost import FixedCosts
from dspark_gguf.engine import measuring, timing
from dspark_gguf.learned_costs import LearnedCosts

DEPTH, MAX_COPIES = 12, 64


@dataclass(frozen=True)
class Speeds:
    """What a machine's passes truly take: seconds of one row, the rest in these."""

    pass_seconds: float
    rows: tuple[tuple[int, float], ...]  # rows -> passes of one row; between them: in proportion
    step: float  # a draft step
    read: float  # a token that the draft reads
    noise: float = 0.03  # standard deviation of the log of every duration

    @property
    def curve(self):
        """Seconds of a pass of 1, 2, ... rows."""
        known = dict(self.rows)
        return self.pass_seconds * np.interp(np.arange(1, 66), list(known), list(known.values()))


RIG = ((1, 1), (2, 1.1), (3, 1.12), (4, 1.12), (6, 1.4), (9, 1.75), (17, 2.9), (65, 9))
STEEP = ((1, 1), (2, 1.5), (3, 1.71), (4, 1.98), (6, 2.2), (8, 2.46), (16, 4.2), (65, 15))
FLAT = ((1, 1), (2, 1.02), (8, 1.2), (9, 1.9), (16, 2.0), (17, 2.4), (65, 5))
SPEEDS = {
    "rig": Speeds(0.045, RIG, 0.15, 0.03),
    "steep": Speeds(0.04, STEEP, 0.3, 0.03),
    "flat": Speeds(0.03, FLAT, 0.1, 0.01),
    "slow": Speeds(1.0, RIG, 0.05, 0.004),
}


class Quiet:
    """Nobody else uses the machine."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.calls = 0

    def in_profile(self, seconds):
        """Seconds that the profile sees."""
        return self.seen(seconds, 0)

    def slower(self, token):
        """How much slower everything is at this token of the answer, seen and counted."""
        return 1.0

    def seen(self, seconds, token):
        """Seconds that a round at this token sees."""
        return seconds * self.slower(token)


class BusyProfile(Quiet):
    """Another process runs during the profile."""

    def in_profile(self, seconds):
        return seconds * self.rng.uniform(1.5, 3.0)


class BusyInTurns(Quiet):
    """It comes and goes during the profile, in spells of a few passes."""

    def in_profile(self, seconds):
        self.calls += 1
        busy = (self.calls // 5) % 2
        return seconds * (self.rng.uniform(2.0, 3.0) if busy else 1.0)


class Bursts(Quiet):
    """One call in twenty stalls."""

    def seen(self, seconds, token):
        return seconds * (self.rng.uniform(2, 20) if self.rng.random() < 0.05 else 1.0)


class SleepInProfile(Quiet):
    """The laptop sleeps for an hour during the `at`-th call of the profile."""

    def __init__(self, seed=0, at=None):
        super().__init__(seed)
        self.at = int(self.rng.integers(2, 40)) if at is None else at

    def in_profile(self, seconds):
        self.calls += 1
        return seconds + 3600.0 * (self.calls == self.at)


class SleepInRounds(Quiet):
    """It does in one of the first rounds."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.at = int(self.rng.integers(1, 12))

    def in_profile(self, seconds):
        return seconds

    def seen(self, seconds, token):
        self.calls += 1
        return seconds + 3600.0 * (self.calls == self.at)


class Throttled(Quiet):
    """Everything is slower after 100 tokens."""

    def slower(self, token):
        return 1.7 if token >= 100 else 1.0


class ComesAndGoes(Quiet):
    """Another process runs every other 60 tokens, and during the profile."""

    def in_profile(self, seconds):
        return seconds * self.rng.uniform(1.5, 2.5)

    def slower(self, token):
        return 2.0 if (token // 60) % 2 else 1.0

    def seen(self, seconds, token):
        wild = self.rng.uniform(0.75, 1.25) if self.slower(token) > 1 else 1.0
        return seconds * self.slower(token) * wild


class StalledProfile(Quiet):
    """One call in four of the profile stalls."""

    def in_profile(self, seconds):
        return seconds * (self.rng.uniform(2, 10) if self.rng.random() < 0.25 else 1.0)


TROUBLES = {
    "quiet": Quiet,
    "busy profile": BusyProfile,
    "busy in turns": BusyInTurns,
    "stalled profile": StalledProfile,
    "bursts": Bursts,
    "sleep in profile": SleepInProfile,
    "sleep in rounds": SleepInRounds,
    "throttled": Throttled,
    "comes and goes": ComesAndGoes,
}


class Machine:
    """Durations of passes and steps: true ones, and those that a disturbed clock shows."""

    def __init__(self, speeds, trouble, seed=0):
        self.speeds, self.trouble = speeds, trouble
        self.now = 0.0
        self._rng = np.random.default_rng(seed)
        self.curve = speeds.curve

    def clock(self):
        return self.now

    def of_pass(self, rows):
        return float(self.curve[rows - 1])

    def of_step(self, read=1):
        return self.speeds.pass_seconds * (self.speeds.step + self.speeds.read * (read - 1))

    def wobble(self):
        return float(np.exp(self._rng.normal(0.0, self.speeds.noise)))

    def in_profile(self, seconds):
        """Time goes by as in the profile."""
        self.now += self.trouble.in_profile(seconds * self.wobble())

    def profiled(self, budget=2.0, limit=MAX_COPIES, has_draft=True):
        """Costs from the short profile of this machine."""
        costs = LearnedCosts()
        clocks = [patch.object(each, "perf_counter", self.clock) for each in (timing, measuring)]
        with clocks[0], clocks[1]:
            target, draft = SimulatedCache(self, False), SimulatedCache(self, True)
            measuring.first_profile(target, draft if has_draft else None, costs, budget, limit)
        return costs


class SimulatedCache:
    """A cache whose passes only take time."""

    n_ctx, n_vocab, max_rows, rollback = 4096, 100, 65, "removal"

    def __init__(self, machine, is_draft):
        self.machine, self.is_draft = machine, is_draft
        self.tokens = []

    @property
    def length(self):
        return len(self.tokens)

    def reuse_prefix(self, tokens):
        same = 0
        while same < min(len(tokens), self.length) and tokens[same] == self.tokens[same]:
            same += 1
        self.trim(same)
        return same

    def holding(self):
        return nullcontext()

    def trim(self, length):
        del self.tokens[length:]

    def decode(self, tokens, n_rows):
        self.tokens += tokens
        count = len(tokens)
        own = self.machine
        own.in_profile(own.of_step(count) if self.is_draft else own.of_pass(min(count, 65)))


class TrueCosts(FixedCosts):
    """The true costs, catching up included."""

    def __init__(self, machine):
        steps = machine.of_step() * np.arange(1, DEPTH + 1)
        super().__init__(machine.curve, steps)
        self._read = machine.of_step(2) - machine.of_step(1)

    def catch_up_seconds(self, tokens):
        return self._read * tokens if tokens > 2 else 0.0
