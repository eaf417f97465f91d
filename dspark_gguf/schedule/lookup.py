"""Free guesses from prompt lookup: how many to verify, and whether to draft as well.

All guesses and scores are known before anything is paid for, so the options can be compared: verify
the first j guesses with the best ``expected - rate * seconds(rows)``, or take draft steps with the
other drafter, instead of or after them. Guesses that were not verified are also compared with the
emitted tokens, so the calibration learns from every round, without exploration.

The rate is that of the last rounds: where text repeats, a second is worth more tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dspark_gguf.arrays import Floats
from dspark_gguf.calibration import KNOTS, Calibration
from dspark_gguf.cost import Costs
from dspark_gguf.records import Draft, Round, Segment
from dspark_gguf.schedule.base import Forecast, Plan, StoppingRule, no_plan
from dspark_gguf.schedule.learning import Account, survival_of, usual_seconds
from dspark_gguf.schedule.optimal import Optimal, OptimalPlan
from dspark_gguf.schedule.shared import AT_ONCE

#: Decay per round of the tokens so far, and of their time.
_KEEP = 0.6
#: Initial and maximum account, in plain rounds; and the power to which confidences are raised once
#: it is spent, at first and for each plain round of debt: in misleading text, only nearly certain
#: guesses remain. In replays this improved the worst kind of text from 0.93 to 0.98 of plain
#: decoding, and cost 0.4 % elsewhere.
_START, _MAX = 1.0, 2.0
_DOUBT, _DEBT = 2.0, 0.5


@dataclass(eq=False)
class LookupRule(StoppingRule):
    """Chooses free guesses at the rate of the last rounds, beside the rule of another drafter."""

    costs: Costs  # of passes and draft steps
    calibration: Calibration  # of the scores of guesses
    limit: int  # maximum tokens of a draft
    step_rule: Optimal | None = None  # the rule of the other drafter
    steps_after: bool = True  # whether that one can continue after guesses
    source: str = "lookup"  # the name of the drafter with free guesses
    _tokens: float = field(default=0.0, init=False)
    _rounds: float = field(default=0.0, init=False)  # plain ones that take as long
    _account: Account = field(default_factory=lambda: Account(_START, _MAX), init=False)
    _later: list[Round] = field(default_factory=list, init=False)  # not yet learned from
    _counted: int = field(default=0, init=False)  # how many of these the rate includes

    def __post_init__(self) -> None:
        self.limit = min(self.limit, len(self.costs.target_seconds) - 1)

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """The plan of one round."""
        most = min(limit, self.limit)
        return _LookupPlan(self, most, behind, limit, left) if most > 0 else no_plan(limit)

    @property
    def rate(self) -> float:
        """Tokens per second of the last rounds, but at least those of plain decoding."""
        self._count_in()
        plain = 1.0 / float(self.costs.target_seconds[0])
        least = plain if self.step_rule is None else self.step_rule.rate
        return max(least, plain * self._tokens / self._rounds) if self._rounds else least

    def observe(self, round: Round) -> None:
        """Learn costs and confidences."""
        self._later.append(round)
        is_plain = not (round.drafted or round.draft.steps or round.prompt_tokens)
        if not is_plain or len(self._later) >= AT_ONCE or self.costs.is_doubtful(1):
            self.settle()

    def settle(self) -> None:
        """Learn from all rounds so far."""
        self._count_in()
        rounds, self._later, self._counted = self._later, [], 0
        for round in rounds:
            self._learn_from(round)

    def _count_in(self) -> None:
        """Include the last rounds in the rate."""
        for round in self._later[self._counted :]:
            if not round.draft.is_dictated:
                self._tokens = _KEEP * self._tokens + round.accepted + 1
                rounds = usual_seconds(self.costs, round) / float(self.costs.target_seconds[0])
                self._rounds = _KEEP * self._rounds + rounds
        self._counted = len(self._later)

    def _learn_from(self, round: Round) -> None:
        (self.costs if self.step_rule is None else self.step_rule).observe(round)
        if round.draft.is_dictated:
            return
        for _, segment, outcomes in round.draft.outcomes(round.tokens):
            if segment.source == self.source:
                self.calibration.observe(segment.scores[: len(outcomes)], outcomes)
        gain = 0.0
        if round.drafted and not round.draft.steps:
            seconds = usual_seconds(self.costs, round)
            gain = round.accepted + 1 - seconds / float(self.costs.target_seconds[0])
        self._account.add(gain)

    def confidence(self, scores: Sequence[float]) -> Floats:
        """Probability that each guess is right if those before it are."""
        confidence: Floats = np.interp(scores, KNOTS, self.calibration.confidence)
        balance = self._account.balance
        return confidence if balance >= 0.0 else confidence ** (_DOUBT - _DEBT * balance)

    def survival(self, draft: Draft) -> Floats:
        """See `StoppingRule`; another drafter's tokens are estimated by its own rule."""

        def confidence(segment: Segment) -> Floats:
            if segment.source == self.source:
                return self.confidence(segment.scores)
            if self.step_rule is not None:
                return self.step_rule.confidence(segment)
            return np.ones(len(segment))

        return survival_of(draft, confidence)

    def forecast(self) -> Forecast | None:
        """The forecast of the other drafter; free guesses are never slower."""
        self.settle()
        return self.step_rule.forecast() if self.step_rule is not None else None


