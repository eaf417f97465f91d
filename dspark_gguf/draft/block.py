"""A block draft (DFlash, DSpark) as drafter: all guesses in one pass over the target's features."""

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
    from dspark_gguf.engine.block import BlockDraftCache
    from dspark_gguf.engine.protocol import Block, Passes


@drafter("block")
class BlockDrafter(StepDrafter):
    """Drafts from the rows of one pass, and pays for it once.

    With a sampler above temperature 0 a token is drawn from its row's distribution. A Markov head
    conditions each row on the best token of the row before it: the first draw that is another token
    is the draft's last one, because the rows after it guess what follows a token that is not there.
    That saves their verification; the distribution of the output is the target's with or without
    them.
    """

    name, about = "block", "the block draft"
    follows_guesses = False
    cache: BlockDraftCache

    def __init__(self, cache: BlockDraftCache, *parts: Any) -> None:
        super().__init__(cache, *parts)
        self.most = cache.most_drafts

    def restart(
        self, tokens: Sequence[int], draws: Draws, grammar: AnswerGrammar | None = None
    ) -> None:
        """The features are the target's, which reads the missing tokens again."""
        self._draws_anew(draws)
        self.cache.repair()

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """The head of a block; ends early at an unsure row or after an end token."""
        length = min(plan.length, self.cache.most_drafts)
        if length <= 0 or self.cache.seen != len(tokens) - 1:
            return NO_DRAFT  # or beyond the draft's context, or a pass was interrupted
        block: Block

        def step(drafted: Sequence[int]) -> Passes[tuple[Row, float | None]]:
            nonlocal block
            k = len(drafted)
            if not k:
                # The whole block: its rows were trained together, and fewer cost nearly as much.
                block = self.cache.propose(tokens[-1], self.cache.most_drafts)
            return block.rows[k], None if block.confidence is None else block.confidence[k]
            yield  # the cache runs its own passes: each block is one

        behind = self.behind(tokens)
        return (yield from self._chain(tokens, plan, length, behind, self.sampler, step))

    def _is_last(self, token: int, row: Row) -> bool:
        return self.cache.is_chained and token != int(row.argmax())

    def behind(self, tokens: Sequence[int]) -> int:
        """Tokens that its cache lacks, beyond those of the last round, which any block reads."""
        return max(1, len(tokens) - self.cache.length - self.cache.most_drafts)
