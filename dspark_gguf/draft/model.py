"""A small language model of the target's family as drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter

import numpy as np

from dspark_gguf.draft.grammar import FittingGreedy
from dspark_gguf.engine.protocol import Cache, Tokenizer
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.sampling import NothingLeftError, Row, Sampler, top_probability
from dspark_gguf.schedule import Plan


class ModelDrafter:
    """Drafts token by token from its own rows, with the same truncation as the target.

    Args:
        cache: the draft model's memory.
        sampler: turns its rows into the law that a draft token is drawn from.
        tokenizer: the target's; ids beyond its vocabulary are never proposed.
        score: raw score of a row, as the stopping rule wants it.

    """

    def __init__(
        self,
        cache: Cache,
        sampler: Sampler | FittingGreedy,
        tokenizer: Tokenizer,
        score: Callable[[Row], float] = top_probability,
    ) -> None:
        self.cache = cache
        self.sampler: Sampler | FittingGreedy = sampler
        self.score = score
        self._n_tokens = tokenizer.n_tokens
        self._end_tokens = frozenset(tokenizer.end_tokens)
        self._rng = np.random.default_rng(0)

    def restart(self, tokens: Sequence[int], rng: np.random.Generator) -> None:
        """Keep what is still true of the last conversation; the rest is read when drafting."""
        self._rng = rng
        self.cache.keep(tokens)

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """A chain of draws; ends early at an unsure row or after an end token."""
        length = min(plan.length, self.cache.n_ctx - len(tokens))
        history = self.sampler.history(tokens)
        unseen = tokens[self.cache.length :]
        if max(unseen) >= self.cache.n_tokens:
            return NO_DRAFT  # the target said a padded id that the draft's vocabulary lacks
        caught_up = len(unseen)
        drafted: list[int] = []
        laws, scores, seconds = [], [], []
        while len(drafted) < length:
            started = perf_counter()
            # Ids beyond the target's vocabulary are padding of the draft's: masked.
            row = self.cache.advance(unseen, 1)[0][: self._n_tokens]
            scores.append(self.score(row))
            law = None
            if plan.admits(scores[-1]):
                with suppress(NothingLeftError):  # the target may know ids that are still allowed
                    law = self.sampler(row, history, drafted)
            if law is not None:
                unseen = [law.draw(self._rng)]
                drafted += unseen
                laws.append(law)
            seconds.append(perf_counter() - started)
            if law is None or drafted[-1] in self._end_tokens or not plan.goes_on():
                break
        return Draft(tuple(drafted), tuple(laws), tuple(scores), tuple(seconds), caught_up)

    def behind(self, tokens: Sequence[int]) -> int:
        """Committed tokens that its cache does not hold."""
        return len(tokens) - self.cache.length

    def observe(self, round: Round) -> None:
        """Nothing to learn."""

    def trim(self, length: int) -> None:
        """Forget rejected tokens."""
        self.cache.trim(length)
