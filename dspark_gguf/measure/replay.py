"""Replay a stopping rule on recorded chains and a cost table: exact, without a model or a clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dspark_gguf.calibration import log_odds
from dspark_gguf.cost import FixedCosts
from dspark_gguf.measure.chains import Chains
from dspark_gguf.records import Round
from dspark_gguf.schedule import Copying, StoppingRule


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
    before, right = text.copies(start)
    first = kept = plan.copies(before) if text.copied else 0
    accepted = min(right, first)
    scores, right = text.looks(start + first)
    looks = 0
    while looks < min(plan.length, len(scores)):
        looks += 1
        if not plan.admits(scores[looks - 1]):
            break
        kept += 1
        if not plan.goes_on():
            break
    last = kept
    if accepted == first:
        accepted += min(right, last - first)
    after, right = text.copies(start + last) if looks else ([], 0)
    kept += plan.copies(after) if text.copied and looks else 0
    if accepted == last:
        accepted += min(right, kept - last)
    draft = float(costs.draft_seconds[looks - 1]) if looks else 0.0
    target = float(costs.target_seconds[kept])
    guessed = [(before, _fates(before, text.copies(start)[1], accepted + 1))]
    if accepted >= last > 0:
        guessed.append((after, _fates(after, right, accepted + 1 - last)))
    return Round(
        (),
        drafted=kept,
        accepted=accepted,
        scores=tuple(scores[:looks]),
        first_look=first,
        last_look=last,
        guessed=tuple((tuple(told), fates) for told, fates in guessed),
        seconds=draft + target,
        draft_seconds=draft,
        target_seconds=target,
    )


def _fates(scores: Sequence[float], right: int, seen: int) -> tuple[float, ...]:
    """Of the guesses whose tokens were seen, up to the first wrong one."""
    fates = [1.0] * right + [0.0] * (right < len(scores))
    return tuple(fates[:seen])
