"""Slots of a `Batcher`: sequences of one context, and the prefixes that they keep.

A finished answer stays in its slot until its cells are needed, or others are running: then it moves
to RAM. A new prompt gets the slot with its longest prefix, or a copy from another slot or from RAM;
recurrent states are copied as they were at the end of a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dspark_gguf.engine.pair import Pair
from dspark_gguf.engine.sequence import SequenceCache
from dspark_gguf.engine.state import attends, copy_state, restore_state
from dspark_gguf.prompt_cache import PromptCache, Saved

#: Minimum tokens of a prefix that is worth copying, or saving.
WORTH_IT = 16
#: Kinds of draft caches that can be copied: they hold tokens, or pairs with the target's states.
_SHARED = ("model", "mtp", "eagle3")
#: Whose memory copies a whole sequence or none: llama.cpp ends the process if asked for a part.
_NOT_IN_PARTS = ("deepseek4",)


@dataclass(eq=False)
class Slot:
    """A sequence of the target's context, and of the draft's."""

    pair: Pair
    number: int
    is_busy: bool = False
    last_used: int = 0  # when its last answer ended: the oldest is given up first

    @property
    def target(self) -> SequenceCache:
        """The target's cache here."""
        return self.pair.target_caches[self.number]

    @property
    def draft(self) -> SequenceCache | None:
        """The draft's, if it is loaded."""
        return self.pair.draft_cache(self.number) if "draft" in self.pair.caches else None

    @property
    def can_share(self) -> bool:
        """Whether other slots can copy it: some drafts must see the target read every token."""
        if self.target.model.header.architecture in _NOT_IN_PARTS:
            return False
        return self.draft is None or self.draft.joins or self.draft.kind in _SHARED

    def shareable(self, prompt: Sequence[int]) -> int:
        """Number of prompt tokens that another slot can copy from it."""
        return self.target.shareable(prompt) if self.can_share else 0

    def copy(self, source: Slot, prompt: Sequence[int]) -> None:
        """Copy the prefix of a prompt from another slot."""
        self.target.share(source.target, prompt)
        if source.draft is not None and self.draft is not None and source.draft.kind in _SHARED:
            self.draft.share(source.draft, self.target.tokens)

    @property
    def holds_any(self) -> bool:
        """Whether it holds any tokens."""
        return bool(self.target.length or (self.draft and self.draft.length))

    def save(self, most: int) -> Saved:
        """A copy of what it holds, in RAM; `MemoryError` if it takes more than `most` bytes."""
        draft = copy_state(self.draft, most) if self.draft and self.draft.length else None
        return Saved(copy_state(self.target, most - (draft.size if draft else 0)), draft)

    def restore(self, saved: Saved) -> bool:
        """Restore what was saved; False if too few cells are free, which leaves it empty."""
        self.clear()
        whole = restore_state(self.target, saved.target)
        if whole and self.draft and saved.draft:
            restore_state(self.draft, saved.draft)
        return whole

    def clear(self, of_draft: bool = False) -> None:
        """Free all cells, or only those of the draft."""
        if not of_draft:
            self.target.trim(0)
        if self.draft is not None:
            self.draft.trim(0)


class Slots:
    """All slots of a pair."""

    def __init__(self, pair: Pair) -> None:
        self.all = [Slot(pair, number) for number in range(len(pair.target_caches))]
        self._clock = 0
        self._saved = PromptCache()
        #: Over a network, a copy of a state may take longer than reading its tokens again.
        self._can_save = not pair.target.options.rpc
        self._is_slowed_by_idle = attends(pair.target_cache)

    def take(self, prompt: Sequence[int]) -> Slot | None:
        """A free slot for a prompt, with the longest prefix there is; None if all are busy."""
        free = [slot for slot in self.all if not slot.is_busy]
        if not free:
            return None
        begin = prompt[:-1]
        held = {slot: slot.target.reusable(begin) for slot in free}
        lent = {slot: slot.shareable(begin) for slot in self.all}
        source = max(lent, key=lambda slot: lent[slot])
        enough = max(*held.values(), lent[source]) - WORTH_IT

        def preference(slot: Slot) -> tuple[bool, bool, int, int]:
            loses = slot.target.length - held[slot] > WORTH_IT
            has_it = max(held[slot], lent[source]) > enough
            return has_it, not loses, held[slot], -slot.last_used

        best = max(free, key=preference)
        saved = self._saved.best(begin)
        if saved and saved.reusable(begin) >= max(held[best], lent[source]) + WORTH_IT:
            best = min(free, key=lambda slot: (slot.target.length, slot.last_used))
            self._restore(best, saved, begin)
        elif lent[source] >= held[best] + WORTH_IT:
            self._save(best)
            best.copy(source, begin)
        elif best.target.length > 2 * held[best]:  # it would lose more than it keeps
            self._save(best)
        best.is_busy = True
        return best

    def reusable(self, prompt: Sequence[int]) -> int:
        """Number of prompt tokens that need not be read again."""
        saved = self._saved.best(prompt)
        return max(
            *(
                slot.shareable(prompt) if slot.is_busy else slot.target.reusable(prompt)
                for slot in self.all
            ),
            saved.reusable(prompt) if saved else 0,
        )

    def leave(self, slot: Slot) -> None:
        """Release a slot whose answer has ended; it keeps its tokens until others need it."""
        self._clock += 1
        for each in self.all:
            if each.draft is not None:
                each.draft.is_crowded = False
        slot.is_busy, slot.last_used = False, self._clock

    def clear(self) -> None:
        """Forget what finished answers left."""
        for slot in self._idle():
            slot.clear()
        self._saved.clear()

    def move_out(self) -> None:
        """Move the answer that ended longest ago to RAM, if it slows down the running ones."""
        if self._can_save and self._is_slowed_by_idle:
            self.make_room()

    def make_room(self) -> bool:
        """Free the cells of the answer that ended longest ago; False if there is none."""
        if idle := self._idle():
            self._move_out(min(idle, key=lambda slot: slot.last_used))
        return bool(idle)

    def free_draft(self) -> bool:
        """Free the draft's cells of the answer that ended longest ago; False if there is none."""
        idle = [slot for slot in self._idle() if slot.draft and slot.draft.length]
        if idle:
            min(idle, key=lambda slot: slot.last_used).clear(of_draft=True)
        return bool(idle)

    def _idle(self) -> list[Slot]:
        """Slots that hold tokens and are not busy."""
        return [slot for slot in self.all if not slot.is_busy and slot.holds_any]

    def _restore(self, slot: Slot, saved: Saved, prompt: Sequence[int]) -> None:
        self._saved.remove(saved)
        self._move_out(slot)
        while not (done := slot.restore(saved)) and self.make_room():
            pass
        if not done or saved.reusable(prompt) < len(saved.target.tokens):
            self._saved.add(saved)  # others may need it too

    def _move_out(self, slot: Slot) -> None:
        self._save(slot)
        slot.clear()

    def _save(self, slot: Slot) -> None:
        if self._can_save and slot.target.length > WORTH_IT:
            with suppress(MemoryError):
                self._saved.add(slot.save(self._saved.most))
