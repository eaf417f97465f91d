"""Replay a stopping rule on recorded chains and a cost table: exact, without a model or a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dspark_gguf.calibration import log_odds
from dspark_gguf.cost import FixedCosts
from dspark_gguf.dist import Dist
from dspark_gguf.measure.chains import Chains
from dspark_gguf.records import Draft, Round, Segment, Verdict
from dspark_gguf.schedule import Copying, Plan, StoppingRule

#: Stand-ins for the target's token at a place, and for any other.
_RIGHT, _WRONG = 1, 0


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
        chains = _Chains(text, probability, copies=isinstance(rule, Copying))
        position = 0
        while position < text.positions:
            round = _round(rule, chains, position, costs)
            rule.observe(round)
            tokens = min(round.accepted + 1, text.positions - position)
            position += round.accepted + 1
            for place in (result.total, sums):
                place.tokens += tokens
                place.seconds += round.seconds
            result.rounds += 1
            result.drafted += round.draft.steps
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
    if ((text.confidence >= 0.0) & (text.confidence <= 1.0)).all():
        return [[log_odds(p) for p in row] for row in text.confidence.tolist()]
    return list(text.confidence.tolist())


class _Chains:
    """One text as a drafter would see it."""

    def __init__(self, text: Chains, probability: bool, copies: bool) -> None:
        self._scores = scores_of(text, probability)
        self._survived = text.survived.sum(axis=1).tolist()
        self._copies = text.copies if copies else None
        self.copied = copies
        self.depth = text.depth
        if self._copies is not None:
            self.depth = max(self.depth, self._copies.scores.shape[1])

    def looks(self, position: int) -> tuple[list[float], int]:
        """Scores of the chain there, and how many of its tokens are right."""
        if position >= len(self._scores):
            return [], 0
        return self._scores[position], self._survived[position]

    def copies(self, position: int) -> tuple[list[float], int]:
        """The same of what would be copied."""
        return ([], 0) if self._copies is None else self._copies.at(position)


def _round(rule: StoppingRule, text: _Chains, start: int, costs: FixedCosts) -> Round:
    """Copies, looks and copies, as `Cascade` has them.

    Behind tokens that are wrong the chains of the text stand for what would have been guessed: all
    of it comes to nothing either way.
    """
    limit = costs.limit if text.looks(start)[0] else len(costs.target_seconds) - 1
    plan = rule.plan(min(text.depth, limit))
    head = _guesses(plan, text.copies(start)) if text.copied else Segment("lookup")
    steps = _steps(plan, text.looks(start + len(head)), costs)
    draft = Draft(head, steps)
    if text.copied and steps.seconds:
        tail = _guesses(plan, text.copies(start + len(draft)))
        draft = Draft(head, steps, tail if draft.tokens else tail.cut(len(tail)))
    right = [token == _RIGHT for token in draft.tokens]
    accepted = right.index(False) if False in right else len(right)
    drafting, target = sum(steps.seconds), float(costs.target_seconds[len(draft)])
    return Round(
        (_RIGHT,) * (accepted + 1),
        draft=draft,
        verdict=Verdict(accepted, _RIGHT),
        seconds=drafting + target,
        draft_seconds=drafting,
        target_seconds=target,
    )


def _ids(count: int, right: int) -> tuple[int, ...]:
    """Stand-ins for guesses of which the first ones are right."""
    return (_RIGHT,) * min(right, count) + (_WRONG,) * (count - right)


def _guesses(plan: Plan, told: tuple[list[float], int]) -> Segment:
    scores, right = told
    return Segment.of_guesses("lookup", _ids(len(scores), right), scores, plan.copies(scores))


def _steps(plan: Plan, told: tuple[list[float], int], costs: FixedCosts) -> Segment:
    scores, right = told
    kept = steps = 0
    while steps < min(plan.length, len(scores)):
        steps += 1
        if not plan.admits(scores[steps - 1]):
            break
        kept += 1
        if not plan.goes_on():
            break
    tokens = _ids(kept, right)
    seconds = np.diff(costs.draft_seconds[:steps], prepend=0.0)
    dists = tuple(map(Dist.point, tokens))
    return Segment("model", tokens, dists, tuple(scores[:steps]), tuple(seconds.tolist()))
