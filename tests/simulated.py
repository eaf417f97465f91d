"""A simulated machine whose clock is disturbed, and conversations that are played on it."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np

from dspark_gguf.calibration import Calibration
from dspark_gguf.cost import FixedCosts
from dspark_gguf.engine import timing
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.schedule import LookupRule, Optimal

DEPTH, MOST_COPIES = 12, 64
#: Tokens of the prompt that a draft must read first.
PROMPT = 30
RIGHT, WRONG = 1, 0


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

    def profiled(self, budget=2.0, limit=MOST_COPIES, has_draft=True):
        """Costs from the short profile of this machine."""
        costs = LearnedCosts()
        with patch.object(timing, "perf_counter", self.clock):
            target, draft = SimulatedCache(self, False), SimulatedCache(self, True)
            timing.quick_profile(target, draft if has_draft else None, costs, budget, limit)
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


@dataclass(frozen=True)
class Text:
    """What a draft and a lookup would guess at every position."""

    scores: Any  # [positions, DEPTH]
    alive: Any  # how many of the chain are right [positions]
    copies: Any  # guesses that a lookup has there [positions]
    copied: Any  # how many of them are right [positions]
    copy_score: float = 3.0


def make_text(seed, centre, spread=2.0, copying=0.0, positions=420):
    """Chains whose scores lie around `centre`; they are right as often as the scores say."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(centre, spread, (positions, 1)) + rng.normal(0, 1.0, (positions, DEPTH))
    right = rng.random((positions, DEPTH)) < 1.0 / (1.0 + np.exp(-scores))
    alive = np.where(right.all(axis=1), DEPTH, right.argmin(axis=1))
    copies, copied = np.zeros(positions, int), np.zeros(positions, int)
    position = 0
    while copying and position < positions:
        if rng.random() < copying / 24:
            run = int(rng.integers(8, 40))
            ends = np.arange(run, 0, -1)[: positions - position]
            copied[position : position + run], copies[position : position + run] = ends, 64
            position += run
        else:
            copies[position] = 64 * (rng.random() < 0.1)
            position += 1
    return Text(scores, alive, copies, copied)


#: The rig's kind of text: three drafts always are worth 1.3 there.
TEXTS = {
    "good": {"centre": 3.0},
    "middling": {"centre": 1.2},
    "bad": {"centre": -1.0},
    "copies": {"centre": 0.5, "copying": 1.0},
}


@dataclass
class Played:
    """An answer: seconds that count, those of stalls left out, at each token."""

    tokens: list[int] = field(default_factory=lambda: [0])
    seconds: list[float] = field(default_factory=lambda: [0.0])
    drafted: int = 0

    def slowed(self, trouble):
        """The same on a machine that is slower from time to time."""
        slower = [trouble.slower(token) for token in self.tokens[:-1]]
        seconds = np.cumsum([0.0, *(np.diff(self.seconds) * slower)])
        return Played(self.tokens, seconds.tolist(), self.drafted)

    def seconds_between(self, start, end):
        """Seconds from one token to another."""
        first, last = np.interp([start, end], self.tokens, self.seconds)
        return last - first


def segment(name, count, right, scores, seconds=(), behind=0, untried=0):
    tokens = (RIGHT,) * min(right, count) + (WRONG,) * max(0, count - right)
    more = tuple(RIGHT if k < right else WRONG for k in range(count, count + untried))
    return Segment(name, tokens, (None,) * count, tuple(scores), seconds, behind, untried=more)


