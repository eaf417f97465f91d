"""Optimal stopping for a rate, learned online: the default."""

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

#: Drafts between two solutions of the stopping problem, initially and at most, and the solutions
#: after which this grows by one: each takes about 1 ms, and the estimates change ever more slowly.
_SOLVE_EVERY, _SOLVE_LATER, _MORE_AFTER = 4, 16, 4
#: Drafts after which a block's width is chosen again, which takes four times as long.
_WIDEN_EVERY = 32
#: It is also solved again if passes over so many further rows, relative to a plain pass, became
#: this much dearer or cheaper. If all passes change alike, the policy stays valid.
_ROWS_MORE, _MOVED = (1, 3, 8), 0.05
#: Smaller changes of all costs are ignored.
_SLOWED = 0.01
#: Rounds without a draft before it is tried again, doubled up to the second; and the rounds after
#: which it is tried even if it seems hopeless.
_FIRST_WAIT, _LONGEST_WAIT, _ASKS_AGAIN = 4, 128, 512
#: Meanwhile costs are checked every so many rounds.
_LOOK_EVERY = 4
#: Tokens within which catching up the drafter must pay.
_HORIZON = 192
#: Share of the horizon within which the price must be recovered, as an answer may end at any time;
#: and a deduction from the expected saving until so many draft tokens were tested.
_SURE_OF, _UNSURE, _PROVEN = 1 / 2, 0.15, 60.0
#: The account, in plain rounds: at first what drafting is likely to save in 30, at most 3, so that
#: a machine where it can hardly win pays next to nothing for trying; later at most 16. In replay
#: this bounds the loss in the first 200 tokens of any text, and costs nothing elsewhere. Where it
#: can win, so many first guesses are paid for at least: a block is one, and may cost a whole pass.
#: Of a block whose scores are known there is less to find out, and each trial is dear.
_WINS_OF, _START, _MAX, _GUESSES = 30.0, 3.0, 16.0, 2.0
#: A long draft that fails may just be bad luck: per conversation the account falls to -1 at most,
#: and a hundred rounds fill it again. After a failed block, this is scaled by the probability that
#: one more guess would have been accepted, to the power of _SURPRISE.
_START_KNOWN, _LEAST, _SURPRISE = 1.0, -1.0, 4.0
#: For a trial, catching up the drafter may cost at most this, plus so many times what drafting is
#: likely to save in _WINS_OF rounds. More would be noticeable in short answers.
_READS, _READS_FOR = 1.0, 3.0
#: Cost of a trial besides catching up, in plain rounds: a draft step and a further row.
_TRIAL = 1.5
#: Budget for trying one row more than the policy wants where it looks too dear, in plain rounds.
_TRY = 2.0
#: A further row that costs so many plain passes may have been disturbed when measured.
_DEAR = 0.25


