"""What finished conversations left, in RAM: they go on from there, and cost the others nothing.

Attention passes over all cells of a context, also over those of conversations that nobody answers,
and llama.cpp hands out equal ranges of cells to its threads: with the cells of one busy
conversation in one range, one thread does all the work. Moving a conversation to RAM and back
takes a small part of the time to read it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dspark_gguf.engine.library import free_memory
from dspark_gguf.engine.protocol import common_prefix
from dspark_gguf.engine.state import SavedCache

#: Most bytes of all, and most of the memory that is free without them.
_MAX_BYTES, _SHARE = 8 * 2**30, 0.25
#: A copy of a whole conversation pays if a prompt begins with at least this share of it.
_ENOUGH = 1 / 8


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A conversation as its slot held it."""

    target: SavedCache
    draft: SavedCache | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.target.size + (self.draft.size if self.draft else 0)

    def reusable(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt for which this is worth a copy; 0: it is not."""
        held = self.target.reusable(prompt)
        return held if held >= _ENOUGH * len(self.target.tokens) else 0


class PromptCache:
    """Saved conversations, the one used last at the end; the first ones go where memory is short.

    `free` tells the bytes of memory that are free.
    """

    def __init__(self, free: Callable[[], int] = free_memory) -> None:
        self._saved: list[Saved] = []
        self._free = free

    def add(self, saved: Saved) -> None:
        """Keep a conversation, in the place of earlier stages of the same."""
        tokens = saved.target.tokens
        self._saved = [each for each in self._saved if not _begins(tokens, each.target.tokens)]
        self._saved.append(saved)
        most, size = self.most, self._size
        while self._saved and size > most:
            size -= self._saved.pop(0).size

    @property
    def most(self) -> int:
        """Bytes that all of them may take."""
        return min(_MAX_BYTES, int(_SHARE * (self._free() + self._size)))

    @property
    def _size(self) -> int:
        return sum(each.size for each in self._saved)

    def best(self, prompt: Sequence[int]) -> Saved | None:
        """The one with most of a prompt; None if no one has any of it."""
        found = max(self._saved, key=lambda each: each.reusable(prompt), default=None)
        return found if found is not None and found.reusable(prompt) else None

    def remove(self, saved: Saved) -> None:
        """It is back in a slot."""
        self._saved.remove(saved)

    def clear(self) -> None:
        """Forget all."""
        self._saved.clear()


def _begins(tokens: Sequence[int], start: Sequence[int]) -> bool:
    return common_prefix(tokens, start) == len(start)
