"""A small language model of the target's family as drafter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from typing_extensions import Self

from dspark_gguf.calibration import log_odds
from dspark_gguf.draft.answer_grammar import AnswerGrammar, Constrained
from dspark_gguf.draft.base import Drafter, Kit, drafter
from dspark_gguf.engine.protocol import Pass, Passes, Tokenizer
from dspark_gguf.errors import UsageError
from dspark_gguf.noise import Draws, Noise
from dspark_gguf.records import NO_DRAFT, Draft, Segment
from dspark_gguf.sampling import NothingLeftError, Row, Sampler, margin, top_probability
from dspark_gguf.schedule import Plan


class StepDrafter(Drafter):
    """Drafts token by token from the rows of a draft model.

    Args:
        cache: the draft's memory.
        sampler: turns its rows into the distribution that a draft token is drawn from.
        tokenizer: the target's; ids beyond its vocabulary are never proposed.
        score: raw score of a row, as the stopping rule wants it: with `margin`, what a confidence
            head says is a score in log odds, else as it is.
        shares_noise: whether draft tokens are drawn with the target's noise. Then the score is by
            how much the token won, if others could have. Otherwise no score may depend on the
            token that was drawn, because `rejection` would be biased.
    """

    def __init__(
        self,
        cache: Any,
        sampler: Sampler,
        tokenizer: Tokenizer,
        score: Callable[[Row], float] = top_probability,
        shares_noise: bool = False,
    ) -> None:
        self.cache, self.sampler = cache, sampler
        self.score, self.shares_noise = score, shares_noise
        self._n_vocab = tokenizer.n_vocab
        self._end_tokens = frozenset(tokenizer.end_tokens)
        self._draws: Draws = Noise(0)

    @classmethod
    def of(cls, kit: Kit) -> Self:
        """From the draft's cache; a UsageError if there is none, or it is of another kind."""
        cache = kit.draft()
        if cache is None:
            hint = "Name one with -d, or draft_model."
            raise UsageError(f"--drafter {cls.name} needs a draft model", hint)
        if cache.kind != cls.name:
            problem = f"this draft is for drafter {cache.kind}, not {cls.name}"
            raise UsageError(problem, "To use it, leave --drafter out.")
        sampler = Sampler.of(kit.sampling, kit.vocabulary)
        # llama.cpp's p-min is a probability. The gap ranks survivors better, without a softmax.
        shares = kit.speculation.acceptance != "rejection"
        score = top_probability if kit.speculation.stopping_rule == "threshold" else margin
        return cls(cache, sampler, kit.vocabulary, score, shares)

    def _draws_anew(self, draws: Draws) -> None:
        self._draws = draws if self.shares_noise else draws.independent()

    def _chain(
        self,
        tokens: Sequence[int],
        plan: Plan,
        length: int,
        caught_up: int,
        sampler: Sampler | Constrained,
        step: Callable[[Sequence[int]], Passes[tuple[Row, float | None]]],
    ) -> Passes[Draft]:
        """A chain of at most `length` draws; ends early at an unsure row or after an end token.

        `step` returns the row after the drafted tokens, and the confidence head's value. The first
        one reads `caught_up` tokens.
        """
        history = sampler.history(tokens)
        drafted: list[int] = []
        dists, scores, seconds = [], [], []
        while len(drafted) < length:
            started = perf_counter()
            row, confidence = yield from step(drafted)
            # Ids beyond the target's vocabulary are padding of the draft's: masked.
            known, dist, token, gap = row[: self._n_vocab], None, -1, math.inf
            with suppress(NothingLeftError):  # all that the row offers may be forbidden
                dist = sampler(known, history, drafted)
                token, gap = self._draws.at(len(tokens) + len(drafted)).scored(dist)
            scores.append(self._score(known, gap, confidence))
            if plan.admits(scores[-1]) and dist is not None:
                drafted.append(token)
                dists.append(dist)
            else:
                dist = None
            seconds.append(perf_counter() - started)
            ended = dist is None or token in self._end_tokens
            if ended or self._is_last(token, row) or not plan.goes_on():
                break
        return Draft(
            Segment(
                self.name, tuple(drafted), tuple(dists), tuple(scores), tuple(seconds), caught_up
            )
        )

    def _score(self, row: Row, gap: float, confidence: float | None) -> float:
        """Of a row whose token won by `gap` nats."""
        if confidence is not None:
            return log_odds(confidence) if self.score is margin else confidence
        if self.shares_noise and self.score is margin and gap < math.inf:
            return gap * self.sampler.settings.temperature  # in logits, as at temperature 0
        return self.score(row)

    def _is_last(self, token: int, row: Row) -> bool:
        return False


@drafter("model")
class ModelDrafter(StepDrafter):
    """Drafts with a model's own passes and the same truncation as the target."""

    name, about = "model", "the draft model"
    _constrained: Constrained | None = None

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """Keep the part of the cache that is still right; the rest is read when drafting."""
        self._draws_anew(draws)
        self._constrained = Constrained(self.sampler, grammar) if grammar is not None else None
        self.cache.reuse_prefix(self._read_as(tokens))

    def _read_as(self, tokens: Sequence[int]) -> Sequence[int]:
        """The draft's ids of the target's tokens."""
        return tokens

    def _said_as(self, row: Row) -> Row:
        """A row of the draft by the target's ids."""
        return row

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """A chain of draws; ends early at an unsure row or after an end token."""
        length = min(plan.length, self.cache.n_ctx - len(tokens))
        unseen = self._read_as(tokens[self.cache.length :])
        if length <= 0 or max(unseen) >= self.cache.n_vocab:
            return NO_DRAFT  # no room, or the target said a padded id that the draft's lacks

        def step(drafted: Sequence[int]) -> Passes[tuple[Row, None]]:
            rows = yield Pass(self.cache, self._read_as(drafted[-1:]) or unseen, 1)
            return self._said_as(rows[0]), None

        sampler = self._constrained or self.sampler
        return (yield from self._chain(tokens, plan, length, len(unseen), sampler, step))

    def behind(self, tokens: Sequence[int]) -> int:
        """Committed tokens that its cache does not hold."""
        return len(tokens) - int(self.cache.length)

    def trim(self, length: int) -> None:
        """Forget rejected tokens."""
        self.cache.trim(length)
