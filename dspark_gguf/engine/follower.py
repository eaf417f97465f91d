"""A draft's cache that is filled with what its target computes, pass by pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dspark_gguf.engine.sequence import SequenceCache

if TYPE_CHECKING:
    from dspark_gguf.calibration import CalibrationRecord
    from dspark_gguf.engine.context import Context
    from dspark_gguf.engine.dflash import TargetDraft
    from dspark_gguf.engine.model import Model
    from dspark_gguf.engine.protocol import Block, Pass, Rows


class Follower(SequenceCache, ABC):
    """The memory of a draft that reads what the target computed of each token.

    It listens to the cache of the `target`, which it must not outlive: after each pass it copies
    what it needs, and it takes back what the target takes back.
    """

    draft: TargetDraft  # what it is, by its header

    def __init__(
        self, model: Model, target: SequenceCache, n_ctx: int, context: Context, max_rows: int
    ) -> None:
        super().__init__(context, model.options.swa_full, max_rows, sequence=target.sequence)
        self.n_ctx, self.model, self._target = n_ctx, model, target

    def _listen(self) -> None:
        # What the target computed of what it read before is missing: it reads that again.
        self._target.trim(0)
        self._target.listeners.append(self)

    @property
    def calibration(self) -> CalibrationRecord | None:
        """As its file has it."""
        return self.draft.calibration

    @property
    @abstractmethod
    def seen(self) -> int:
        """Tokens of which it has what it needs, in its cache or waiting."""

    @property
    def covered(self) -> int:
        """The first token that it has not read."""
        return self.length

    def is_ready(self, length: int) -> bool:
        """Whether it can go on from the first `length` tokens."""
        return self.seen == length

    @property
    def room(self) -> int:
        """Most tokens that it can follow."""
        return self.n_ctx

    def begin(self, tokens: Sequence[int]) -> None:
        """The target goes on after `tokens`: keep what is true of them, see what is missing."""
        self._target.reuse_prefix(tokens)
        self.repair()

    def repair(self) -> None:
        """Make the target forget what it read unseen, after an exception or an edit."""
        if self.seen < min(self._target.length, self.room):
            self._target.trim(self.seen)

    def on_pass(self, count: int, first: int) -> None:
        """Copy what the target has just computed, unless an exception left a gap."""
        start = self._target.length - count
        done, take = self.seen - start, min(count, self.room - start)
        if 0 <= done < take:
            self._copy(start, first, done, take)

    @abstractmethod
    def on_trim(self, length: int) -> None:
        """All tokens from position `length` on are void."""

    @abstractmethod
    def _copy(self, start: int, first: int, done: int, take: int) -> None:
        """Copy of tokens `done` to `take` of a pass from `start` on, at `first` in its batch."""

    @abstractmethod
    def opening(self, last: int, count: int = 1) -> list[int]:
        """What the first pass of a draft after `last` reads; the next pass given is that one.

        If that pass makes all guesses, `count` of them.
        """

    @abstractmethod
    def propose(self, last: int, count: int) -> Block:
        """Guesses for the `count` tokens after `last`, each the best one of its row."""

    def decode_all(self, passes: Sequence[Pass]) -> list[Rows]:
        """As any cache; one after the other."""
        return [np.array(cache.decode(tokens, n_rows)) for cache, tokens, n_rows in passes]


def groups_of(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Places that follow each other, together of no more than `most`: as few groups as can be."""
    start = total = 0
    for k, size in enumerate(sizes):
        if k > start and total + size > most:
            yield range(start, k)
            start, total = k, 0
        total += size
    if sizes:
        yield range(start, len(sizes))
