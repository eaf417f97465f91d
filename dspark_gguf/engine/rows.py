"""Rows of logits in llama.cpp's memory."""

from __future__ import annotations

from typing import Any, Protocol

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.errors import EngineError


class _Context(Protocol):
    @property
    def pointer(self) -> Any: ...

    @property
    def n_vocab(self) -> int: ...


class Rows:
    """Logits of the last pass, one row per position: float32 ``[n_vocab]`` each.

    Views into llama.cpp's memory, made when asked for: valid until the context decodes again.
    """

    def __init__(self, context: _Context, first: int, count: int) -> None:
        self._context, self._first, self._count = context, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> npt.NDArray[np.float32]:
        if not 0 <= k < self._count:
            raise IndexError(k)
        pointer = llama_cpp.llama_get_logits_ith(self._context.pointer, self._first + k)
        if not pointer:
            raise EngineError("logits", f"none at row {k}", "report this with the model's name")
        return np.ctypeslib.as_array(pointer, (self._context.n_vocab,))
