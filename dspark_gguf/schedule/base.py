"""What a stopping rule is. To add one: a file beside this one, and a line in ``__init__.py``.

A rule is asked once before a round for a plan. While drafting, the plan is asked before each token
is drawn. It never sees a token: with `ratio` acceptance a decision that depends on the drawn token
would change the law of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dspark_gguf.calibration import Calibration
from dspark_gguf.records import Round


class Plan(Protocol):
    """How one round may draft. A look is one row of the draft: the law of its next token."""

    @property
    def room(self) -> int:
        """Most draft tokens that fit: for guesses that the rule has no say in."""

    @property
    def length(self) -> int:
        """Most tokens to draft; 0: the draft does not run at all."""

    def admits(self, score: float) -> bool:
        """Whether the token of the row just looked at is drafted; no: drafting ends before it."""

    def goes_on(self) -> bool:
        """Whether to look once more after the token that was just admitted."""

    def copies(self, scores: Sequence[float]) -> int:
        """How many of these free guesses to draft, from the first.

        Args:
            scores: the raw score of each. All of them are known before any is chosen, and each is
                the only token of its law: losslessness does not mind.

        """


class StoppingRule(Protocol):
    """Makes the plans, and may learn from what came of them."""

    def plan(self, limit: int, behind: int = 0) -> Plan:
        """The plan of the next round.

        Args:
            limit: most draft tokens (0 or more).
            behind: tokens that the drafter would have to read before its first look.

        """

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""

    def forecast(self) -> Forecast | None:
        """What it expects of the next rounds; None: it does not reckon."""


@dataclass(frozen=True, slots=True)
class Source:
    """A drafter as a rule knows it.

    Attributes:
        name: of the drafter, in its segments.
        limit: most tokens of it in a draft.
        calibration: what its scores mean.
        shadow: what they would mean under `match` acceptance; None: nobody asks.
        is_free: whether its guesses cost nothing.
        follows_guesses: whether it can go on behind another's guesses.

    """

    name: str
    limit: int
    calibration: Calibration = field(default_factory=Calibration)
    shadow: Calibration | None = None
    is_free: bool = False
    follows_guesses: bool = True


@dataclass(frozen=True, slots=True)
class Forecast:
    """Tokens per second, with a draft in every round and without any."""

    drafting: float
    plain: float
