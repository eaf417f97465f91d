"""Replay a stopping rule on recorded chains and a cost table: exact, without a model or a clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dspark_gguf.calibration import log_odds
from dspark_gguf.cost import FixedCosts
from dspark_gguf.measure.chains import Chains
from dspark_gguf.records import Round
from dspark_gguf.schedule import StoppingRule


@dataclass(slots=True)
class Sums:
    """Tokens, and the seconds that they took."""

    tokens: int = 0
    seconds: float = 0.0

    def speedup(self, plain_second: float) -> float:
        """Over plain decoding, of `plain_second` a token."""
        return self.tokens * plain_second / self.seconds if self.seconds else 1.0


@dataclass(slots=True)
class Result:
    """What a rule reached.

    Attributes:
        plain_second: seconds of one token of plain decoding.
        total: over all texts.
        domains: by kind of text.
        verified: draft tokens sent to the target; drafted: looks that were paid for.

    """

    plain_second: float
    total: Sums = field(default_factory=Sums)
    domains: dict[str, Sums] = field(default_factory=dict)
    rounds: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0

    @property
    def speedup(self) -> float:
        """Over plain decoding."""
        return self.total.speedup(self.plain_second)

    def domain_speedup(self, domain: str) -> float:
        """Over plain decoding, in one kind of text."""
        return self.domains[domain].speedup(self.plain_second)

    def as_dict(self, rule: str) -> dict[str, Any]:
        """The object that ``replay --json`` prints."""
        return {
            "rule": rule,
            "tokens": self.total.tokens,
            "seconds": self.total.seconds,
            "plain_seconds": self.total.tokens * self.plain_second,
            "speedup": self.speedup,
            "domains": {
                name: {
                    "tokens": sums.tokens,
                    "seconds": sums.seconds,
                    "speedup": sums.speedup(self.plain_second),
                }
                for name, sums in self.domains.items()
            },
            "rounds": self.rounds,
            "drafted": self.drafted,
            "verified": self.verified,
            "accepted": self.accepted,
        }


def replay(
    texts: Iterable[Chains], costs: FixedCosts, rule: StoppingRule, probability: bool
) -> Result:
    """Walk through all texts in order; the rule keeps what it learns.

    Args:
        texts: recorded chains.
        costs: what rounds cost.
        rule: how long to draft.
        probability: whether the rule's score is the top probability, as for `Threshold`.

    """
    result = Result(float(costs.target_seconds[0]))
    for text in texts:
        sums = result.domains.setdefault(text.domain, Sums())
        scores = scores_of(text, probability)
        survived = text.survived.sum(axis=1).tolist()
        position = 0
        while position < text.positions:
            round = _round(rule, scores[position], survived[position], costs)
            rule.observe(round)
            tokens = min(round.accepted + 1, text.positions - position)
            position += round.accepted + 1
            for place in (result.total, sums):
                place.tokens += tokens
                place.seconds += round.seconds
            result.rounds += 1
            result.drafted += len(round.scores)
            result.verified += round.drafted
            result.accepted += min(round.accepted, tokens)
    return result


def scores_of(text: Chains, probability: bool) -> list[list[float]]:
    """Raw scores as a rule wants them.

    A gap is on the scale of log-odds as it is; probabilities are brought there.
    """
    if probability:
        return list(text.confidence.tolist())
    if text.gap is not None:
        return list(text.gap.tolist())
    if text.confidence.min() >= 0.0 and text.confidence.max() <= 1.0:
        return [[log_odds(p) for p in row] for row in text.confidence.tolist()]
    return list(text.confidence.tolist())


def _round(rule: StoppingRule, scores: Sequence[float], alive: int, costs: FixedCosts) -> Round:
    plan = rule.plan(min(len(scores), costs.limit))
    kept = looks = 0
    while kept < plan.length:
        looks += 1
        if not plan.admits(scores[looks - 1]):
            break
        kept += 1
        if not plan.goes_on():
            break
    draft = float(costs.draft_seconds[looks - 1]) if looks else 0.0
    target = float(costs.target_seconds[kept])
    return Round(
        (),
        drafted=kept,
        accepted=min(alive, kept),
        scores=tuple(scores[:looks]),
        seconds=draft + target,
        draft_seconds=draft,
        target_seconds=target,
    )
