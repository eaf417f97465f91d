"""Free guesses, copied from what was said: how many of them to verify, and whether to look as well.

All guesses and their scores are known before anything is paid, so the choice is between figures:
verify the first j of them for the best ``expected - rate * seconds(rows)``, or let the other
drafter look, at once or after them. What was guessed and not verified is compared with what the
target said all the same: the calibration learns from every round, and nothing has to be tried.

The rate is that of the last rounds: in a stretch that copies, a second is worth more tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dspark_gguf.calibration import KNOTS, Calibration
from dspark_gguf.cost import Costs
from dspark_gguf.records import Round
from dspark_gguf.schedule.base import Forecast, Plan
from dspark_gguf.schedule.optimal import Optimal, OptimalPlan
from dspark_gguf.schedule.static import no_plan

Floats = npt.NDArray[np.float64]

#: What is kept of the account of tokens and seconds at each round.
_KEEP = 0.6
#: The account of what copying has won and lost, in plain rounds: what there is to spend at first,
#: the most that is put aside, what each round adds, and the power that confidences are raised to
#: once it is spent, at first and for each plain round of debt: in a text that misleads them, only
#: near certain copies remain. In replay this turned 0.93 of plain in the worst kind of text into
#: 0.98, and costs 0.4 % elsewhere.
_START, _MOST, _SHARE = 1.0, 2.0, 0.01
_DOUBT, _DEBT = 2.0, 0.5


class Copying:
    """Free guesses under the rate of the last rounds, with a rule for a drafter that looks.

    Args:
        costs: what passes and looks take.
        calibration: what the scores of guesses mean.
        limit: most tokens of a draft.
        looking: the rule of the other drafter; None: there is none.
        looks_after: whether the other drafter can look behind guesses.
        source: name of the drafter of the guesses.

    """

    def __init__(
        self,
        costs: Costs,
        calibration: Calibration,
        limit: int,
        looking: Optimal | None = None,
        looks_after: bool = True,
        source: str = "lookup",
    ) -> None:
        self.costs, self.calibration, self.source = costs, calibration, source
        self.limit, self.looking, self.looks_after = limit, looking, looks_after
        self._tokens = self._seconds = 0.0
        self._account = _START

    def plan(self, limit: int, behind: int = 0) -> Plan:
        """The plan of one round."""
        most = min(limit, self.limit, len(self.costs.target_seconds) - 1)
        return _CopyingPlan(self, most, behind, limit) if most > 0 else no_plan(limit)

    @property
    def rate(self) -> float:
        """Tokens a second: what the last rounds reached, and at least plain decoding."""
        plain = 1.0 / float(self.costs.target_seconds[0])
        if self.looking is not None and self.looking.policy is not None:
            plain = max(plain, self.looking.policy.rate)
        return max(plain, self._tokens / self._seconds) if self._seconds else plain

    def observe(self, round: Round) -> None:
        """Learn costs and confidences."""
        if self.looking is not None:
            self.looking.observe(round)
        else:
            self.costs.observe(round)
        if round.draft.is_dictated:
            return
        for _, segment, outcomes in round.draft.outcomes(round.tokens):
            if segment.source == self.source:
                self.calibration.observe(segment.scores[: len(outcomes)], outcomes)
        # What such a round usually takes: one slow pass says nothing about the text.
        steps = round.draft.steps
        seconds = float(self.costs.target_seconds[round.drafted])
        if steps:
            seconds += float(self.costs.draft_seconds[steps - 1])
        if round.accepted < round.drafted:
            seconds += float(self.costs.redo_seconds[round.accepted])
        if round.drafted and not steps:
            self._account += round.accepted + 1 - seconds / float(self.costs.target_seconds[0])
        self._account = min(self._account + _SHARE, _MOST)
        self._tokens = _KEEP * self._tokens + round.accepted + 1
        self._seconds = _KEEP * self._seconds + seconds

    def confidence(self, scores: Sequence[float]) -> Floats:
        """Probability that each of these guesses is right, given that those before it are."""
        sure: Floats = np.interp(scores, KNOTS, self.calibration.confidence)
        return sure if self._account >= 0.0 else sure ** (_DOUBT - _DEBT * self._account)

    def forecast(self) -> Forecast | None:
        """Of the drafter that looks; guesses that cost nothing are never slower."""
        return self.looking.forecast() if self.looking is not None else None


class _CopyingPlan:
    """Guesses first, then looks, then guesses again."""

    def __init__(self, rule: Copying, limit: int, behind: int, room: int) -> None:
        self._rule, self._behind, self._most, self.room = rule, behind, limit, room
        self._left = limit
        self._rate, self._seconds = rule.rate, rule.costs.target_seconds
        self._redo = rule.costs.redo_seconds
        self._taken, self._survival = 0, 1.0
        self._looking: Plan | None = None  # until the first guesses are chosen

    @property
    def length(self) -> int:
        """Tokens that may be drafted; after the first guesses: by looking."""
        return self._left if self._looking is None else self._looking.length

    def copies(self, scores: Sequence[float]) -> int:
        """The number of guesses with the best worth, looks after them included."""
        if isinstance(self._looking, OptimalPlan):
            self._taken, self._survival = self._looking.kept, self._looking.survival
            self._left = self._most - self._taken
        scores = scores[: self._left]
        survival: Floats = self._survival * np.cumprod(
            self._rule.confidence(scores), dtype=np.float64
        )
        before = np.concatenate(([self._survival], survival))
        redo = self._redo[self._taken : self._taken + len(survival)]
        net = survival - self._rate * redo * (before[:-1] - survival)
        gained = np.concatenate(([0.0], np.cumsum(net)))
        rows = self._seconds[self._taken : self._taken + len(gained)]
        worth = gained - self._rate * rows
        count = int(worth.argmax())
        if self._looking is None:
            self._looking, count = self._then_look(count, worth, gained, survival)
        return count

    def _then_look(
        self, count: int, worth: Floats, gained: Floats, survival: Floats
    ) -> tuple[Plan, int]:
        """The plan of looks, and the number of guesses before them."""
        rule = self._rule.looking
        if rule is None:
            return no_plan(self.room), count
        policy = rule.current()
        if count and not policy.drafts:
            return no_plan(self.room), count
        plan = rule.plan(self._left, self._behind)
        if not plan.length or not policy.drafts:
            return plan, count  # a trial, if anything
        survival = np.concatenate(([1.0], survival if self._rule.looks_after else []))
        looks = policy.worth_of_looks(survival)
        # The policy reckons with its own rate; at a higher one a round's seconds are dearer.
        looks -= (self._rate - policy.rate) * self._seconds[1 : len(looks) + 1]
        looks += gained[: len(looks)]
        if looks.max() <= worth[count]:
            return no_plan(self.room), count
        count = int(looks.argmax())
        return OptimalPlan(plan.length - count, policy, count, float(survival[count])), count

    def admits(self, score: float) -> bool:
        """As the plan of looks."""
        return self._looking is not None and self._looking.admits(score)

    def goes_on(self) -> bool:
        """As the plan of looks."""
        return self._looking is not None and self._looking.goes_on()
