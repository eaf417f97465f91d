"""A small language model of the target's family as drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import numpy as np
from typing_extensions import Self

from dspark_gguf.calibration import log_odds
from dspark_gguf.draft.answer_grammar import AnswerGrammar, FittingGreedy
from dspark_gguf.draft.base import Kit, NoDrafter, Rng, drafter
from dspark_gguf.engine.protocol import Tokenizer
from dspark_gguf.errors import UsageError
from dspark_gguf.records import NO_DRAFT, Draft, Segment
from dspark_gguf.sampling import NothingLeftError, Row, Sampler, margin, top_probability
from dspark_gguf.schedule import Plan


class StepDrafter(NoDrafter):
    """Drafts token by token from the rows of a draft model.

    Args:
        cache: the draft's memory.
        sampler: turns its rows into the law that a draft token is drawn from.
        tokenizer: the target's; ids beyond its vocabulary are never proposed.
        score: raw score of a row, as the stopping rule wants it.
        sure_score: the same of what a confidence head says.

    """

    def __init__(
        self,
        cache: Any,
        sampler: Sampler,
        tokenizer: Tokenizer,
        score: Callable[[Row], float] = top_probability,
        sure_score: Callable[[float], float] = float,
    ) -> None:
        self.cache, self.sampler = cache, sampler
        self.score, self.sure_score = score, sure_score
        self._n_vocab = tokenizer.n_vocab
        self._end_tokens = frozenset(tokenizer.end_tokens)
        self._rng = np.random.default_rng(0)

    @classmethod
    def of(cls, kit: Kit) -> Self:
        """From the draft's cache; a UsageError if there is none, or it is of another kind."""
        cache = kit.draft()
        if cache is None:
            hint = "Name one with -d, or draft_model."
            raise UsageError(f"no draft model for drafter {cls.name}", hint)
        if cache.kind != cls.name:
            problem = f"this draft is for drafter {cache.kind}, not {cls.name}"
            raise UsageError(problem, "To use it, leave --drafter out.")
        sampler = Sampler.of(kit.sampling, kit.vocabulary)
        # llama.cpp's p-min is a probability. The gap ranks survivors better, without a softmax.
        if kit.speculation.stopping_rule == "threshold":
            return cls(cache, sampler, kit.vocabulary, top_probability)
        return cls(cache, sampler, kit.vocabulary, margin, log_odds)

    def _steps(
        self,
        tokens: Sequence[int],
        plan: Plan,
        length: int,
        caught_up: int,
        sampler: Sampler | FittingGreedy,
        look: Callable[[Sequence[int]], tuple[Row, float | None]],
    ) -> Draft:
        """A chain of at most `length` draws; ends early at an unsure row or after an end token.

        `look` gives the row after the drafted tokens, and what a confidence head says of it. The
        first one reads `caught_up` tokens.
        """
        history = sampler.history(tokens)
        drafted: list[int] = []
        dists, scores, seconds = [], [], []
        while len(drafted) < length:
            started = perf_counter()
            row, sure = look(drafted)
            # Ids beyond the target's vocabulary are padding of the draft's: masked.
            known = row[: self._n_vocab]
            scores.append(self.score(known) if sure is None else self.sure_score(sure))
            dist = None
            if plan.admits(scores[-1]):
                with suppress(NothingLeftError):  # all that the row offers may be forbidden
                    dist = sampler(known, history, drafted)
            if dist is not None:
                drafted.append(dist.draw(self._rng))
                dists.append(dist)
            seconds.append(perf_counter() - started)
            ended = dist is None or drafted[-1] in self._end_tokens
            if ended or self._is_last(drafted[-1], row) or not plan.goes_on():
                break
        return Draft(
            Segment(
                self.name, tuple(drafted), tuple(dists), tuple(scores), tuple(seconds), caught_up
            )
        )

    def _is_last(self, token: int, row: Row) -> bool:
        return False


@drafter("model")
class ModelDrafter(StepDrafter):
    """Drafts with a model's own passes and the same truncation as the target."""

    name, about = "model", "the draft model"
    draws = True
    _fitting: FittingGreedy | None = None

    def restart(
        self, tokens: Sequence[int], rng: Rng, grammar: AnswerGrammar | None = None
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

        def look(drafted: Sequence[int]) -> tuple[Row, None]:
            return self.cache.decode(drafted[-1:] or unseen, 1)[0], None

        return self._steps(tokens, plan, length, len(unseen), self._fitting or self.sampler, look)

    def behind(self, tokens: Sequence[int]) -> int:
        """Committed tokens that its cache does not hold."""
        return len(tokens) - int(self.cache.length)

    def trim(self, length: int) -> None:
        """Forget rejected tokens."""
        self.cache.trim(length)
