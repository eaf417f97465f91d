"""A batch of llama.cpp that carries tokens and states together."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class PairBatch:
    """A batch of at most `rows` pairs of a token and a state up to `width` wide."""

    def __init__(self, rows: int, width: int, sequence: int) -> None:
        self._states = np.zeros(rows * width, dtype=np.float32)
        self._ids, self._positions, self._ones = np.zeros((3, rows), dtype=np.int32)
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
        count = len(states)
        self._states[: states.size] = states.ravel()
        self._positions[:count] = np.arange(start, start + count)
        self._flags[:count] = flagged
        self._batch.token = self._tokens if len(tokens) else None
        self._ids[: len(tokens)] = tokens
        self._batch.n_tokens = count
        return self._batch
