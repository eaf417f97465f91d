"""Prediction heads (MTP) and EAGLE-3 as drafters: guesses go on from the target's own state."""

from __future__ import annotations

from collections.abc import Sequence

from dspark_gguf.draft.base import drafter
from dspark_gguf.draft.follower import FollowingDrafter
from dspark_gguf.engine.protocol import Pass, Passes
from dspark_gguf.sampling import Row


@drafter("mtp")
class HeadDrafter(FollowingDrafter):
    """Drafts step by step: the first guess from the target's state, the others from the draft's."""

    name, about = "mtp", "the prediction heads"
    few = 16

    def _step(self, last: int, drafted: Sequence[int]) -> Passes[tuple[Row, None]]:
        rows = yield Pass(self.cache, drafted[-1:] or self.cache.opening(last), 1)
        return rows[0], None


@drafter("eagle3")
class EagleDrafter(HeadDrafter):
    """The same from features of three of the target's layers, which is the cache's affair."""

    name, about = "eagle3", "the EAGLE-3 draft"
