"""A block draft (DFlash, DSpark) as drafter: all guesses in one pass over the target's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dspark_gguf.draft.base import drafter
from dspark_gguf.draft.follower import FollowingDrafter
from dspark_gguf.engine.protocol import Block, Pass, Passes
from dspark_gguf.records import Draft
from dspark_gguf.sampling import Row
from dspark_gguf.schedule import Plan


@drafter("block")
class BlockDrafter(FollowingDrafter):
    """Drafts as many tokens as planned from the rows of one pass, whose cost is paid once.

    Above temperature 0, each token is drawn from its row's distribution. A Markov head conditions
    each row on the best token of the row before it. So the first draw of any other token ends the
    draft: later rows would follow a token that is not there. That only saves their verification;
    the distribution of the output is the target's in any case.
    """

    name, about, is_block = "block", "the block draft", True
    _block: Block

    def __init__(self, cache: Any, *parts: Any) -> None:
        super().__init__(cache, *parts)
        self.few = self.most

    def steps(self, tokens: Sequence[int], plan: Plan) -> Passes[Draft]:
        """As the base class, counting the whole width of the pass."""
        draft = yield from super().steps(tokens, plan)
        return Draft(*(replace(each, width=self._length) for each in draft.segments))

    def _step(self, last: int, drafted: Sequence[int]) -> Passes[tuple[Row, float | None]]:
        k, width = len(drafted), self._length
        if not k:
            self._block = yield Pass(self.cache, self.cache.opening(last, width), width)  # type: ignore[assignment]
        confidence = self._block.confidence
        return self._block.rows[k], None if confidence is None else confidence[k]

    def _is_last(self, token: int, row: Row) -> bool:
        return self.cache.is_chained and token != int(row.argmax())