@dataclass(eq=False)
class Optimal(Learning):
    """Optimal stopping for a rate, learned online: the default.

    It may decide not to draft in any round. It then tries again after a number of rounds that
    doubles while the result is the same, if the price (the drafter must catch up) is a small share
    of the time, and a draft could pay at all.
    """

    policy: Policy | None = field(default=None, init=False)
    _age: int = field(default=0, init=False)  # drafts since the policy was made
    _same_width: int = field(default=0, init=False)  # drafts since a block's width was chosen
    _solved: int = field(default=0, init=False)  # how many were made
    _priced_by: Floats | None = field(default=None, init=False)  # the target seconds it assumes
    _wait: int = field(default=_FIRST_WAIT, init=False)
    _idle: int = field(default=0, init=False)
    _account: Account = field(init=False)
    _likely: float = field(init=False)  # what drafting saves in _WINS_OF rounds, in plain rounds
    #: Plain rounds spent on catching up the drafter and not yet recovered.
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
        """Whether this round needs no policy: a draft would not pay, and no trial is due."""
        waits = self._idle % _LOOK_EVERY and self._idle < self._wait
        return bool(waits) and self.policy is not None and not self.policy.drafts

    def rest(self, room: int) -> Plan:
        """The plan of such a round."""
        self._idle += 1
        return no_plan(room)

    def current(self) -> Policy:
        """The current policy, solved again if it is too old."""
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
        """The present rate of plain decoding, times the gain of the best policy."""
        policy, plain = self.policy, super().rate
        return plain if policy is None else plain * max(1.0, policy.rate / policy.plain_rate)

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """The plan with the highest rate, which may be plain decoding."""
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
            # Uncertain costs are no reason to wait: the drafter would fall behind meanwhile.
            worth_it = worth_it or (self.costs.is_doubtful(2) and price <= spare)
            worth_it = worth_it and price <= _READS + _READS_FOR * self._likely
            # It may only seem hopeless because of a busy moment, so it is tried now and then.
            worth_it = worth_it and (self._idle > _ASKS_AGAIN or self._may_win())
            if worth_it:
                self._wait = min(2 * self._wait, _LONGEST_WAIT)
        if not worth_it:
            return no_plan(room)
        self._idle = 0
        return OptimalPlan(min(limit, policy.limit), policy, room=room, dear=self.may_try)

    def _may_win(self) -> bool:
        """Whether a draft that is always right would pay; uncertain rows are assumed to be free."""
        passes, steps = self.costs.target_seconds[: self.limit + 1], self.costs.draft_seconds
        if self.costs.is_doubtful(2):
            passes = np.full_like(passes, passes[0])
        return expected_speedup(passes, steps[: self.limit], 1.0)[0] > LEAST_GAIN

    def may_try(self, rows: int) -> bool:
        """Whether a pass over so many rows looks so dear that it should be tried again."""
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
            # A single slow pass must not count against the text.
            seconds = min(expected, usual_seconds(self.costs, round))
            gain = round.accepted + 1 - seconds / plain + price
            # The price of catching up, which many rounds will recover, is not a loss of this one.
            repaid = min(self._invested, max(0.0, gain))
            gain -= repaid
            self._invested += self.costs.catch_up_seconds(missed) / plain - repaid
            self._age += 1
            if self.policy is not None and not self.policy.drafts:
                self._age = _SOLVE_LATER
        self._account.add(gain, self._least_after(round) * sharing(self.costs))

    def _least_after(self, round: Round) -> float:
        """The lowest balance after a failed draft: the likelier the failure, the higher."""
        if not self.is_block or round.accepted >= round.drafted:
            return _LEAST
        chance = float(self.survival(round.draft)[round.accepted])
        return _LEAST * math.pow(chance, _SURPRISE)

    def _price_of_try(self, round: Round) -> float:
        """Price of the row that was tried in this round, in plain rounds."""
        tried, self._tried = self._tried, 0
        if not tried or 1 + round.drafted != tried or round.accepted == round.drafted:
            return 0.0
        seconds = self.costs.target_seconds
        return float((seconds[tried - 1] - seconds[tried - 2]) / seconds[0])


def _is_other(policy: Policy, seconds: Floats, scale: float) -> bool:
    """Whether passes over several rows became dearer or cheaper relative to a plain one."""
    before = policy.target_seconds
    rows = [more for more in _ROWS_MORE if more < len(before)]
    return any(abs(seconds[k] / (before[k] * scale) - 1.0) > _MOVED for k in rows)


class OptimalPlan:
    """Draft steps as a policy wants them, after `before` tokens with this `survival`.

    One more token is drafted if `dear` is true for the next number of rows.
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
            # Perhaps only the price of the next row prevents it.
            self._more = self.dear(self.kept + 3)
        if draws:
            self.kept, self.survival = self.kept + 1, survival
        return draws

    def goes_on(self) -> bool:
        """Whether the policy pays for one more draft step."""
        return self._more

    def take(self, scores: Sequence[float]) -> int:
        """0: this rule only uses draft steps."""
        return 0
