"""Prediction heads (MTP) as drafter: guesses go on from the target's own state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dspark_gguf.draft.answer_grammar import AnswerGrammar
from dspark_gguf.draft.base import drafter
from dspark_gguf.draft.model import StepDrafter
from dspark_gguf.noise import Draws
from dspark_gguf.records import NO_DRAFT, Draft
from dspark_gguf.sampling import Row
from dspark_gguf.schedule import Plan

if TYPE_CHECKING:  # it loads llama.cpp
    from dspark_gguf.engine.protocol import Passes
    from dspark_gguf.engine.states import StateCache

#: So many tokens of the rounds before are read in the pass of the first guess, at hardly any cost.
_FEW = 16


@drafter("mtp")
class HeadDrafter(StepDrafter):
    """Drafts step by step: the first guess from the target's state, the others from the draft's.

    The draft reads what the target has read with the states that it had. So it cannot go on from
    tokens that another drafter guessed, and where a state was lost it does not guess.
    """

    name, about = "mtp", "the prediction heads"
    follows_guesses = False
    cache: StateCache

    def __init__(self, cache: StateCache, *parts: Any) -> None:
        super().__init__(cache, *parts)
        self.most = cache.most_drafts

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """The states are the target's, which reads again what is missing."""
        self._draws_anew(draws)
        self.cache.begin(tokens)

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """A chain of guesses; ends early at an unsure row or after an end token."""
        length = min(plan.length, self.most, self.cache.n_ctx - len(tokens))
        if length <= 0 or not self.cache.is_ready(len(tokens) - 1):
            return NO_DRAFT  # or beyond the draft's context, or a pass was interrupted

        def step(drafted: Sequence[int]) -> Passes[tuple[Row, None]]:
            made = self.cache.go_on(drafted[-1]) if drafted else self.cache.start(tokens[-1])
            return made, None
            yield  # the cache runs its own passes

        behind = self.behind(tokens)
        return (yield from self._chain(tokens, plan, length, behind, self.sampler, step))

    def behind(self, tokens: Sequence[int]) -> int:
        """Tokens that its cache lacks, beyond those of a round, which any first guess reads."""
        return max(1, len(tokens) - self.cache.covered - _FEW)
