"""Optimal stopping for a rate, learned on line: the default."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dspark_gguf.arrays import Floats
from dspark_gguf.records import Round
from dspark_gguf.schedule.base import Plan, no_plan
from dspark_gguf.schedule.expected import LEAST_GAIN, expected_speedup, likely_saving
from dspark_gguf.schedule.learning import (
    INCOME,
    Account,
    Learning,
    policy_for,
    sharing,
    usual_seconds,
)
from dspark_gguf.schedule.stopping import Policy

#: Drafts between two solutions of the stopping problem, at first and later, and how many solutions
#: make it one more: each takes about a millisecond, and what is known changes ever more slowly.
_SOLVE_EVERY, _SOLVE_LATER, _MORE_AFTER = 4, 16, 4
#: Drafts after which the width of a block is chosen again: that takes four times as long.
_WIDEN_EVERY = 32
#: It is also solved again once passes over so many more rows than one cost so much more or less,
#: over a plain pass, than it counted on. If all of them do, the policy is as good as it was.
_ROWS_MORE, _MOVED = (1, 3, 8), 0.05
#: It stays as it is while everything takes so much more or less.
_SLOWED = 0.01
#: Rounds without a draft before it is tried again: doubled from the first to the last.
_FIRST_WAIT, _LONGEST_WAIT, _ASKS_AGAIN = 4, 128, 512
#: Meanwhile costs are looked at every so many rounds.
_LOOK_EVERY = 4
#: Tokens within which it must pay to read what the drafter missed.
_HORIZON = 192
#: The share of it that must win the price back, for an answer may end at any time; and what is
#: taken off the expected saving until so many draft tokens were tested: until then it is a guess.
_SURE_OF, _UNSURE, _PROVEN = 1 / 2, 0.15, 60.0
#: The account, in plain rounds: at first what drafting is likely to save in 30, at most 3, so that
#: a machine where it can hardly win pays next to nothing for trying; later at most 16. In replay
#: this bounds the loss in the first 200 tokens of any text, and costs nothing elsewhere. Where it
#: can win, so many first guesses are paid for at least: a block is one, and may cost a whole pass.
#: Of a block whose scores are known there is less to find out, and each trial is dear.
_WINS_OF, _START, _MAX, _GUESSES = 30.0, 3.0, 16.0, 2.0
#: A long draft that fails is bad luck as well: for each conversation the account falls to -1 at
#: most, and a hundred rounds fill it again.
#: After a block that failed it is less, the less likely it was that one guess more stood:
#: that chance to the power of _SURPRISE. Where known scores mean nothing, that is next to certain.
_START_KNOWN, _LEAST, _SURPRISE = 1.0, -1.0, 4.0
#: For a mere trial the drafter reads what it missed if that takes at most this, and so many times
#: what drafting is likely to save in _WINS_OF rounds. In short answers more would show.
_READS, _READS_FOR = 1.0, 3.0
#: What a trial may cost besides the price of catching up, in plain rounds: a step and a row more.
_TRIAL = 1.5
#: What may be spent on rows that look too dear, in plain rounds: one more than the policy wants.
_TRY = 2.0
#: A row that costs so many plain passes may be one that something disturbed.
_DEAR = 0.25


@dataclass(eq=False)
class Optimal(Learning):
    """Optimal stopping for a rate, learned on line: the default.

    It may decide not to draft, in any round. It then tries again after a number of rounds that
    doubles as long as the answer stays the same, if the price (the drafter reads what it missed)
    fits into a small share of the time, and a draft could win at all.
    """

    policy: Policy | None = field(default=None, init=False)
    _age: int = field(default=0, init=False)  # drafts since the policy was made
    _same_width: int = field(default=0, init=False)  # drafts since a block's width was chosen
    _solved: int = field(default=0, init=False)  # how often one was made
    _priced_by: Floats | None = field(default=None, init=False)  # the passes' seconds it counts on
    _wait: int = field(default=_FIRST_WAIT, init=False)
    _idle: int = field(default=0, init=False)
    _account: Account = field(init=False)
    _likely: float = field(init=False)  # what drafting saves in _WINS_OF rounds, in plain rounds
    #: Plain rounds that were spent on reading what the drafter had missed, and not yet won back.
    _invested: float = field(default=0.0, init=False)
    _tries: Account = field(default_factory=lambda: Account(_TRY, _TRY), init=False)
    _tried: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        costs = self.costs
        self._likely = self._likely_wins()
        if start := self._likely:
            start = max(start, _GUESSES * float(costs.draft_seconds[0] / costs.target_seconds[0]))
        is_known = self.is_block and self.calibration.tested >= _PROVEN
        self._account = Account(min(_START_KNOWN if is_known else _START, start), _MAX)

    def _likely_wins(self) -> float:
        """What drafting is likely to save in _WINS_OF rounds, in plain rounds."""
        passes, steps = self.costs.target_seconds, self.costs.draft_seconds
        return _WINS_OF * likely_saving(passes[: self.limit + 1], steps[: self.limit])

    @property
    def rests(self) -> bool:
        """Whether this round needs no policy: a draft would not pay, and a trial is not due."""
        waits = self._idle % _LOOK_EVERY and self._idle < self._wait
        return bool(waits) and self.policy is not None and not self.policy.drafts

    def rest(self, room: int) -> Plan:
        """The plan of such a round."""
        self._idle += 1
        return no_plan(room)

    def current(self) -> Policy:
        """The present policy, solved again if it is too old."""
        policy, seconds = self.policy, self.costs.target_seconds
        is_old = self._age >= min(max(_SOLVE_EVERY, self._solved // _MORE_AFTER), _SOLVE_LATER)
        if policy is not None and seconds is self._priced_by and not is_old:
            return policy
        self._priced_by = seconds
        scale = 1.0 if policy is None else float(seconds[0]) * policy.plain_rate
        if policy is None or is_old or _is_other(policy, seconds, scale):
            self._same_width, self._age = self._same_width + self._age, 0
            guess, width = policy.rate / scale if policy else None, 0
            if policy and policy.drafts and self._same_width < _WIDEN_EVERY:
                width = policy.limit
            else:
                self._same_width = 0
            self._solved += 1
            known = self.costs, self.calibration, self.limit
            self.policy = policy = policy_for(*known, guess, self.is_block, width)
            self._likely = self._likely_wins()
        elif abs(scale - 1.0) > _SLOWED:
            self.policy = policy = policy.slowed(scale)
        return policy

    @property
    def rate(self) -> float:
        """Plain decoding's now, times what the best policy wins over it."""
        policy, plain = self.policy, super().rate
        return plain if policy is None else plain * max(1.0, policy.rate / policy.plain_rate)

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """The plan of the highest rate; without a draft where that is plain decoding."""
        if self.rests:
            return self.rest(limit)
        limit, room = min(limit, self.limit), limit
        left = room if left is None else left
        if limit <= 0 or self.costs.is_doubtful(1):
            return no_plan(room)
        policy, spare = self.current(), self._account.balance
        price = self.costs.catch_up_seconds(behind) * policy.plain_rate  # in plain rounds
        if policy.drafts:
            # What the rest of the answer saves, in plain rounds.
            unsure = _UNSURE * (self.calibration.tested < _PROVEN)
            saved = (1.0 - policy.plain_rate / policy.rate - unsure) * min(_HORIZON, left)
            worth_it = spare >= 0.0 and price <= max(_SURE_OF * saved - self._invested, spare)
            if worth_it:
                self._wait = _FIRST_WAIT
        else:
            self._idle += 1
            worth_it = self._idle > self._wait and price + _TRIAL <= spare
            # Costs that were hardly seen are no reason to wait: the drafter falls behind meanwhile.
            worth_it = worth_it or (self.costs.is_doubtful(2) and price <= spare)
            worth_it = worth_it and price <= _READS + _READS_FOR * self._likely
            # A busy moment may have said that nothing can be won: it is asked again.
            worth_it = worth_it and (self._idle > _ASKS_AGAIN or self._may_win())
            if worth_it:
                self._wait = min(2 * self._wait, _LONGEST_WAIT)
        if not worth_it:
            return no_plan(room)
        self._idle = 0
        return OptimalPlan(min(limit, policy.limit), policy, room=room, dear=self.may_try)

    def _may_win(self) -> bool:
        """Whether a draft that is always right would win; rows hardly seen are taken to be free."""
        passes, steps = self.costs.target_seconds[: self.limit + 1], self.costs.draft_seconds
        if self.costs.is_doubtful(2):
            passes = np.full_like(passes, passes[0])
        return expected_speedup(passes, steps[: self.limit], 1.0)[0] > LEAST_GAIN

    def may_try(self, rows: int) -> bool:
        """Whether a pass over so many rows looks so dear that it is worth another try."""
        seconds = self.costs.target_seconds
        if self._tries.balance <= 0.0 or rows > self.limit + 1 or not self.costs.is_doubtful(rows):
            return False
        if seconds[rows - 1] - seconds[rows - 2] < _DEAR * seconds[0]:
            return False
        self._tried = rows
        return True

    def observe(self, round: Round) -> None:
        """Learn, keep the account, and notice when the policy is out of date."""
        expected = usual_seconds(self.costs, round) if round.draft.steps else 0.0
        super().observe(round)
        if round.draft.is_dictated:
            return
        steps, gain = round.draft.steps, 0.0
        price = self._price_of_try(round) if steps else 0.0
        self._tries.add(-price)
        self._invested = max(0.0, self._invested - INCOME)
        if steps:
            plain = float(self.costs.target_seconds[0])
            missed = sum(each.caught_up for each in round.draft.segments)
            # A pass that was slow for once says nothing about the text.
            seconds = min(expected, usual_seconds(self.costs, round))
            gain = round.accepted + 1 - seconds / plain + price
            # The price of catching up, which many rounds will win back, is no loss of this one.
            repaid = min(self._invested, max(0.0, gain))
            gain -= repaid
            self._invested += self.costs.catch_up_seconds(missed) / plain - repaid
            self._age += 1
            if self.policy is not None and not self.policy.drafts:
                self._age = _SOLVE_LATER
        self._account.add(gain, self._least_after(round) * sharing(self.costs))

    def _least_after(self, round: Round) -> float:
        """The lowest balance after a draft that failed: higher, the likelier that was."""
        if not self.is_block or round.accepted >= round.drafted:
            return _LEAST
        chance = float(self.survival(round.draft)[round.accepted])
        return _LEAST * math.pow(chance, _SURPRISE)

    def _price_of_try(self, round: Round) -> float:
        """Of the row that was tried in this round, in plain rounds."""
        tried, self._tried = self._tried, 0
        if not tried or 1 + round.drafted != tried or round.accepted == round.drafted:
            return 0.0
        seconds = self.costs.target_seconds
        return float((seconds[tried - 1] - seconds[tried - 2]) / seconds[0])


