"""What a stopping rule is, and the simple ones. To add one: a file, and a line in ``__init__.py``.

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
    """How one round may draft. A draft step yields one row of the draft."""

    @property
    def room(self) -> int:
        """Most draft tokens that fit, for guesses that the rule does not decide on."""

    @property
    def length(self) -> int:
        """Most tokens to draft; 0: the draft does not run at all."""

    def admits(self, score: float) -> bool:
        """Whether to draft the token of the row just looked at; if not, drafting ends before it."""

    def goes_on(self) -> bool:
        """Whether to take one more draft step after the token just admitted."""

    def take(self, scores: Sequence[float]) -> int:
        """How many of these free guesses to draft, from the first, given their raw scores.

        All scores are known before any guess is chosen, and each guess is the only token of its
        distribution, so this is lossless too.
        """


class StoppingRule:
    """Makes the plans, and may learn from the rounds; as it is, plain decoding."""

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """The plan of the next round.

        Args:
            limit: most draft tokens (0 or more).
            behind: tokens that the drafter would have to read before its first draft step.
            left: tokens that the answer may still have; default: `limit`.

        """
        return no_plan(limit)

    def observe(self, round: Round) -> None:
        """Learn from a finished round, now or in `settle`."""

    def settle(self) -> None:
        """An answer has ended, or was abandoned: learn from all rounds so far."""

    def forecast(self) -> Forecast | None:
        """The speed it expects; None if the rule makes no forecast."""
        return None

    def survival(self, draft: Draft) -> Floats | None:
        """Chance that each token of `draft` survives, and each untried guess after the last one.

        None: the rule does not weigh tokens, and each draft is verified as it is.
        """
        return None

    @property
    def rate(self) -> float:
        """Tokens that a second is worth."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Source:
    """A drafter as a rule knows it."""

    name: str  # in its segments
    limit: int  # most tokens of it in a draft
    calibration: Calibration = field(default_factory=Calibration)  # what its scores mean
    is_free: bool = False  # whether its guesses cost nothing
    follows_guesses: bool = True  # whether it can continue another drafter's guesses
    is_block: bool = False  # whether one pass makes all its guesses, as many as asked for


@dataclass(frozen=True, slots=True)
class Forecast:
    """Tokens per second, with a draft in every round and without any."""

    drafting: float
    plain: float


@dataclass(slots=True)
class Bounded:
    """At most `length` tokens of the `room` there is, each with a score of at least `min_score`."""

    length: int
    min_score: float = float("-inf")
    room: int = 0

    def admits(self, score: float) -> bool:
        """Whether the score reaches the bound."""
        return score >= self.min_score

    def goes_on(self) -> bool:
        """Up to `length`."""
        return True

    def take(self, scores: Sequence[float]) -> int:
        """Those before the first that is not admitted."""
        refused = (k for k, score in enumerate(scores) if not self.admits(score))
        return min(self.length, next(refused, len(scores)))


def no_plan(room: int) -> Bounded:
    """Plain decoding, for one round."""
    return Bounded(0, room=room)


class Fixed(StoppingRule):
    """Always as many tokens as allowed, up to `length`; 0 is plain decoding."""

    def __init__(self, length: int, min_probability: float = float("-inf")) -> None:
        self.length, self.min_probability = length, min_probability

    def plan(self, limit: int, behind: int = 0, left: int | None = None) -> Plan:
        """The shorter of `length` and `limit`."""
        return Bounded(min(self.length, limit), self.min_probability, limit)


class Threshold(Fixed):
    """Draft up to the first row below `min_probability`: llama.cpp's n-max and p-min."""
