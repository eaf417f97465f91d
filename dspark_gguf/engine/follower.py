"""The cache of a draft that reads the target's hidden states, filled pass by pass."""

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
    """The cache of a draft that reads the target's hidden states.

    It listens to the cache of the `target`, which it must not outlive: it copies what it needs
    after each pass, and rolls back when the target does.
    """

    draft: TargetDraft  # what it is, by its header

    def __init__(
        self, model: Model, target: SequenceCache, n_ctx: int, context: Context, max_rows: int
    ) -> None:
        super().__init__(context, model.options.swa_full, max_rows, sequence=target.sequence)
        self.n_ctx, self.model, self._target = n_ctx, model, target

    def _listen(self) -> None:
        # The hidden states of what the target read before are lost, so it must read that again.
        self._target.trim(0)
        self._target.listeners.append(self)

    @property
    def calibration(self) -> CalibrationRecord | None:
        """The calibration in the draft's file."""
        return self.draft.calibration

    @property
    @abstractmethod
    def seen(self) -> int:
        """Tokens whose hidden states it has, in its cache or in a buffer."""

    @property
    def covered(self) -> int:
        """Position of the first token that it has not read."""
        return self.length

    def is_ready(self, length: int) -> bool:
        """Whether it can draft after the first `length` tokens."""
        return self.seen == length

    @property
    def room(self) -> int:
        """Maximum tokens that it can hold."""
        return self.n_ctx

    def begin(self, tokens: Sequence[int]) -> None:
        """An answer begins after `tokens`: keep their prefix, make the target reread the rest."""
        self._target.reuse_prefix(tokens)
        self.repair()

    def repair(self) -> None:
        """Make the target drop tokens that this cache missed, after an exception or an edit."""
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
        """Drop all tokens from position `length` on."""

    @abstractmethod
    def _copy(self, start: int, first: int, done: int, take: int) -> None:
        """Copy tokens `done` to `take` of a pass from position `start` on.

        The pass begins at index `first` of its batch.
        """

    @abstractmethod
    def opening(self, last: int, count: int = 1) -> list[int]:
        """The tokens that the first pass of a draft after `last` must read; run that pass next.

        A block draft makes `count` guesses in it.
        """

    @abstractmethod
    def propose(self, last: int, count: int) -> Block:
        """Guesses for the `count` tokens after `last`, each the best one of its row."""

    def decode_all(self, passes: Sequence[Pass]) -> list[Rows]:
        """See `SequenceCache`; one pass after the other."""
        return [np.array(cache.decode(tokens, n_rows)) for cache, tokens, n_rows in passes]


def groups_of(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Split indices into as few consecutive groups as possible with a total size up to `most`."""
    start = total = 0
    for k, size in enumerate(sizes):
        if k > start and total + size > most:
            yield range(start, k)
            start, total = k, 0
        total += size
    if sizes:
        yield range(start, len(sizes))
