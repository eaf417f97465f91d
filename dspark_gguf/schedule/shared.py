"""The schedule of several conversations that share every pass.

Each conversation plans with the costs of its share, as if all did the same, so that together they
can get over a step in the cost table. Then all draft tokens are ranked by their probability to
survive, and as many are verified as maximise the tokens for the seconds of the whole pass. The
ranking is DSpark's (DeepSeek-AI 2026, algorithm 1). That algorithm stops where the rate first
falls, which would be before every step of a jagged table, so here the whole table is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from dspark_gguf.arrays import Floats
from dspark_gguf.config import MAX_DRAFT, MAX_ROWS
from dspark_gguf.cost import seconds_at
from dspark_gguf.learned_costs import LearnedCosts
from dspark_gguf.records import Draft, Round

#: How fast the estimate for a draft step of several conversations follows.
_GAIN = 0.2
_RISE = 2.0  # an observation is clipped to this factor of the expected value
#: Passes without a draft are learned from in groups of so many, and depth changes in such steps.
#: Code that runs once per pass runs with cold CPU caches: each took 0.1 ms, which was 1 to 2 % of
#: the time where drafting cannot pay.
AT_ONCE = 16
#: Properties of `SharedCosts` that are recomputed when something was learned.
_OF_A_ROUND = "pass_seconds", "target_seconds", "redo_seconds", "draft_seconds"


class SharedCosts:
    """The cost of a round for one of `count` conversations that share each pass.

    `costs` are those of whole passes. `joint`: the draft runs one pass for all conversations, not
    one for each. `is_block`: one pass makes all guesses of a conversation.
    """

    def __init__(self, costs: LearnedCosts, joint: bool = True, is_block: bool = False) -> None:
        self.whole, self.joint, self.is_block = costs, joint, is_block
        self.count = 0
        self._row = self._step = 0.0  # seconds per draft row and draft step in this round
        self._steps: dict[int, float] = {}  # conversations -> relative seconds of a draft step
        self._later: list[tuple[int, float]] = []  # passes not yet learned from: rows and seconds
        self._known: Floats | None = None  # the target seconds that the properties are based on
        self.set_count(1)

    def set_count(self, count: int, depth: float = 0.0) -> None:
        """Prepare a round with `count` conversations of `depth` tokens on average."""
        if self.count != count:
            self.settle()
        attention = self.whole.attention
        attention.depth, attention.conversations = depth // AT_ONCE * AT_ONCE, count
        seconds = self.whole.target_seconds
        if self._known is not seconds or self.count != count:
            self.count, self._known = count, seconds
            for name in _OF_A_ROUND:  # many rounds ask for few of them
                self.__dict__.pop(name, None)

    @cached_property
    def pass_seconds(self) -> Floats:
        """Of a pass of 1, 2, ... rows of all conversations."""
        return seconds_at(self.whole.target_seconds, np.arange(1, MAX_ROWS + 1))

    @cached_property
    def target_seconds(self) -> Floats:
        """See `Costs`: the share of one conversation if all do the same."""
        rows = self.count * np.arange(1, MAX_DRAFT + 2)
        return seconds_at(self.whole.target_seconds, rows) / self.count

    @cached_property
    def redo_seconds(self) -> Floats:
        """See `Costs`."""
        return self.target_seconds * self.whole.rereads

    @cached_property
    def draft_seconds(self) -> Floats:
        """See `Costs`."""
        return self.whole.draft_seconds[:MAX_DRAFT] * (self._growth(self.count) / self.count)

    def _growth(self, count: int) -> float:
        """Seconds of a draft step of so many conversations, relative to one."""
        if not self.joint:
            return float(count)
        if count == 1:
            return 1.0
        if count in self._steps:
            return self._steps[count]
        return float(self.pass_seconds[count - 1] / self.pass_seconds[0])

    def set_pass(self, drafts: Sequence[Draft]) -> None:
        """These drafts are verified in the pass of this round."""
        rows, steps = sum(map(len, drafts)), sum(draft.steps for draft in drafts)
        if not rows and not steps:
            self._row = self._step = 0.0
            return
        most = max((draft.steps for draft in drafts), default=0)
        counts = [sum(draft.steps > step for draft in drafts) for step in range(most)]
        drafting = sum(self.step_seconds(count, step) for step, count in enumerate(counts))
        before, after = self.pass_seconds[self.count - 1], self.pass_seconds[self.count + rows - 1]
        self._row = float(after - before) / max(rows, 1)
        self._step = drafting / max(steps, 1)

    def share_of(self, round: Round) -> float:
        """What a round adds to the pass, plus its share of the rest; shares add up to the pass."""
        seconds = float(self.target_seconds[0]) + len(round.draft) * self._row
        again = 0.0
        if round.accepted < round.drafted:
            again = float(self.redo_seconds[round.accepted])
        return seconds + round.draft.steps * self._step + again

    def step_seconds(self, count: int, step: int) -> float:
        """Seconds of draft step number `step` (from 0) for `count` conversations together."""
        drafts = self.whole.draft_seconds
        own = drafts[step] - (drafts[step - 1] if step else 0.0)
        return float(own) * self._growth(count)

    def see_pass(self, rows: int, seconds: float) -> None:
        """The pass of a round took `seconds`."""
        self._later.append((rows, seconds))
        is_plain = rows == self.count and not self.whole.is_doubtful(rows)
        if not is_plain or len(self._later) >= AT_ONCE:
            self.settle()

    def see_prompt(self) -> None:
        """The pass included prefill."""
        self.settle()
        self.whole.switch.prompted()

    def settle(self) -> None:
        """Learn from all passes so far."""
        later, self._later = self._later, []
        for rows, seconds in later:
            self.whole.add_round(rows, seconds)

    def see_draft_step(self, count: int, longest: int, seconds: float, width: int = 1) -> None:
        """A draft step of `count` conversations, over at most `longest` tokens, took `seconds`.

        It makes up to `width` guesses for each. A block reads what one round brings in any case.
        """
        self._known = None
        if count == 1 and self.is_block:
            self.whole.add_block(width, seconds, longest)
        elif count == 1 and longest > 1:
            self.whole.add_first_draft_step(seconds, longest)
        elif count == 1:
            self.whole.add_draft_step(seconds)
        if count == 1 or longest > (2 if self.is_block else 1):
            return
        drafts = self.whole.draft_seconds
        grown = seconds / float(drafts[width - 1] if self.is_block else drafts[1] - drafts[0])
        old = self._steps.get(count, grown)
        self._steps[count] = old * min(grown / old, _RISE) ** _GAIN

    def catch_up_seconds(self, tokens: int) -> float:
        """See `Costs`: all conversations wait while one drafter reads."""
        return self.whole.catch_up_seconds(tokens)

    def is_doubtful(self, rows: int) -> bool:
        """Whether plain passes of so many conversations were seldom seen."""
        return rows == 1 and self.whole.is_doubtful(self.count)

    def observe(self, round: Round) -> None:
        """Do nothing: a round's seconds include those of other conversations."""


