"""A loaded ``llama_cpp.Llama``: its context as a cache, its logits, its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Event
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama as Llama  # for those above, which do not know llama_cpp

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine import trial
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.rollback import Rollback
from dspark_gguf.engine.sequence import SequenceCache

#: Tokens from which on a list is remembered by `GrowingTokenizer`.
_LONG = 32


class SafeLlama(Llama):  # type: ignore[misc]
    """A ``Llama`` that is loaded with extra buffers only where they work (``trial.py``).

    ``Llama`` has no argument for it; what it sets is the attribute `model_params`, once, before
    the model is loaded. A contract test pins that.

    Args:
        model_path: as for ``Llama``.
        extra_buffers: auto, on or off.
        options: as for ``Llama``.

    Raises:
        EngineError: this build of llama.cpp cannot run on this machine.

    """

    def __init__(
        self, model_path: str, *, extra_buffers: trial.Wish = "auto", **options: Any
    ) -> None:
        self._wish, self.extra_buffers = extra_buffers, trial.extra_buffers(extra_buffers)
        super().__init__(model_path, **options)

    @property
    def model_params(self) -> Any:
        """How the model was loaded."""
        return self._model_params

    @model_params.setter
    def model_params(self, params: Any) -> None:
        params.use_extra_bufts = self.extra_buffers
        self._model_params = params

    def __getstate__(self) -> dict[str, Any]:
        """What makes the same again, for pickling."""
        return {**super().__getstate__(), "extra_buffers": self._wish}


class _LlamaContext(Context):
    """The context of a ``Llama`` that keeps its table of all logits, where it has one."""

    def __init__(self, llama: Llama, n_ctx: int) -> None:
        super().__init__(
            llama._ctx.ctx, n_ctx, int(llama._n_vocab), int(llama.n_batch), Event(), owner=llama
        )
        self._llama = llama

    def run(self, sequence: int, tokens: Sequence[int], position: int, n_rows: int) -> None:
        """As for any context."""
        llama, count = self._llama, len(tokens)
        if not getattr(llama, "_all_logits", llama._logits_all):
            super().run(sequence, tokens, position, n_rows)
            return
        super().run(sequence, tokens, position, count)
        rows = llama_cpp.llama_get_logits(self.pointer)
        table = llama.scores[position : position + count]
        table[:] = np.ctypeslib.as_array(rows, (count, self.n_vocab))


class _Books:
    """Keeps `n_tokens` and `input_ids` of a ``Llama`` true: what its own methods go by."""

    def __init__(self, llama: Llama, cache: SequenceCache) -> None:
        self._llama, self._cache = llama, cache

    def passed(self, count: int) -> None:
        """`count` tokens more."""
        llama, length = self._llama, self._cache.length
        llama.input_ids[length - count : length] = self._cache.tokens[length - count :]
        llama.n_tokens, llama._requires_eval = length, False

    def trimmed(self, length: int) -> None:
        """Fewer tokens: the last logits are not those of the last token any more."""
        if self._cache.length < self._llama.n_tokens:
            self._llama.n_tokens, self._llama._requires_eval = self._cache.length, True


def borrowed(llama: Llama, *, is_draft: bool = False) -> SequenceCache:
    """The cache of a loaded ``Llama``; what its own methods do between two answers is noticed.

    Relies on ``_ctx``, ``_n_vocab``, ``_logits_all``, ``_requires_eval`` and ``_model``; a contract
    test pins them.
    """
    model = llama._model.model
    is_kind = (llama_cpp.llama_model_is_recurrent, llama_cpp.llama_model_is_hybrid)
    recurrent = any(each(model) for each in is_kind)
    window = int(llama_cpp.llama_model_n_swa(model))
    context = _LlamaContext(llama, min(int(llama.n_ctx()), len(llama.input_ids)))
    rollback = Rollback(context.pointer, recurrent, window, llama.context_params.swa_full)
    rows = 1 if is_draft else min(MAX_DRAFT + 1, context.n_batch)
    cache = SequenceCache(context, rollback, rows, is_draft)
    cache.listeners.append(_Books(llama, cache))
    return cache


class RecordedRows:
    """The rows that an answer's tokens were drawn from, for logprobs: no table of the context.

    Args:
        n_vocab: length of a row.
        first: position that the first row stands for.

    """

    def __init__(self, n_vocab: int, first: int) -> None:
        self._buffer = np.empty((16, n_vocab), dtype=np.float32)
        self._first, self._count = first, 0

    def append(self, row: npt.NDArray[np.float32]) -> None:
        """Copy one more."""
        if self._count == len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty_like(self._buffer)])
        self._buffer[self._count] = row
        self._count += 1

    @property
    def rows(self) -> FromFirst:
        """All of them ``[n, n_vocab]``, indexed by position in the context."""
        rows = self._buffer[: self._count].view(FromFirst)
        rows.first = self._first
        return rows


class FromFirst(np.ndarray):
    """An array whose first row has the index `first`; so have the results of its arithmetic."""

    first = 0

    def __array_finalize__(self, made_from: object) -> None:
        self.first = getattr(made_from, "first", 0)

    def __getitem__(self, key: Any) -> Any:
        of_row, *rest = key if isinstance(key, tuple) else (key,)
        plain = self.view(np.ndarray)
        if isinstance(of_row, slice):
            return plain[(slice(max((of_row.start or 0) - self.first, 0), None), *rest)]
        if isinstance(of_row, int | np.integer) and of_row >= 0:
            of_row -= self.first
        return plain[(of_row, *rest)]


class GrowingTokenizer(llama_cpp.LlamaTokenizer):  # type: ignore[misc]
    """Detokenizes a list that grows by reading only what is new.

    ``Llama.create_completion`` asks for the text of the whole answer after every token, which
    makes long answers quadratic. What comes out is the same, byte for byte.
    """

    def __init__(self, llama: Llama) -> None:
        super().__init__(llama)
        self._pieces: dict[int, bytes] = {}
        self._tokens: list[int] = []
        self._known = 0, b""  # how many of them were read, and their text

    def detokenize(
        self,
        tokens: Iterable[int],
        prev_tokens: list[int] | None = None,
        special: bool = False,
    ) -> bytes:
        """The bytes of `tokens`."""
        if not isinstance(tokens, list):  # a stopping criterion is given an array
            tokens = [int(token) for token in tokens]
        if special or not tokens:
            return bytes(self._model.detokenize(tokens, special=special))
        known, text = self._known
        del self._tokens[known:]  # where an exception struck before they were known
        if known == 0 or tokens[:known] != self._tokens:
            if len(tokens) < _LONG:  # a short list; the long one will be asked for again
                return self._without_space(tokens, self._text_of(tokens, b""))
            known, text = self._known = 0, b""
            self._tokens = []
        fresh = tokens[known:]
        text = self._text_of(fresh, text)
        self._tokens += fresh
        self._known = len(tokens), text
        return self._without_space(tokens, text)

    def _text_of(self, tokens: Sequence[int], before: bytes) -> bytes:
        pieces = self._pieces
        for token in tokens:
            if token not in pieces:
                pieces[token] = self._model.detokenize([token])
        return before + b"".join([pieces[token] for token in tokens])

    def _without_space(self, tokens: Sequence[int], text: bytes) -> bytes:
        """Llama 1 begins a text with a space after its first token."""
        begins = tokens[0] == self._model.token_bos() and text[:1] == b" "
        return text[1:] if begins else text
