"""Rules that a user sets by hand, as llama.cpp has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark_gguf.records import Round
from dspark_gguf.schedule.base import Plan


@dataclass(frozen=True, slots=True)
class Bounded:
    """At most `length` tokens of the `room` there is, each with a score of at least `min_score`."""

    length: int
    min_score: float = float("-inf")
    room: int = 0

    def admits(self, score: float) -> bool:
        """Whether the row is sure enough."""
        return score >= self.min_score

    def goes_on(self) -> bool:
        """Up to `length`."""
        return True

    def copies(self, scores: Sequence[float]) -> int:
        """As many as are sure enough."""
        unsure = (k for k, score in enumerate(scores) if score < self.min_score)
        return min(self.length, next(unsure, len(scores)))


def no_plan(room: int) -> Bounded:
    """Plain decoding, for one round."""
    return Bounded(0, room=room)


class Fixed:
    """Always as many tokens as allowed, up to `length`; 0 is plain decoding."""

    def __init__(self, length: int) -> None:
        self.length = length

    def plan(self, limit: int, behind: int = 0) -> Plan:
        """The shorter of `length` and `limit`."""
        return Bounded(min(self.length, limit), room=limit)

    def observe(self, round: Round) -> None:
        """Nothing to learn."""

    def forecast(self) -> None:
        """Nothing is reckoned."""


class Threshold:
    """Draft while the draft is sure: llama.cpp's n-max and p-min. The score is a probability."""

    def __init__(self, length: int, min_probability: float) -> None:
        self.length, self.min_probability = length, min_probability

    def plan(self, limit: int, behind: int = 0) -> Plan:
        """At most `length`, ended by the first row below the bound."""
        return Bounded(min(self.length, limit), self.min_probability, limit)

    def observe(self, round: Round) -> None:
        """Nothing to learn."""

    def forecast(self) -> None:
        """Nothing is reckoned."""