def allot(
    survivals: Sequence[Floats], seconds: Floats, rate: float, most: int, equal: bool = False
) -> list[int]:
    """How many draft tokens of each conversation to verify: maximises ``tokens - rate * seconds``.

    Args:
        survivals: of each conversation's draft tokens, in order; decreasing along a draft.
        seconds: of a pass of 1, 2, ... rows.
        rate: tokens per second at which seconds are charged.
        most: maximum draft tokens in total.
        equal: whether all must have the same number, because a pass would be split otherwise.

    """
    alone = len(survivals)
    most = min(most, len(seconds) - alone)
    if most <= 0:
        return [0] * alone
    if equal:
        longest = min(min(map(len, survivals)), most // alone)
        each = np.array([sum(one[:n].sum() for one in survivals) for n in range(longest + 1)])
        worth = each - rate * seconds[alone - 1 :: alone][: longest + 1]
        return [int(worth.argmax())] * alone
    ranked = sorted(
        (-chance, place, k) for k, one in enumerate(survivals) for place, chance in enumerate(one)
    )[:most]
    gained = np.concatenate(([0.0], np.cumsum([-chance for chance, _, _ in ranked])))
    worth = gained - rate * seconds[alone - 1 : alone + len(ranked)]
    lengths = [0] * alone
    for _, _, k in ranked[: int(worth.argmax())]:
        lengths[k] += 1
    return lengths