def play(rule, text, machine, length=300, played=None, start=0, behind=PROMPT):
    """Let `rule` write an answer of `length` tokens; a draft is `behind` by so many at first."""
    played, trouble = played or Played(), machine.trouble
    position = 0
    while position < length:
        plan = rule.plan(64, behind, length - position)
        slower = trouble.slower(start + position)
        count_copies = int(text.copies[position])
        scores = [text.copy_score] * count_copies
        taken = plan.take(scores) if isinstance(rule, LookupRule) else 0
        right = int(text.copied[position])
        head = segment("lookup", taken, right, scores, untried=count_copies - taken)
        chain = position + min(taken, right)
        looked, drafted, times, true = [], 0, [], 0.0
        alive = int(text.alive[chain]) if taken <= right else 0
        while len(looked) < min(plan.length, DEPTH):
            second = machine.of_step(max(1, behind) if not looked else 1)
            true += second
            times.append(trouble.seen(second * machine.wobble(), start + position))
            looked.append(float(text.scores[chain, len(looked)]))
            if not plan.admits(looked[-1]):
                break
            drafted += 1
            if not plan.goes_on():
                break
        steps = segment("model", drafted, alive, looked, tuple(times), behind if looked else 0)
        draft = Draft(*([head] if count_copies else []), *([steps] if looked else []))
        accepted = [*draft.tokens, WRONG].index(WRONG)
        second = machine.of_pass(1 + len(draft))
        seen = trouble.seen(second * machine.wobble(), start + position)
        rule.observe(
            Round(
                (RIGHT,) * accepted + (99,),
                draft=draft,
                verdict=Verdict(accepted, 99),
                seconds=sum(times) + seen,
                draft_seconds=sum(times),
                target_seconds=seen,
            )
        )
        behind = 1 + (accepted == len(draft)) if looked else behind + accepted + 1
        position += accepted + 1
        played.tokens.append(start + position)
        played.seconds.append(played.seconds[-1] + (true + second) * slower)
        played.drafted += bool(looked)
    return played


def taught(kind, seed=1000):
    """What a rule knows of this kind of text after an earlier answer: of drafts, and of copies."""
    text, seen, copies = make_text(seed, **kind), Calibration(), Calibration.of_copies()
    for k in range(0, len(text.alive), 3):
        alive = int(text.alive[k])
        seen.observe(text.scores[k].tolist(), [1.0] * alive + [0.0] * (alive < DEPTH))
        if text.copies[k]:
            right = int(text.copied[k])
            copies.observe([text.copy_score] * 64, [1.0] * right + [0.0])
    return seen, copies


def rule_of(costs, known=None):
    """The rule of a chat with a draft model, and what it knows of the text."""
    seen, copies = deepcopy(known) if known else (Calibration(), Calibration.of_copies())
    return LookupRule(costs, copies, 64, Optimal(costs, seen, DEPTH))


@cache
def with_true_costs(name, kind, seed, end):
    """What somebody does who knows everything; nothing that disturbs a clock disturbs that."""
    machine = Machine(SPEEDS[name], Quiet(seed), seed)
    rule = rule_of(TrueCosts(machine), taught(TEXTS[kind]))
    return play(rule, make_text(seed, **TEXTS[kind]), machine, end)


def compare(name, trouble, kind, seed, end=300, change=lambda costs: costs):
    """Seconds from token 0 and from token 100 to the end, as [ours, those with the true costs].

    `change` is done to the costs after the profile.
    """
    speeds, disturbed = SPEEDS[name], trouble(seed)
    machine = Machine(speeds, disturbed, seed)
    costs = change(machine.profiled(max(2.0, 3 * speeds.pass_seconds)))
    rule = rule_of(costs, taught(TEXTS[kind]))
    ours = play(rule, make_text(seed, **TEXTS[kind]), machine, end)
    best = with_true_costs(name, kind, seed, end).slowed(disturbed)
    spans = ((0, end), (100, end))
    return np.array([[each.seconds_between(*span) for each in (ours, best)] for span in spans])


def behind(name, trouble, seeds, **options):
    """Speed over that with the true costs, from token 0 and from 100 on, in each kind of text."""
    sums = {kind: sum(compare(name, trouble, kind, seed, **options) for seed in seeds)
            for kind in TEXTS}  # fmt: skip
    return {kind: both[:, 1] / both[:, 0] for kind, both in sums.items()}


def main(seeds=4):
    """Print how far each trouble leaves us behind the true costs."""
    for machine in SPEEDS:
        for name, trouble in TROUBLES.items():
            ratios = behind(machine, trouble, range(seeds))
            mean = np.mean(list(ratios.values()), axis=0)
            cells = "".join(f"{kind} {ratio[0]:.2f}  " for kind, ratio in ratios.items())
            sys.stdout.write(
                f"{machine:6} {name:17} {mean[0]:.3f} from 100 on {mean[1]:.3f}   {cells}\n"
            )


if __name__ == "__main__":
    main()
