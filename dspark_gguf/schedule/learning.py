"""What the rules share that learn from every round."""

from __future__ import annotations

from dspark_gguf.calibration import Calibration
from dspark_gguf.cost import Costs
from dspark_gguf.records import Round
from dspark_gguf.schedule.base import Forecast
from dspark_gguf.schedule.stopping import Policy, solve


class Learning:
    """What the rules share that learn: costs and calibrations, kept true by every round.

    Args:
        costs: what looks and passes take.
        calibration: what scores mean.
        limit: most tokens to draft.
        shadow: learns, from the same rounds, how often the draft's best token would be the
            target's own draw: what `match` acceptance would make of them.

    """

    def __init__(
        self,
        costs: Costs,
        calibration: Calibration,
        limit: int,
        shadow: Calibration | None = None,
    ) -> None:
        self.costs, self.calibration, self.shadow = costs, calibration, shadow
        self.limit = limit

    def observe(self, round: Round) -> None:
        """Learn costs and confidences."""
        self.costs.observe(round)
        # Free guesses may stand before the looks and after them: their fates are not the looks'.
        first, last = round.first_look, round.drafted
        if round.last_look is not None:
            last = round.last_look
        survivors = [1.0] * min(round.accepted, last) + [0.0] * (round.accepted < last)
        self.calibration.observe(round.scores, survivors[first:])
        if self.shadow is not None and round.match_chances:
            self.shadow.observe(round.scores, round.match_chances[first:last])

    def forecast(self) -> Forecast:
        """What the best policy would reach."""
        policy = solved(self.costs, self.calibration, self.limit)
        return Forecast(policy.rate, policy.plain_rate)


def solved(
    costs: Costs, calibration: Calibration, limit: int, guess: float | None = None
) -> Policy:
    """The policy of the highest rate with at most `limit` tokens a draft."""
    target, draft = costs.target_seconds[: limit + 1], costs.draft_seconds[:limit]
    return solve(calibration, target, draft, guess, costs.redo_seconds[:limit])
