"""Record the target's layer inputs and its likeliest next tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event

import numpy as np
import numpy.typing as npt

from dspark_gguf.engine import symbols
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.sequence import open_caches
from dspark_gguf.train.shape import Shape
from dspark_gguf.train.work import LIKELY, Conversation, Recorded, Recording, Work

#: Rows of logits in one pass: 50 MB at a vocabulary of 49,152.
_ROWS = 256
#: The largest float16 is 65,504; the first token's inputs can exceed it.
_MAX = 6e4


class Teacher:
    """The target in a context of its own, reading one conversation after the other."""

    def __init__(self, model: Model, layers: Sequence[int], n_ctx: int, interrupt: Event) -> None:
        rows = min(_ROWS, model.options.n_ubatch, model.options.n_batch)
        # Opened like a draft's: it never rolls back, so it needs no snapshots.
        self._cache = open_caches(model, n_ctx, rows, interrupt, is_draft=True)[0]
        self._rows = self._cache.max_rows
        width = model.header.get("embedding_length")
        self._inputs = symbols.LayerInputs(self._cache.pointer, layers, width)

    def read(self, tokens: Sequence[int]) -> Recorded:
        """Read a conversation; raises what `SequenceCache.decode` does."""
        self._cache.trim(0)
        parts = [tokens[k : k + self._rows] for k in range(0, len(tokens), self._rows)]
        found = [self._part(part) for part in parts]
        return Recorded(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def close(self) -> None:
        """Free the context."""
        self._cache.close()

    def _part(self, tokens: Sequence[int]) -> Recorded:
        rows = self._cache.decode(tokens, len(tokens))
        inputs = np.stack(self._inputs.rows(len(tokens)), 1)
        features = np.clip(inputs, -_MAX, _MAX).astype(np.float16)
        likely = [likeliest(row) for row in rows]
        ids, logs = (np.stack(each) for each in zip(*likely, strict=True))
        return Recorded(features, ids, logs)


def likeliest(
    row: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    """The likeliest tokens of a row [16] and their log probabilities; unused entries are -30."""
    best = row.max()
    found = np.flatnonzero(row >= best - 10)
    found = found[np.argsort(-row[found], kind="stable")[:LIKELY]]
    ids, logs = np.zeros(LIKELY, np.int32), np.full(LIKELY, -30, np.float16)
    ids[: len(found)] = found
    total = np.log(np.exp(row - best).sum(dtype=np.float64))
    logs[: len(found)] = row[found] - best - total
    return ids, logs


class OnLine:
    """Recordings made on demand and never stored."""

    def __init__(self, model: Model, shape: Shape, conversations: Sequence[Conversation]) -> None:
        self._conversations = conversations
        longest = max((len(each.tokens) for each in conversations), default=1)
        self._teacher = Teacher(model, shape.target_layers, longest, Event())

    def __getitem__(self, k: int) -> Recorded:
        return self._teacher.read(self._conversations[k].tokens)


def record(teacher: Teacher, work: Work, recording: Recording, max_tokens: int) -> Iterator[int]:
    """Record the remaining conversations while there is room; yields the tokens of each."""
    for conversation in work.conversations[len(recording) :]:
        tokens = conversation.tokens
        if recording.tokens + len(tokens) > max_tokens:
            return
        recording.append(teacher.read(tokens))
        yield len(tokens)
