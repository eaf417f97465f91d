"""Where the conversations of a `Batcher` sit: sequences of one context, and the prefixes they keep.

A finished answer stays in its place until the cells are needed. A new prompt takes the place that
holds most of it, or a copy of what another place holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.protocol import common_prefix
from dspark_gguf.engine.sequence import SequenceCache

#: From so many tokens on a prefix is copied from another conversation, or is a loss.
_WORTH_IT = 16
#: What holds the tokens themselves, or pairs with the target's states: it can be copied.
_SHARED = ("model", "mtp", "eagle3")


@dataclass(eq=False)
class Place:
    """A sequence of the target's context, and of the draft's."""

    pair: Pair
    number: int
    is_busy: bool = False
    used: int = 0  # when its last answer ended: the oldest is given up first

    @property
    def target(self) -> SequenceCache:
        """The target's cache here."""
        return self.pair.target_caches[self.number]

    @property
    def draft(self) -> SequenceCache | None:
        """The draft's, if it is loaded."""
        return self.pair.draft_cache(self.number) if "draft" in self.pair.caches else None

    def clear(self) -> None:
        """Give up all cells."""
        self.target.trim(0)
        if self.draft is not None:
            self.draft.trim(0)


class Places:
    """All places of a pair."""

    def __init__(self, pair: Pair) -> None:
        self.all = [Place(pair, number) for number in range(len(pair.target_caches))]
        self._clock = 0

    def take(self, prompt: Sequence[int]) -> Place | None:
        """A free place for a prompt, which holds as much of it as any does; None: all are busy."""
        free = [place for place in self.all if not place.is_busy]
        if not free:
            return None
        held = {place: common_prefix(place.target.tokens, prompt[:-1]) for place in self.all}
        most = max(held.values()) if free[0].target.rollback == "removal" else 0

        def preference(place: Place) -> tuple[int, bool, int, int]:
            loses = place.target.length - held[place] > _WORTH_IT
            return max(held[place], most), not loses, held[place], -place.used

        best = max(free, key=preference)
        source = max(self.all, key=lambda place: held[place])
        if held[source] >= held[best] + _WORTH_IT:
            _share(source.target, best.target, prompt)
            if source.draft is not None and best.draft is not None:
                _share(source.draft, best.draft, prompt)
        best.is_busy = True
        return best

    def leave(self, place: Place) -> None:
        """Its answer has ended; what it holds stays."""
        self._clock += 1
        place.is_busy, place.used = False, self._clock

    def give_up_oldest(self) -> bool:
        """Free the cells of the free place that was used longest ago, if there is one."""
        free = [place for place in self.all if not place.is_busy]
        held = [
            place for place in free if place.target.length or (place.draft and place.draft.length)
        ]
        if not held:
            return False
        min(held, key=lambda place: place.used).clear()
        return True


def _share(source: SequenceCache, taker: SequenceCache, prompt: Sequence[int]) -> None:
    """What a cache holds of a prompt, for another one too, where its memory can do that."""
    if source.rollback == taker.rollback == "removal" and source.kind in _SHARED:
        taker.share(source, prompt[:-1])
