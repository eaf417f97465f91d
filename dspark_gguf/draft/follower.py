"""A base for drafters whose cache reads what the target computes: heads, EAGLE-3, block drafts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from dspark_gguf.draft.answer_grammar import AnswerGrammar
from dspark_gguf.draft.model import StepDrafter
from dspark_gguf.engine.protocol import Passes
from dspark_gguf.noise import Draws
from dspark_gguf.records import NO_DRAFT, Draft
from dspark_gguf.sampling import Row
from dspark_gguf.schedule import Plan


class FollowingDrafter(StepDrafter, ABC):
    """Drafts from a cache that follows the target's.

    Its entries need what the target computed for the same tokens. So it cannot continue tokens that
    another drafter guessed, and drafts nothing after entries were lost.
    """

    follows_guesses = False
    few: int  # tokens of earlier rounds that a first guess reads at hardly any cost
    _length = 0  # most tokens of the present draft

    def __init__(self, cache: Any, *parts: Any) -> None:
        super().__init__(cache, *parts)
        self.most = cache.max_drafts

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """The cache follows the target, which reads again what is missing."""
        self._draws_anew(draws)
        self.cache.begin(tokens)

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """A chain of guesses; ends early at an unsure row or after an end token."""
        self._length = length = min(plan.length, self.most, self.cache.n_ctx - len(tokens))
        if length <= 0 or not self.cache.is_ready(len(tokens) - 1):
            return NO_DRAFT  # or beyond the draft's context, or a pass was interrupted

        def step(drafted: Sequence[int]) -> Passes[tuple[Row, float | None]]:
            return (yield from self._step(tokens[-1], drafted))

        behind = self.behind(tokens)
        return (yield from self._chain(tokens, plan, length, behind, self.sampler, step))

    @abstractmethod
    def _step(self, last: int, drafted: Sequence[int]) -> Passes[tuple[Row, float | None]]:
        """The row after `drafted`, which came after `last`, and what a confidence head says."""

    def behind(self, tokens: Sequence[int]) -> int:
        """Tokens that its cache lacks, beyond those that any first guess reads."""
        return max(1, len(tokens) - int(self.cache.covered) - self.few)