def _is_other(policy: Policy, seconds: Floats, scale: float) -> bool:
    """Whether passes over several rows have become dearer or cheaper over a plain one."""
    before = policy.target_seconds
    rows = [more for more in _ROWS_MORE if more < len(before)]
    return any(abs(seconds[k] / (before[k] * scale) - 1.0) > _MOVED for k in rows)


class OptimalPlan:
    """Draft steps as a policy wants them, after `before` tokens that survive with `survival`.

    If `dear` says so of the next number of rows, one token more is drafted.
    """

    def __init__(
        self,
        length: int,
        policy: Policy,
        before: int = 0,
        survival: float = 1.0,
        room: int = 0,
        dear: Callable[[int], bool] = lambda rows: False,
    ) -> None:
        self.length, self.room, self.dear = length, room, dear
        self.kept, self.survival = before, survival
        self._policy, self._more = policy, True

    def admits(self, score: float) -> bool:
        """Whether the policy keeps this token."""
        draws, self._more, survival = self._policy.choose(self.kept + 1, score, self.survival)
        sure = score > 0.0
        if not draws and sure and self.dear(self.kept + 2):
            draws, self._more = True, False
        elif draws and not self._more and sure:
            # The next row may be what stands in the way.
            self._more = self.dear(self.kept + 3)
        if draws:
            self.kept, self.survival = self.kept + 1, survival
        return draws

    def goes_on(self) -> bool:
        """Whether the policy pays for one more draft step."""
        return self._more

    def take(self, scores: Sequence[float]) -> int:
        """None: this rule is about draft steps."""
        return 0
