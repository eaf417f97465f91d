"""Conversations that are played on simulated machines, and how far behind the true costs."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from dspark_gguf.calibration import Calibration
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.schedule import LookupRule, Optimal
from tests.simulated_machine import DEPTH, SPEEDS, TROUBLES, Machine, Quiet, TrueCosts

#: Tokens of the prompt that a draft must read first.
PROMPT = 30
RIGHT, WRONG = 1, 0


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


def compare(name, trouble, kind, seed, end=300, change=lambda costs: costs, passes=0):
    """Seconds from token 0 and from token 100 to the end, as [ours, those with the true costs].

    `change` is done to the costs after the profile, which is as long as a real one, or as so many
    `passes`: as where the target is slow.
    """
    speeds, disturbed = SPEEDS[name], trouble(seed)
    machine = Machine(speeds, disturbed, seed)
    costs = change(
        machine.profiled(passes * speeds.pass_seconds or max(2.0, 3 * speeds.pass_seconds))
    )
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
