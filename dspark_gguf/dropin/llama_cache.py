"""The context of a loaded ``Llama`` as a cache that keeps the ``Llama``'s own counters true."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from threading import Event

import llama_cpp
import numpy as np

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine.closed import shut
from dspark_gguf.engine.context import Context, Part
from dspark_gguf.engine.sequence import SequenceCache


class _LlamaContext(Context):
    """The context of a ``Llama``; also fills its table of all logits, if it has one."""

    def __init__(self, llama: llama_cpp.Llama, n_ctx: int) -> None:
        super().__init__(
            llama._ctx.ctx, n_ctx, int(llama._n_vocab), int(llama.n_batch), Event(), owner=llama
        )
        self.llama = llama

    def run(self, parts: Sequence[Part]) -> None:
        """As for any context, but with a single sequence."""
        llama, (part,) = self.llama, parts
        if not getattr(llama, "_all_logits", llama._logits_all):
            super().run(parts)
            return
        position, count = part.position, len(part.tokens)
        super().run([part._replace(n_rows=count)])
        rows = llama_cpp.llama_get_logits(self.pointer)
        table = llama.scores[position : position + count]
        table[:] = np.ctypeslib.as_array(rows, (count, self.n_vocab))


class _LlamaCounters:
    """Updates a ``Llama``'s `n_tokens` and `input_ids`, on which its methods rely."""

    def __init__(self, llama: llama_cpp.Llama, cache: SequenceCache) -> None:
        self._llama, self._cache = llama, cache

    def on_pass(self, count: int, first: int) -> None:
        """`count` more tokens."""
        llama, length = self._llama, self._cache.length
        llama.input_ids[length - count : length] = self._cache.tokens[length - count :]
        llama.n_tokens, llama._requires_eval = length, False

    def on_trim(self, length: int) -> None:
        """Fewer tokens: the last logits are no longer those of the last token."""
        if self._cache.length < self._llama.n_tokens:
            self._llama.n_tokens, self._llama._requires_eval = self._cache.length, True


def borrow(llama: llama_cpp.Llama, *, is_draft: bool = False) -> SequenceCache:
    """The cache of a loaded ``Llama``, which others may use between two answers.

    Relies on ``_ctx``, ``_n_vocab``, ``_logits_all``, ``_requires_eval`` and ``_stack``; a contract
    test pins them.
    """
    context = _LlamaContext(llama, min(int(llama.n_ctx()), len(llama.input_ids)))
    rows = 1 if is_draft else min(MAX_DRAFT + 1, context.n_batch)
    cache = SequenceCache(context, llama.context_params.swa_full, rows, is_draft)
    cache.listeners.append(_LlamaCounters(llama, cache))
    llama._stack.callback(_end, weakref.ref(cache))
    if is_draft:
        sync_draft(cache)
    return cache


def sync_draft(cache: SequenceCache) -> None:
    """Between two answers: follow what a borrowed draft was used for in the meantime."""
    if isinstance(cache.context, _LlamaContext):
        cache.sync(cache.context.llama._input_ids.tolist())


def _end(known: weakref.ref[SequenceCache]) -> None:
    """Before the ``Llama`` is freed."""
    if cache := known():
        shut(cache)
