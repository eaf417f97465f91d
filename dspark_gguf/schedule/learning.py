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
        source: name of the drafter; others' segments say nothing about its scores.

    """

    def __init__(
        self,
        costs: Costs,
        calibration: Calibration,
        limit: int,
        shadow: Calibration | None = None,
        source: str = "model",
    ) -> None:
        self.costs, self.calibration, self.shadow = costs, calibration, shadow
        self.limit, self.source = limit, source

    def observe(self, round: Round) -> None:
        """Learn costs and confidences."""
        self.costs.observe(round)
        chances = round.verdict.match_chances if round.verdict else ()
        for place, segment, outcomes in round.draft.outcomes(round.tokens):
            if segment.source != self.source:
                continue
            self.calibration.observe(segment.scores, outcomes)
            if self.shadow is not None and chances:
                self.shadow.observe(segment.scores, chances[place : place + len(segment)])

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
