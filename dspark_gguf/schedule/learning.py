"""What the rules that learn have in common, and the DSpark paper's own rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from dspark_gguf.arrays import Floats
from dspark_gguf.calibration import KNOTS, Calibration
from dspark_gguf.cost import Costs
from dspark_gguf.records import Draft, Round, Segment
from dspark_gguf.schedule.base import Bounded, Forecast, Plan, StoppingRule
from dspark_gguf.schedule.shared import SharedCosts
from dspark_gguf.schedule.stopping import Policy, solve


@dataclass(eq=False)
class Learning(StoppingRule):
    """Costs and a calibration, updated by every round."""

    costs: Costs  # of draft steps and passes
    calibration: Calibration  # what scores mean
    limit: int  # most tokens to draft
    source: str = "model"  # the drafter's name; segments of others say nothing about its scores
    is_block: bool = False  # whether one pass makes all guesses of a draft

    def observe(self, round: Round) -> None:
        """Learn costs and confidences."""
        self.costs.observe(round)
        for _, segment, outcomes in round.draft.outcomes(round.tokens):
            if segment.source == self.source:
                self.calibration.observe(segment.scores, outcomes)

    def confidence(self, segment: Segment) -> Floats:
        """Chance that each of its guesses is right if those before it are; 1 of other sources."""
        count = len(segment.tokens) + len(segment.untried)
        if segment.source != self.source:
            return np.ones(count)
        return np.interp(segment.scores[:count], KNOTS, self.calibration.confidence)

    def survival(self, draft: Draft) -> Floats:
        """As any rule."""
        return survival_of(draft, self.confidence)

    @property
    def rate(self) -> float:
        """Plain decoding's."""
        return 1.0 / float(self.costs.target_seconds[0])

    def forecast(self) -> Forecast:
        """What the best policy would reach."""
        policy = policy_for(self.costs, self.calibration, self.limit, is_block=self.is_block)
        return Forecast(policy.rate, policy.plain_rate)


_NOTHING = np.zeros(0)


def survival_of(draft: Draft, confidence: Callable[[Segment], Floats]) -> Floats:
    """Of the tokens of a draft, and of the guesses after it."""
    if not draft.tokens and not any(each.untried for each in draft.segments):
        return _NOTHING
    *head, last = draft.segments
    chances = [confidence(each)[: len(each)] for each in head]
    return np.cumprod(np.concatenate([*chances, confidence(last)]))


#: Guesses of a block, to choose from; and how much faster fewer must be than more: they guess a
#: little worse.
_WIDTHS, _FEWER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48), 1.02


def policy_for(
    costs: Costs,
    calibration: Calibration,
    limit: int,
    guess: float | None = None,
    is_block: bool = False,
    width: int = 0,
) -> Policy:
    """The policy of the highest rate with at most `limit` tokens a draft.

    Of a block its width is part of the policy, unless it is given: it is paid for before any score
    is known.
    """
    target, draft = costs.target_seconds[: limit + 1], costs.draft_seconds[:limit]
    if not is_block:
        return solve(calibration, target, draft, guess, costs.redo_seconds[:limit])
    best: Policy | None = None
    widths = (limit, *(each for each in reversed(_WIDTHS) if each < limit))
    for count in [width] if width else widths:
        whole = np.full(count, draft[count - 1])
        redo = costs.redo_seconds[:count]
        policy = solve(calibration, target[: count + 1], whole, guess, redo)
        if best is None or policy.rate > _FEWER * best.rate:
            best = policy
    assert best is not None  # a limit is one token at least
    return best


def usual_seconds(costs: Costs, round: Round) -> float:
    """What such a round usually takes: one slow pass says nothing about the text."""
    if isinstance(costs, SharedCosts):
        return costs.share_of(round)
    seconds = float(costs.target_seconds[round.drafted])
    if steps := round.draft.steps:
        seconds += float(costs.draft_seconds[steps - 1])
    if round.accepted < round.drafted:
        seconds += float(costs.redo_seconds[round.accepted])
    return seconds


def sharing(costs: Costs) -> int:
    """Conversations that share each pass, and the rule."""
    return costs.count if isinstance(costs, SharedCosts) else 1


#: What each round brings that may be spent on trying, in plain rounds.
INCOME = 0.01


@dataclass(slots=True)
class Account:
    """What drafting has won and lost, in plain rounds: what a rule may spend on trying."""

    balance: float  # what there is to spend, at first and later
    most: float  # what good times can put aside

    def add(self, gain: float = 0.0, least: float = -inf) -> None:
        """Book a round and what it gained over plain decoding; a loss takes it to `least`."""
        self.balance = min(max(self.balance + gain, least) + INCOME, self.most)


class Prefix(Learning):
    """Algorithm 1 of the DSpark paper (DeepSeek-AI 2026) for one request: the reference.

    Verify the longest prefix before the first fall of ``rate = expected / seconds``. It goes one
    token ahead, so that a step in the costs stops it.
    """

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """At most `limit` tokens, ended by the first fall of the rate."""
        return _PrefixPlan(self, min(limit, self.limit), limit)


class _PrefixPlan(Bounded):
    def __init__(self, rule: Prefix, length: int, room: int) -> None:
        super().__init__(length, room=room)
        self._confidence = rule.calibration.confidence
        self._target, self._draft = rule.costs.target_seconds, rule.costs.draft_seconds
        self._steps, self._survival, self._expected = 0, 1.0, 1.0

    def admits(self, score: float) -> bool:
        """Whether the rate rises with this token; its draft step is paid for either way."""
        spent = self._draft[self._steps]
        self._steps += 1
        self._survival *= float(np.interp(score, KNOTS, self._confidence))
        before, after = self._expected, self._expected + self._survival
        self._expected = after
        with_it, without = spent + self._target[self._steps], spent + self._target[self._steps - 1]
        return bool(after / with_it > before / without)
