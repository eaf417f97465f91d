"""The base of stopping rules, and the simple ones. A new one needs a file, and a line in __init__.

A rule makes a plan before each round. While drafting, the drafter asks the plan before it draws a
token. The plan never sees a token: with `rejection` acceptance a decision that depends on the drawn
token would change the distribution of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dspark_gguf.arrays import Floats
from dspark_gguf.calibration import Calibration
from dspark_gguf.records import Draft, Round


class Plan(Protocol):
    """How to draft in one round. A draft step yields one row of the draft's logits."""

    @property
    def room(self) -> int:
        """Maximum draft tokens that fit, for guesses that do not depend on the rule."""

    @property
    def length(self) -> int:
        """Maximum tokens to draft; 0: the draft does not run at all."""

    def admits(self, score: float) -> bool:
        """Whether to draft a token from the last row; if not, drafting ends before it."""

    def goes_on(self) -> bool:
        """Whether to take one more draft step after the token just admitted."""

    def take(self, scores: Sequence[float]) -> int:
        """How many of these free guesses to draft, from the first, given their raw scores.

        All scores are known before any guess is chosen, and each guess is the only token of its
        distribution, so this is lossless too.
        """


class StoppingRule:
    """Plans each round and may learn from it; the base class does plain decoding."""

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """The plan of the next round.

        Args:
            limit: maximum draft tokens (0 or more).
            behind: tokens that the drafter would have to read before its first draft step.
            left: tokens that may still come; default: `limit`.

        """
        return no_plan(limit)

    def observe(self, round: Round) -> None:
        """Learn from a finished round, now or in `settle`."""

    def settle(self) -> None:
        """An answer has ended or was abandoned: learn from all rounds so far."""

    def forecast(self) -> Forecast | None:
        """The expected speed; None if the rule makes no forecast."""
        return None

    def survival(self, draft: Draft) -> Floats | None:
        """Probability that each token of `draft`, and each untried guess after it, survives.

        None: the rule makes no estimate, and each draft is verified as it is.
        """
        return None

    @property
    def rate(self) -> float:
        """The rate, in tokens per second, at which time is charged."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Source:
    """A drafter as a rule sees it."""

    name: str  # the source of its segments
    limit: int  # maximum tokens of it in a draft
    calibration: Calibration = field(default_factory=Calibration)  # of its scores
    is_free: bool = False  # whether its guesses cost nothing
    follows_guesses: bool = True  # whether it can continue another drafter's guesses
    is_block: bool = False  # whether one pass makes all its guesses, as many as asked for


@dataclass(frozen=True, slots=True)
class Forecast:
    """Tokens per second, with a draft in every round and with plain decoding."""

    drafting: float
    plain: float


@dataclass(slots=True)
class Bounded:
    """At most `length` tokens, where `room` fit, each with a score of at least `min_score`."""

    length: int
    min_score: float = float("-inf")
    room: int = 0

    def admits(self, score: float) -> bool:
        """Whether the score reaches the bound."""
        return score >= self.min_score

    def goes_on(self) -> bool:
        """Always: `length` ends it."""
        return True

    def take(self, scores: Sequence[float]) -> int:
        """The guesses before the first that is not admitted."""
        refused = (k for k, score in enumerate(scores) if not self.admits(score))
        return min(self.length, next(refused, len(scores)))


def no_plan(room: int) -> Bounded:
    """Plain decoding, for one round."""
    return Bounded(0, room=room)


class Fixed(StoppingRule):
    """Always `length` tokens, if they fit; 0 is plain decoding."""

    def __init__(self, length: int, min_probability: float = float("-inf")) -> None:
        self.length, self.min_probability = length, min_probability

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """The shorter of `length` and `limit`."""
        return Bounded(min(self.length, limit), self.min_probability, limit)


class Threshold(Fixed):
    """Draft up to the first row below `min_probability`: llama.cpp's n-max and p-min."""