class _LookupPlan:
    """Guesses first, then draft steps, then guesses again."""

    def __init__(
        self, rule: LookupRule, limit: int, behind: int, room: int, answer_left: int | None
    ) -> None:
        self._rule, self._behind, self._most, self.room = rule, behind, limit, room
        self._left, self._answer_left = limit, answer_left
        self._taken, self._survival = 0, 1.0
        self._steps_plan: Plan | None = None  # until the first guesses are chosen

    @property
    def length(self) -> int:
        """Maximum tokens to draft; after the first guesses, with draft steps."""
        return self._left if self._steps_plan is None else self._steps_plan.length

    def take(self, scores: Sequence[float]) -> int:
        """The best number of guesses, including the draft steps after them."""
        if isinstance(self._steps_plan, OptimalPlan):
            self._taken, self._survival = self._steps_plan.kept, self._steps_plan.survival
            self._left = self._most - self._taken
        if not scores and not self._might_step():
            return 0
        worth, gained, survival = self._weigh(scores[: self._left])
        count = worth.index(max(worth))
        if self._steps_plan is None:
            self._steps_plan, count = self._then_step(count, worth, gained, survival)
        return count

    def _weigh(self, scores: Sequence[float]) -> tuple[list[float], list[float], list[float]]:
        """For 0, 1, ... guesses: the worth, the expected tokens, and the survival.

        In plain Python, because most rounds have few guesses or none.
        """
        alive, gain, costs = self._survival, 0.0, self._rule.costs
        self._rate = rate = self._rule.rate
        here = slice(self._taken, self._taken + len(scores) + 1)
        seconds, redo = costs.target_seconds[here].tolist(), costs.redo_seconds[here].tolist()
        worth, gained, survival = [-rate * seconds[0]], [gain], [alive]
        chances = self._rule.confidence(scores).tolist() if scores else ()
        for chance, again, spent in zip(chances, redo, seconds[1:], strict=False):
            alive, before = alive * chance, alive
            gain += alive - rate * again * (before - alive)
            worth.append(gain - rate * spent)
            gained.append(gain)
            survival.append(alive)
        return worth, gained, survival

    def _might_step(self) -> bool:
        """Whether to compare with draft steps; trials are decided without a comparison."""
        rule, no_steps = self._rule.step_rule, self._steps_plan is None
        if no_steps and rule is not None:
            if rule.rests:
                self._steps_plan = rule.rest(self.room)
                return False
            if rule.current().drafts:
                return True
            self._steps_plan = rule.plan(self._left, self._behind, self._answer_left)
        elif no_steps:
            self._steps_plan = no_plan(self.room)
        return False

    def _then_step(
        self, count: int, worth: list[float], gained: list[float], survival: list[float]
    ) -> tuple[Plan, int]:
        """The plan of draft steps, and the number of guesses before them."""
        rule = self._rule.step_rule
        if rule is None:
            return no_plan(self.room), count
        if count and (rule.rests or not rule.current().drafts):
            return no_plan(self.room), count
        plan = rule.plan(self._left, self._behind, self._answer_left)
        if not plan.length or not (policy := rule.current()).drafts:
            return plan, count  # a trial, or no draft
        if not self._rule.steps_after:
            survival = survival[:1]
        steps = policy.worth_of_steps(survival)
        # The policy was solved for its own rate; at a higher rate, seconds cost more.
        seconds = self._rule.costs.target_seconds[1 : len(steps) + 1]
        steps -= (self._rate - policy.rate) * seconds
        steps += gained[: len(steps)]
        if steps.max() <= worth[count]:
            return no_plan(self.room), count
        count = int(steps.argmax())
        alive = survival[count]
        return OptimalPlan(plan.length - count, policy, count, alive, dear=rule.may_try), count

    def admits(self, score: float) -> bool:
        return self._steps_plan is not None and self._steps_plan.admits(score)

    def goes_on(self) -> bool:
        return self._steps_plan is not None and self._steps_plan.goes_on()
