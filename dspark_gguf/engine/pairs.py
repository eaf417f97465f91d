"""A llama.cpp batch of hidden states, with or without tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Pairs(NamedTuple):
    """A sequence's part of a pass, from `position` on; without tokens, only states."""

    sequence: int
    position: int
    tokens: Sequence[int]
    states: Floats  # [pairs, width]


class PairBatch:
    """A batch of pairs of a token and a state, at most as many as `states` has rows.

    They belong to `sequence` unless others are given. Callers may write into `states`. A multi-axis
    rotary embedding (`is_mrope`) needs four positions per token, axis by axis.
    """

    def __init__(self, states: Floats, sequence: int, is_mrope: bool = False) -> None:
        rows = len(states)
        self._states, self._axes = states.reshape(-1), 3 if is_mrope else 1
        self._positions = np.zeros(4 * rows, dtype=np.int32)
        self.rows, self._sequence = rows, sequence
        self._ids, self._ones, self._sequences = np.zeros((3, rows), dtype=np.int32)
        self._ones[:] = 1
        self._flags = np.zeros(rows, dtype=np.int8)
        number = ctypes.POINTER(ctypes.c_int32)
        # Pointers to the sequence id of each row.
        self._places = self._sequences.ctypes.data + 4 * np.arange(rows, dtype=np.uintp)
        self._tokens = self._ids.ctypes.data_as(number)
        self._batch = llama_cpp.llama_batch(
            embd=self._states.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=self._positions.ctypes.data_as(number),
            n_seq_id=self._ones.ctypes.data_as(number),
            seq_id=self._places.ctypes.data_as(ctypes.POINTER(number)),
            logits=self._flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def at(self, start: int, tokens: Sequence[int], states: Floats, flagged: bool) -> Any:
        """A batch of these pairs from position `start` on; without tokens, of only states."""
        return self.of([Pairs(self._sequence, start, tokens, states)], flagged)

    def of(self, parts: Sequence[Pairs], flagged: bool) -> Any:
        """A batch of pairs of several sequences, in ascending order."""
        states = np.concatenate([each.states for each in parts])
        tokens = [token for each in parts for token in each.tokens]
        self._states[: states.size] = states.ravel()
        self._flags[: len(states)] = flagged
        self._batch.token = self._tokens if tokens else None
        self._ids[: len(tokens)] = tokens
        return self._of([(each.sequence, each.position, len(each.states)) for each in parts])

    def first(self, count: int, start: int) -> Any:
        """A batch of the first `count` states in place, from position `start` on."""
        return self._of([(self._sequence, start, count)])

    def _of(self, runs: Sequence[tuple[int, int, int]]) -> Any:
        """The batch, for runs of (sequence, first position, rows)."""
        steps = np.concatenate([np.arange(at, at + n, dtype=np.int32) for _, at, n in runs])
        count = len(steps)
        self._sequences[:count] = np.repeat([each[0] for each in runs], [each[2] for each in runs])
        self._positions[: self._axes * count] = np.tile(steps, self._axes)
        self._positions[self._axes * count : 4 * count] = 0
        self._batch.n_tokens = count
        return self._batch
