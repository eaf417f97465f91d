"""A batch of llama.cpp that carries states, with tokens or without."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class PairBatch:
    """A batch of at most as many pairs of a token and a state as `states` has rows.

    Anybody may write into `states`. A multi-axis rotary embedding (`is_mrope`) needs four positions
    a token, axis by axis.
    """

    def __init__(self, states: Floats, sequence: int, is_mrope: bool = False) -> None:
        rows = len(states)
        self._states, self._axes = states.reshape(-1), 3 if is_mrope else 1
        self._positions = np.zeros(4 * rows, dtype=np.int32)
        self._ids, self._ones = np.zeros((2, rows), dtype=np.int32)
        self._ones[:] = 1
        self._flags = np.zeros(rows, dtype=np.int8)
        self._sequence = np.full(1, sequence, dtype=np.int32)
        number = ctypes.POINTER(ctypes.c_int32)
        self._places = np.full(rows, self._sequence.ctypes.data, dtype=np.uintp)
        self._tokens = self._ids.ctypes.data_as(number)
        self._batch = llama_cpp.llama_batch(
            embd=self._states.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            pos=self._positions.ctypes.data_as(number),
            n_seq_id=self._ones.ctypes.data_as(number),
            seq_id=self._places.ctypes.data_as(ctypes.POINTER(number)),
            logits=self._flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def at(self, start: int, tokens: Sequence[int], states: Floats, flagged: bool) -> Any:
        """The batch of these pairs from position `start` on; without tokens, of states alone."""
        self._states[: states.size] = states.ravel()
        self._flags[: len(states)] = flagged
        self._batch.token = self._tokens if len(tokens) else None
        self._ids[: len(tokens)] = tokens
        return self.first(len(states), start)

    def first(self, count: int, start: int) -> Any:
        """The batch of the first `count` states as they are, from position `start` on."""
        steps = np.arange(start, start + count, dtype=np.int32)
        self._positions[: self._axes * count] = np.tile(steps, self._axes)
        self._positions[self._axes * count : 4 * count] = 0
        self._batch.n_tokens = count
        return self._batch
