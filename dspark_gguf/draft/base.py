"""What a drafter is. To add one: a class with ``@drafter(NAME)`` (``registry.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.schedule import Plan

if TYPE_CHECKING:
    from dspark_gguf.draft.grammar import AnswerGrammar


class Drafter(Protocol):
    """Guesses the tokens that the target will emit.

    Between rounds its cache is a prefix of the committed tokens but the last. It may lag behind:
    what it has not seen it reads when it is asked to propose.

    Attributes:
        name: its segments' source, under which its scores are calibrated.
        about: where its guesses come from, in words.
        is_free: whether guesses cost nothing but their verification. Then all of them and their
            scores are known before any is chosen (`Plan.copies`); else each is a draft step.
        draws: whether its tokens are drawn, as `ratio` acceptance wants them; else they are its
            best guesses.
        follows_guesses: whether it can go on behind tokens that another drafter guessed.
        most: most tokens of a draft.

    """

    name: str
    about: str
    is_free: bool
    draws: bool
    follows_guesses: bool
    most: int

    def restart(
        self,
        tokens: Sequence[int],
        rng: np.random.Generator,
        grammar: AnswerGrammar | None = None,
    ) -> None:
        """A new answer begins after `tokens` (and one more). No model may run here.

        Args:
            tokens: the prompt but its last token.
            rng: source of this answer's draws.
            grammar: what the answer must fit. What does not is dropped from a draft in any case.

        """

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """Draft up to ``plan.length`` tokens that may follow `tokens`; 0: no model may run.

        Whether a token is drafted is decided by ``plan.admits`` before it is drawn; whether there
        is another step after it, by ``plan.goes_on``.
        """

    def behind(self, tokens: Sequence[int]) -> int:
        """How many of the committed `tokens` it would have to read before its first step."""

    def observe(self, round: Round) -> None:
        """Learn from a finished round."""

    def trim(self, length: int) -> None:
        """The committed tokens but the last are `length` now: forget what lies beyond."""


class NoDrafter:
    """Plain decoding; and what drafters are that have less to do."""

    name = "none"
    about = "nothing"
    is_free = False
    draws = False
    follows_guesses = True
    most = MAX_DRAFT

    def restart(
        self,
        tokens: Sequence[int],
        rng: np.random.Generator,
        grammar: AnswerGrammar | None = None,
    ) -> None:
        """Nothing to prepare."""

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """Nothing to propose."""
        return NO_DRAFT

    def behind(self, tokens: Sequence[int]) -> int:
        """Nothing to read."""
        return 0

    def observe(self, round: Round) -> None:
        """Nothing to learn."""

    def trim(self, length: int) -> None:
        """Nothing to forget."""
