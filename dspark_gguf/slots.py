"""Slots of a `Batcher`: sequences of one context, and the prefixes that they keep.

A finished answer stays in its slot until the cells are needed. A new prompt takes the slot that
holds most of it, or a copy of what another slot holds: of a recurrent memory, as it was at the end
of a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.sequence import SequenceCache

#: From so many tokens on a prefix is copied from another conversation, or is a loss.
WORTH_IT = 16
#: What holds the tokens themselves, or pairs with the target's states: it can be copied.
_SHARED = ("model", "mtp", "eagle3")


@dataclass(eq=False)
class Slot:
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

    @property
    def can_lend(self) -> bool:
        """Whether others can copy from here: else their drafts must see the target read."""
        return self.draft is None or self.draft.joins or self.draft.kind in _SHARED

    def lends(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that another slot can copy from here."""
        return self.target.lends(prompt) if self.can_lend else 0

    def copy(self, source: Slot, prompt: Sequence[int]) -> None:
        """Hold what another slot lends of a prompt."""
        self.target.share(source.target, prompt)
        if source.draft is not None and self.draft is not None and source.draft.kind in _SHARED:
            self.draft.share(source.draft, self.target.tokens)

    def clear(self, of_draft: bool = False) -> None:
        """Free all cells, or those of the draft."""
        if not of_draft:
            self.target.trim(0)
        if self.draft is not None:
            self.draft.trim(0)


class Slots:
    """All slots of a pair."""

    def __init__(self, pair: Pair) -> None:
        self.all = [Slot(pair, number) for number in range(len(pair.target_caches))]
        self._clock = 0

    def take(self, prompt: Sequence[int]) -> Slot | None:
        """A free slot for a prompt, which holds as much of it as any does; None: all are busy."""
        free = [slot for slot in self.all if not slot.is_busy]
        if not free:
            return None
        begin = prompt[:-1]
        held = {slot: slot.target.held(begin) for slot in free}
        lent = {slot: slot.lends(begin) for slot in self.all}
        source = max(lent, key=lambda slot: lent[slot])
        enough = max(*held.values(), lent[source]) - WORTH_IT

        def preference(slot: Slot) -> tuple[bool, bool, int, int]:
            loses = slot.target.length - held[slot] > WORTH_IT
            has_it = max(held[slot], lent[source]) > enough
            return has_it, not loses, held[slot], -slot.used

        best = max(free, key=preference)
        if lent[source] >= held[best] + WORTH_IT:
            best.copy(source, begin)
        best.is_busy = True
        return best

    def held(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that would not be read again in the slot that it got."""
        return max(
            slot.lends(prompt) if slot.is_busy else slot.target.held(prompt) for slot in self.all
        )

    def leave(self, slot: Slot) -> None:
        """Its answer has ended; what it holds stays, but others may have it now."""
        self._clock += 1
        for each in self.all:
            if each.draft is not None:
                each.draft.is_crowded = False
        slot.is_busy, slot.used = False, self._clock

    def give_up_oldest(self, of_draft: bool = False) -> bool:
        """Free the cells of the free slot that was used longest ago, if there is one.

        Or those of the draft alone.
        """
        held = [
            slot
            for slot in self.all
            if not slot.is_busy
            and ((slot.draft and slot.draft.length) or (slot.target.length and not of_draft))
        ]
        if held:
            oldest = min(held, key=lambda slot: slot.used)
            oldest.clear(of_draft)
        return bool(held)
