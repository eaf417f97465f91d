"""A prompt cache in RAM: finished conversations resume from it, and do not slow down the others.

Attention goes over all cells of a context, including those of idle conversations, and llama.cpp
assigns equal ranges of cells to its threads: if all cells of a busy conversation are in one range,
one thread does all the work. Moving a conversation to RAM and back takes a small part of the time
to read it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dspark_gguf.engine.library import free_memory
from dspark_gguf.engine.protocol import TokenIds, common_prefix
from dspark_gguf.engine.state import SavedCache

#: Maximum bytes of the cache, and its maximum share of the memory that is free without it.
_MAX_BYTES, _SHARE = 8 * 2**30, 0.25
#: Copying a whole conversation pays if a prompt begins with at least this share of it.
_ENOUGH = 1 / 8


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """The caches of a conversation, copied from its slot."""

    target: SavedCache
    draft: SavedCache | None = None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.target.size + (self.draft.size if self.draft else 0)

    def reusable(self, prompt: TokenIds) -> int:
        """Number of prompt tokens that it can provide; 0 if that is not worth copying it."""
        held = self.target.reusable(prompt)
        return held if held >= _ENOUGH * len(self.target.tokens) else 0


class PromptCache:
    """Saved conversations, the last used at the end; the first are dropped if memory is short.

    `free` returns the bytes of free memory.
    """

    def __init__(self, free: Callable[[], int] = free_memory) -> None:
        self._saved: list[Saved] = []
        self._free = free

    def add(self, saved: Saved) -> None:
        """Keep a conversation, replacing its own earlier states."""
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
        """The conversation with the longest prefix of a prompt; None if there is none."""
        tokens = np.asarray(prompt, dtype=np.int32)  # once, for a comparison with each
        found = max(self._saved, key=lambda each: each.reusable(tokens), default=None)
        return found if found is not None and found.reusable(tokens) else None

    def remove(self, saved: Saved) -> None:
        """Remove a conversation that is back in a slot."""
        self._saved.remove(saved)

    def clear(self) -> None:
        """Drop everything."""
        self._saved.clear()


def _begins(tokens: TokenIds, start: TokenIds) -> bool:
    return common_prefix(tokens, start) == len(start)
