"""How long to draft: stopping rules.

A rule is asked once before a round for a plan. While drafting, the plan is asked before each token
is drawn. It never sees a token: with `ratio` acceptance a decision that depends on the drawn token
would change the law of the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dspark_gguf.config import Speculation
from dspark_gguf.records import Round


class Plan(Protocol):
    """How one round may draft."""

    @property
    def length(self) -> int:
        """Most tokens to draft; 0: the draft does not run at all."""

    def admits(self, confidence: float) -> bool:
        """Whether a token with this score of the draft's row (its top probability) is drafted."""


class StoppingRule(Protocol):
    """Makes the plans, and may learn from what came of them."""

    def plan(self, limit: int) -> Plan:
        """The plan of the next round, of at most `limit` draft tokens (0 or more)."""

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """At most `length` tokens, each with a confidence of at least `min_confidence`."""

    length: int
    min_confidence: float = 0.0

    def admits(self, confidence: float) -> bool:
        """Whether the row is confident enough."""
        return confidence >= self.min_confidence


class Fixed:
    """Always as many tokens as allowed, up to `length`; 0 is plain decoding."""

    def __init__(self, length: int) -> None:
        self.length = length

    def plan(self, limit: int) -> Plan:
        """The shorter of `length` and `limit`."""
        return Bounded(min(self.length, limit))

    def observe(self, round: Round) -> None:
        """Nothing to learn."""


class Threshold:
    """Draft while the draft is sure: llama.cpp's n-max and p-min."""

    def __init__(self, length: int, min_confidence: float) -> None:
        self.length, self.min_confidence = length, min_confidence

    def plan(self, limit: int) -> Plan:
        """At most `length`, ended by the first row below the bound."""
        return Bounded(min(self.length, limit), self.min_confidence)

    def observe(self, round: Round) -> None:
        """Nothing to learn."""


def make_stopping_rule(settings: Speculation) -> StoppingRule:
    """The rule that `settings` ask for; mode `auto` is `on`."""
    if settings.mode == "off":
        return Fixed(0)
    if settings.draft_min_prob == 0.0:
        return Fixed(settings.draft_max)
    return Threshold(settings.draft_max, settings.draft_min_prob)
