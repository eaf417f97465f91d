"""A small language model of the target's family as drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np

from dspark_gguf.draft.base import NoDrafter
from dspark_gguf.draft.grammar import AnswerGrammar, FittingGreedy
from dspark_gguf.draft.registry import Kit, drafter
from dspark_gguf.engine.protocol import Cache, Tokenizer
from dspark_gguf.errors import UsageError
from dspark_gguf.records import NO_DRAFT, Draft, Segment
from dspark_gguf.sampling import NothingLeftError, Row, Sampler, margin, top_probability
from dspark_gguf.schedule import Plan


@drafter("model")
class ModelDrafter(NoDrafter):
    """Drafts token by token from its own rows, with the same truncation as the target.

    Args:
        cache: the draft model's memory.
        sampler: turns its rows into the law that a draft token is drawn from.
        tokenizer: the target's; ids beyond its vocabulary are never proposed.
        score: raw score of a row, as the stopping rule wants it.

    """

    name, about = "model", "the draft model"
    draws = True

    def __init__(
        self,
        cache: Cache,
        sampler: Sampler,
        tokenizer: Tokenizer,
        score: Callable[[Row], float] = top_probability,
    ) -> None:
        self.cache, self.sampler, self.score = cache, sampler, score
        self._n_vocab = tokenizer.n_vocab
        self._end_tokens = frozenset(tokenizer.end_tokens)
        self._rng = np.random.default_rng(0)
        self._fitting: FittingGreedy | None = None

    @classmethod
    def of(cls, kit: Kit) -> ModelDrafter:
        """From a draft model's cache.

        Raises:
            UsageError: there is none, or it is another kind of draft.

        """
        return cls(draft_cache(kit, "model"), draft_sampler(kit), kit.vocabulary, row_score(kit))

    def restart(
        self, tokens: Sequence[int], rng: np.random.Generator, grammar: AnswerGrammar | None = None
    ) -> None:
        """Keep what is still true of the last conversation; the rest is read when drafting."""
        self._rng = rng
        self._fitting = FittingGreedy(grammar) if grammar is not None else None
        self.cache.keep(tokens)

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """A chain of draws; ends early at an unsure row or after an end token."""
        length = min(plan.length, self.cache.n_ctx - len(tokens))
        unseen = tokens[self.cache.length :]
        if length <= 0 or max(unseen) >= self.cache.n_vocab:
            return NO_DRAFT  # no room, or the target said a padded id that the draft's lacks
        sampler = self._fitting or self.sampler
        history = sampler.history(tokens)
        caught_up = len(unseen)
        drafted: list[int] = []
        dists, scores, seconds = [], [], []
        while len(drafted) < length:
            started = perf_counter()
            # Ids beyond the target's vocabulary are padding of the draft's: masked.
            row = self.cache.decode(unseen, 1)[0][: self._n_vocab]
            scores.append(self.score(row))
            dist = None
            if plan.admits(scores[-1]):
                with suppress(NothingLeftError):  # the target may know ids that are still allowed
                    dist = sampler(row, history, drafted)
            if dist is not None:
                unseen = [dist.draw(self._rng)]
                drafted += unseen
                dists.append(dist)
            seconds.append(perf_counter() - started)
            if dist is None or drafted[-1] in self._end_tokens or not plan.goes_on():
                break
        return Draft(
            Segment(
                self.name, tuple(drafted), tuple(dists), tuple(scores), tuple(seconds), caught_up
            )
        )

    def behind(self, tokens: Sequence[int]) -> int:
        """Committed tokens that its cache does not hold."""
        return len(tokens) - self.cache.length

    def trim(self, length: int) -> None:
        """Forget rejected tokens."""
        self.cache.trim(length)


def draft_cache(kit: Kit, kind: str) -> Any:
    """The draft's cache, of that kind.

    Raises:
        UsageError: there is none, or it is of another kind.

    """
    cache = kit.draft()
    if cache is None:
        raise UsageError(
            f"a draft model for drafter {kind}", "none", "name one: -d, or draft_model"
        )
    if cache.kind != kind:
        raise UsageError(
            f"a draft for drafter {kind}", f"one for drafter {cache.kind}", "leave --drafter out"
        )
    return cache


def draft_sampler(kit: Kit) -> Sampler:
    """How draft tokens are drawn."""
    return Sampler.of(kit.sampling, kit.vocabulary)


def row_score(kit: Kit) -> Callable[[Row], float]:
    """The raw score of a row.

    The gap ranks survivors better than the probability and needs no softmax; llama.cpp's p-min is
    a probability.
    """
    return top_probability if kit.speculation.stopping_rule == "threshold" else margin
