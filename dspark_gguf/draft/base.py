"""What a drafter is. To add one: a file beside this one, and a line in ``__init__.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from dspark_gguf.records import Draft, Round
from dspark_gguf.schedule import Plan


class Drafter(Protocol):
    """Guesses the tokens that the target will emit.

    Between rounds its cache is a prefix of the committed tokens but the last. It may lag behind:
    what it has not seen it reads when it is asked to propose.
    """

    def restart(self, tokens: Sequence[int], rng: np.random.Generator) -> None:
        """A new answer begins after `tokens` (and one more). No model may run here.

        Args:
            tokens: the prompt but its last token.
            rng: source of this answer's draws.

        """

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """Draft up to ``plan.length`` tokens that may follow `tokens`.

        Whether a token is drafted is decided by ``plan.admits`` before it is drawn; whether there
        is another look after it, by ``plan.goes_on``.
        """

    def behind(self, tokens: Sequence[int]) -> int:
        """How many of the committed `tokens` it would have to read before its first look."""

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""

    def trim(self, length: int) -> None:
        """The committed tokens but the last are `length` now: forget what lies beyond."""


class NoDrafter:
    """Plain decoding."""

    def restart(self, tokens: Sequence[int], rng: np.random.Generator) -> None:
        """Nothing to prepare."""

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """Nothing to propose."""
        return Draft()

    def behind(self, tokens: Sequence[int]) -> int:
        """Nothing to read."""
        return 0

    def observe(self, round: Round) -> None:
        """Nothing to learn."""

    def trim(self, length: int) -> None:
        """Nothing to forget."""
