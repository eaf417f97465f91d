"""The base of rules that learn, and the DSpark paper's own rule."""

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
    calibration: Calibration  # of the drafter's scores
    limit: int  # maximum tokens to draft
    source: str = "model"  # the drafter's name; other drafters' segments are ignored
    is_block: bool = False  # whether one pass makes all guesses of a draft

    def observe(self, round: Round) -> None:
        """Learn costs and confidences."""
        self.costs.observe(round)
        for _, segment, outcomes in round.draft.outcomes(round.tokens):
            if segment.source == self.source:
                self.calibration.observe(segment.scores, outcomes)

    def confidence(self, segment: Segment) -> Floats:
        """Probability that each guess is right if those before it are; 1 for other sources."""
        count = len(segment.tokens) + len(segment.untried)
        if segment.source != self.source:
            return np.ones(count)
        return np.interp(segment.scores[:count], KNOTS, self.calibration.confidence)

    def survival(self, draft: Draft) -> Floats:
        """See `StoppingRule`."""
        return survival_of(draft, self.confidence)

    @property
    def rate(self) -> float:
        """The rate of plain decoding."""
        return 1.0 / float(self.costs.target_seconds[0])

    def forecast(self) -> Forecast:
        """The rate of the best policy."""
        policy = policy_for(self.costs, self.calibration, self.limit, is_block=self.is_block)
        return Forecast(policy.rate, policy.plain_rate)


_NOTHING = np.zeros(0)


def survival_of(draft: Draft, confidence: Callable[[Segment], Floats]) -> Floats:
    """Survival of the tokens of a draft and of the guesses after it."""
    if not draft.tokens and not any(each.untried for each in draft.segments):
        return _NOTHING
    *head, last = draft.segments
    chances = [confidence(each)[: len(each)] for each in head]
    return np.cumprod(np.concatenate([*chances, confidence(last)]))


#: Block widths to choose from, and how much faster a narrower block must be: it guesses a little
#: worse.
_WIDTHS, _FEWER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48), 1.02


def policy_for(
    costs: Costs,
    calibration: Calibration,
    limit: int,
    guess: float | None = None,
    is_block: bool = False,
    width: int = 0,
) -> Policy:
    """The policy with the highest rate, with at most `limit` draft tokens.

    For a block draft this includes the block's width, unless it is given: a block is paid for
    before any score is known.
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
    assert best is not None  # the limit is at least one token
    return best


def usual_seconds(costs: Costs, round: Round) -> float:
    """The usual seconds of such a round: one slow pass must not count against the text."""
    if isinstance(costs, SharedCosts):
        return costs.share_of(round)
    seconds = float(costs.target_seconds[round.drafted])
    if steps := round.draft.steps:
        seconds += float(costs.draft_seconds[steps - 1])
    if round.accepted < round.drafted:
        seconds += float(costs.redo_seconds[round.accepted])
    return seconds


def sharing(costs: Costs) -> int:
    """Number of conversations that share each pass and the rule."""
    return costs.count if isinstance(costs, SharedCosts) else 1


#: Exploration budget that each round adds, in plain rounds.
INCOME = 0.01


@dataclass(slots=True)
class Account:
    """The exploration budget of a rule: gains and losses of drafting, in plain rounds."""

    balance: float  # what may be spent; given: the initial budget
    most: float  # maximum of the balance

    def add(self, gain: float = 0.0, least: float = -inf) -> None:
        """Add a round's gain over plain decoding; a loss reduces the balance to `least` at most."""
        self.balance = min(max(self.balance + gain, least) + INCOME, self.most)


class Prefix(Learning):
    """Algorithm 1 of the DSpark paper (DeepSeek-AI 2026) for one request: the reference.

    Verify the longest prefix before ``rate = expected / seconds`` first falls. It only looks one
    token ahead, so a step in the costs stops it.
    """

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """At most `limit` tokens, until the rate first falls."""
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
