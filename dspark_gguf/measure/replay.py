"""Replay a stopping rule on recorded chains and a cost table: exact, without a model or a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
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
    """Tokens, and the seconds they took."""

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
        drafted: draft steps that were paid for.
        verified: draft tokens sent to the target.

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
                name: asdict(sums) | {"speedup": sums.speedup(self.plain_second)}
                for name, sums in self.domains.items()
            },
            **{name: getattr(self, name) for name in ("rounds", "drafted", "verified", "accepted")},
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
            position += tokens
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

    A gap is on the scale of log-odds already; probabilities are converted.
    """
    if not probability and text.gap is not None:
        return list(text.gap.tolist())
    rows: list[list[float]] = text.confidence.tolist()
    if not probability and ((text.confidence >= 0.0) & (text.confidence <= 1.0)).all():
        return [[log_odds(p) for p in row] for row in rows]
    return rows


class _Chains:
    """One text as a drafter would see it."""

    def __init__(self, text: Chains, probability: bool, copies: bool) -> None:
        self._scores = scores_of(text, probability)
        self._survived = text.survived.sum(axis=1).tolist()
        self.with_copies, self._copies = copies, text.copies if copies else None
        longest = 0 if self._copies is None else self._copies.scores.shape[1]
        self.depth = max(text.depth, longest)

    def steps(self, position: int) -> tuple[list[float], int]:
        """Scores of the chain there, and how many of its tokens are right."""
        if position >= len(self._scores):
            return [], 0
        return self._scores[position], self._survived[position]

    def copies(self, position: int, plan: Plan) -> Segment:
        """What a lookup would draft there."""
        scores, right = ([], 0) if self._copies is None else self._copies.at(position)
        tokens = _stand_ins(len(scores), right)
        return Segment.of_guesses("lookup", tokens, scores, plan.copies(scores))


def _round(rule: StoppingRule, text: _Chains, start: int, costs: FixedCosts) -> Round:
    """Copies, draft steps and copies, as in `Cascade`.

    After wrong tokens the chains of the text stand for what would have been guessed: none of it
    is accepted either way.
    """
    limit = costs.limit if text.steps(start)[0] else len(costs.target_seconds) - 1
    plan = rule.plan(min(text.depth, limit))
    head = text.copies(start, plan) if text.with_copies else Segment("lookup")
    steps = _steps(plan, *text.steps(start + len(head)), costs)
    draft = Draft(head, steps)
    if text.with_copies and steps.seconds:
        tail = text.copies(start + len(draft), plan)
        draft = Draft(head, steps, tail if draft.tokens else tail.cut(len(tail)))
    accepted = [*draft.tokens, _WRONG].index(_WRONG)
    drafting, target = sum(steps.seconds), float(costs.target_seconds[len(draft)])
    return Round(
        (_RIGHT,) * (accepted + 1),
        draft=draft,
        verdict=Verdict(accepted, _RIGHT),
        seconds=drafting + target,
        draft_seconds=drafting,
        target_seconds=target,
    )


def _stand_ins(count: int, right: int) -> tuple[int, ...]:
    return (_RIGHT,) * min(right, count) + (_WRONG,) * (count - right)


def _steps(plan: Plan, scores: list[float], right: int, costs: FixedCosts) -> Segment:
    kept = steps = 0
    while steps < min(plan.length, len(scores)):
        steps += 1
        if not plan.admits(scores[steps - 1]):
            break
        kept += 1
        if not plan.goes_on():
            break
    tokens = _stand_ins(kept, right)
    seconds = np.diff(costs.draft_seconds[:steps], prepend=0.0)
    dists = tuple(map(Dist.point, tokens))
    return Segment("model", tokens, dists, tuple(scores[:steps]), tuple(seconds.tolist()))
