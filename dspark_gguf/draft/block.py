"""A block draft (DFlash, DSpark) as drafter: all guesses in one pass over the target's features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter

import numpy as np

from dspark_gguf.calibration import log_odds
from dspark_gguf.draft.base import NoDrafter
from dspark_gguf.draft.grammar import AnswerGrammar
from dspark_gguf.draft.model import draft_cache, draft_sampler, row_score
from dspark_gguf.draft.registry import Kit, drafter
from dspark_gguf.engine.protocol import BlockCache, Tokenizer
from dspark_gguf.records import NO_DRAFT, Draft, Segment
from dspark_gguf.sampling import NothingLeftError, Row, Sampler, margin
from dspark_gguf.schedule import Plan


@drafter("block")
class BlockDrafter(NoDrafter):
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

    name, about = "block", "the block draft"
    follows_guesses = False

    def __init__(
        self,
        cache: BlockCache,
        sampler: Sampler,
        tokenizer: Tokenizer,
        score: Callable[[Row], float] = margin,
        sure_score: Callable[[float], float] = float,
    ) -> None:
        self.cache, self.most = cache, cache.most_drafts
        self.sampler = sampler
        self.score, self.sure_score = score, sure_score
        self._n_vocab = tokenizer.n_vocab
        self._end_tokens = frozenset(tokenizer.end_tokens)
        self._rng = np.random.default_rng(0)

    @classmethod
    def of(cls, kit: Kit) -> BlockDrafter:
        """From a block draft's cache.

        Raises:
            UsageError: there is none, or it is another kind of draft.

        """
        score = row_score(kit)
        sure_score = float if kit.speculation.stopping_rule == "threshold" else log_odds
        return cls(draft_cache(kit, "block"), draft_sampler(kit), kit.vocabulary, score, sure_score)

    def restart(
        self, tokens: Sequence[int], rng: np.random.Generator, grammar: AnswerGrammar | None = None
    ) -> None:
        """The features are the target's: it reads what is missing again."""
        self._rng = rng
        self.cache.repair()

    def propose(self, tokens: Sequence[int], plan: Plan) -> Draft:
        """The head of a block; ends early at an unsure row or after an end token."""
        length = min(plan.length, self.cache.most_drafts)
        if length <= 0 or self.cache.seen != len(tokens) - 1:
            return NO_DRAFT  # or beyond the draft's context, or a pass was interrupted
        caught_up = self.behind(tokens)
        history = self.sampler.history(tokens)
        started = perf_counter()
        # The whole block: its rows were trained together, and fewer cost nearly as much.
        block = self.cache.propose(tokens[-1], self.cache.most_drafts)
        drafted: list[int] = []
        dists, scores, seconds = [], [], []
        while len(drafted) < length:
            k = len(drafted)
            row = block.rows[k][: self._n_vocab]
            scores.append(self.score(row) if block.sure is None else self.sure_score(block.sure[k]))
            dist = None
            if plan.admits(scores[-1]):
                with suppress(NothingLeftError):  # the row may know few candidates, all forbidden
                    dist = self.sampler(row, history, drafted)
            if dist is not None:
                drafted.append(dist.draw(self._rng))
                dists.append(dist)
            now = perf_counter()
            seconds.append(now - started)
            started = now
            ended = dist is None or drafted[-1] in self._end_tokens
            if ended or self._leaves_chain(drafted[-1], block.rows[k]) or not plan.goes_on():
                break
        return Draft(
            Segment(
                self.name, tuple(drafted), tuple(dists), tuple(scores), tuple(seconds), caught_up
            )
        )

    def _leaves_chain(self, token: int, row: Row) -> bool:
        return self.cache.is_chained and token != int(row.argmax())

    def behind(self, tokens: Sequence[int]) -> int:
        """Tokens that its cache lacks, beyond those of the last round, which any block reads."""
        return max(1, len(tokens) - self.cache.length - self.cache.most_drafts)
