"""A block draft (DFlash, DSpark) as drafter: all guesses in one pass over the target's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter

import numpy as np

from dspark_gguf.engine.protocol import BlockCache, Tokenizer
from dspark_gguf.records import NO_DRAFT, Draft, Round
from dspark_gguf.sampling import NothingLeftError, Row, Sampler, margin
from dspark_gguf.schedule import Plan


class BlockDrafter:
    """Drafts from the rows of one pass, and pays for it once.

    With a sampler above temperature 0 a token is drawn from its row's law. A Markov head conditions
    each row on the best token of the row before it: the first draw that is another token is the
    draft's last one, because the rows behind it guess what follows a token that is not there. That
    saves their verification; the law of the output is the target's with or without them.

    Args:
        cache: the draft's memory.
        sampler: turns its rows into laws.
        tokenizer: the target's; ids beyond its vocabulary are never proposed.
        score: raw score of a row, where the draft has no confidence head.
        sure_score: raw score of what a confidence head says.

    """

    def __init__(
        self,
        cache: BlockCache,
        sampler: Sampler,
        tokenizer: Tokenizer,
        score: Callable[[Row], float] = margin,
        sure_score: Callable[[float], float] = float,
    ) -> None:
        self.cache = cache
        self.sampler = sampler
        self.score, self.sure_score = score, sure_score
        self._n_tokens = tokenizer.n_tokens
        self._end_tokens = frozenset(tokenizer.end_tokens)
        self._rng = np.random.default_rng(0)

    def restart(self, tokens: Sequence[int], rng: np.random.Generator) -> None:
        """The features are the target's: it reads what is missing again."""
        self._rng = rng
        self.cache.repair()

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """The head of a block; ends early at an unsure row or after an end token."""
        length = min(plan.length, self.cache.most_drafts)
        if self.cache.seen != len(tokens) - 1:
            return NO_DRAFT  # beyond the draft's context, or a pass that was interrupted
        caught_up = self.behind(tokens)
        history = self.sampler.history(tokens)
        started = perf_counter()
        # The whole block: its rows were trained together, and fewer cost nearly as much.
        block = self.cache.propose(tokens[-1], self.cache.most_drafts)
        drafted: list[int] = []
        laws, scores, seconds = [], [], []
        while len(drafted) < length:
            k = len(drafted)
            row = block.rows[k][: self._n_tokens]
            scores.append(self.score(row) if block.sure is None else self.sure_score(block.sure[k]))
            law = None
            if plan.admits(scores[-1]):
                with suppress(NothingLeftError):  # the row may know few candidates, all forbidden
                    law = self.sampler(row, history, drafted)
            if law is not None:
                drafted.append(law.draw(self._rng))
                laws.append(law)
            now = perf_counter()
            seconds.append(now - started)
            started = now
            ended = law is None or drafted[-1] in self._end_tokens
            if ended or self._leaves_chain(drafted[-1], block.rows[k]) or not plan.goes_on():
                break
        return Draft(tuple(drafted), tuple(laws), tuple(scores), tuple(seconds), caught_up)

    def _leaves_chain(self, token: int, row: Row) -> bool:
        return self.cache.is_chained and token != int(row.argmax())

    def behind(self, tokens: Sequence[int]) -> int:
        """Tokens that its cache lacks, beyond those of the last round, which any block reads."""
        return max(1, len(tokens) - self.cache.length - self.cache.most_drafts)

    def observe(self, round: Round) -> None:
        """Nothing to learn."""

    def trim(self, length: int) -> None:
        """Its cache follows the target's."""
