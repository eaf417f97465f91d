"""Sequences of a context, each with its `Cache`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from threading import Event
from typing import cast

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine.context import Context, Part, open_context
from dspark_gguf.engine.memory import Footprint, rows_of
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.passes import rows_together, run_together
from dspark_gguf.engine.protocol import Listener, Pass, Rows, common_prefix
from dspark_gguf.engine.rollback import LONG, Rollback
from dspark_gguf.engine.token_map import TokenMap
from dspark_gguf.errors import Cancelled, ResourceError


class SequenceCache:
    """The KV cache of one sequence of a context.

    See ``rollback.py`` for how it rolls back. If that drops more than was asked for, `length` shows
    it, and the next caller of `decode` reads the missing tokens again. `is_draft`: passes over
    single tokens may be rolled back too. `swa_full`: sliding-window layers keep all tokens.
    """

    kind = "model"  # else the name of the drafter that it is for
    user: object = None
    is_head = False  # whether it is the cache of prediction heads
    is_crowded = False  # whether it found no free cells, and waits until others end
    joins = True  # whether its passes can be shared with those of other conversations
    max_drafts = MAX_DRAFT  # maximum tokens of a draft from it
    model: Model  # its model, if this package loaded it
    token_map: TokenMap  # of a draft of kind "mapped"

    def __init__(
        self,
        context: Context,
        swa_full: bool,
        max_rows: int,
        is_draft: bool = False,
        sequence: int = 0,
    ) -> None:
        self.context, self.sequence, self._is_draft = context, sequence, is_draft
        #: llama.cpp's context; maximum tokens it can hold; size of the model's vocabulary.
        self.pointer, self.n_ctx, self.n_vocab = context.pointer, context.n_ctx, context.n_vocab
        #: Its tokens. After an interrupted pass the cache may have more, until `reuse_prefix`.
        self.tokens: list[int] = []
        #: Notified of every pass and every rollback.
        self.listeners: list[Listener] = []
        self._rollback = Rollback(context.pointer, swa_full, sequence, self.is_head)
        #: Kind of rollback; maximum rows of a pass, fewer if it cannot roll back as many.
        self.rollback, self.max_rows = self._rollback.kind, max_rows
        if self.rollback == "snapshots":
            self.max_rows = min(max_rows, 1 + self._rollback.snapshots)
        self._unsure = False
        self._before = False, 0

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return len(self.tokens)

    def close(self) -> None:
        """Free the context."""
        self.context.close()

    def use_threads(self, threads: int, threads_batch: int) -> None:
        """Set the CPU threads of passes over one token, and over more."""
        llama_cpp.llama_set_n_threads(self.pointer, threads, threads_batch)

    def holding(self) -> AbstractContextManager[None]:
        """What is read inside can be rolled back to the current tokens, with any kind of memory."""
        self.trim(self.length)  # drops what an interrupted pass may have left
        return self._rollback.holding(self.length)

    def flush(self) -> None:
        """Read what is waiting in a buffer; this cache has none."""

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """See `Cache`; the state after `tokens`, once read, is saved for later edits."""
        self._roll_back(common_prefix(self.tokens, tokens))
        for listener in self.listeners:
            listener.on_trim(self.length)
        if self.rollback != "removal" and not self._is_draft:
            self._rollback.plan_checkpoints(tokens, self.length)
        if self.length == len(tokens):
            self._rollback.add_checkpoint(self.length)
        return self.length

    def adopt(self, tokens: Sequence[int]) -> None:
        """Its memory was filled by other means: from now on it holds exactly `tokens`."""
        self._rollback.forget()
        self.tokens[:] = tokens
        self._rollback.add_checkpoint(self.length)

    def sync(self, tokens: Sequence[int], ours: Sequence[int] = ()) -> None:
        """Adjust to what other code may have done with its memory: it says `tokens` are there.

        If these are a prefix of what the cache holds, or of `ours`, part of which it may have to
        read again, other code did nothing. Otherwise the cache holds exactly `tokens`.
        """
        shared = common_prefix(self.tokens, tokens)
        if len(tokens) in (shared, common_prefix(ours, tokens)):
            self._unsure = self._unsure or self.rollback == "removal"
            self._roll_back(len(tokens))
        else:
            self.adopt(tokens)
        for listener in self.listeners:
            listener.on_trim(min(shared, self.length))

    def trim(self, length: int) -> None:
        """See `Cache`; the first `length` tokens are committed: only an edit rolls them back."""
        self._roll_back(length)
        self._rollback.settle(length)
        for listener in self.listeners:
            listener.on_trim(length)

    def decode(self, tokens: Sequence[int], n_rows: int) -> npt.NDArray[np.float32]:
        """See `Cache`: logits ``[n_rows, n_vocab]``, valid until the next pass.

        Raises:
            Cancelled: the user interrupted between two batches; tokens read so far stay.
            ResourceError: the cache is full, or memory is short.
            EngineError: llama.cpp failed.
            ValueError: more than `max_rows` rows.

        """
        tokens = self.prepare(tokens, n_rows)
        self._read(tokens, n_rows)
        return self.context.rows(min(len(tokens), self.context.n_batch) - n_rows, n_rows)

    def decode_all(self, passes: Sequence[Pass]) -> list[Rows]:
        """One pass for sequences of this context, in ascending order; returns their rows."""
        each = [(cast(SequenceCache, one.cache), one.tokens, one.n_rows) for one in passes]
        parts = [(cache, cache.prepare(tokens, n_rows), n_rows) for cache, tokens, n_rows in each]
        return rows_together(parts)

    def prepare(self, tokens: Sequence[int], n_rows: int) -> Sequence[int]:
        """Save the states that a rollback will need; returns the tokens still to read."""
        if self.length + len(tokens) > self.n_ctx:
            raise ResourceError(
                f"{self.length + len(tokens)} tokens do not fit into a context of {self.n_ctx}",
                "Use a larger --ctx-size.",
            )
        if n_rows > self.max_rows:  # llama.cpp would end the process
            raise ValueError(f"{n_rows} rows of a context made for {self.max_rows}")
        if self.rollback == "removal":
            return tokens
        end = self.length + len(tokens) - n_rows
        revocable = n_rows > 1 or (n_rows == 1 and self._is_draft)
        saves = revocable and self.rollback == "replay" and not self._is_draft
        stops = [stop for stop in self._rollback.planned if self.length < stop <= end]
        is_long = end - max([self.length, *stops]) > LONG
        for stop in [*stops, end] if is_long or saves else stops:
            head = stop - self.length
            self._read(tokens[:head], 0)
            tokens = tokens[head:]
            if is_long or stop in stops:
                self._rollback.add_checkpoint(stop)
        if revocable:
            self._rollback.save(self.length)
        return tokens

    def _read(self, tokens: Sequence[int], n_rows: int) -> None:
        # The short batch comes first, so that the last one has all requested rows.
        n_batch = self.context.n_batch
        start, end = 0, len(tokens) % n_batch or n_batch
        while start < len(tokens):
            if self.context.interrupt.is_set():
                raise Cancelled
            if start:
                self._rollback.add_checkpoint(self.length)
            run_together([(self, tokens[start:end], n_rows if end >= len(tokens) else 0)])
            start, end = end, end + n_batch

    def begin_pass(self, tokens: Sequence[int], n_rows: int) -> Part:
        """Its part of a pass; `end_pass` must follow, unless an exception strikes."""
        # Unsure until `tokens` is right again: an exception may strike between any two lines.
        self._before = self._unsure, self._rollback.last
        self._unsure, self._rollback.last = True, -1
        return Part(self.sequence, self.length, tokens, n_rows)

    def end_pass(self, tokens: Sequence[int], first: int = 0) -> None:
        """The pass has read `tokens` (none: it changed nothing), from batch index `first` on."""
        if not tokens:
            self._unsure, self._rollback.last = self._before
            return
        self.tokens.extend(tokens)
        self._rollback.last = len(tokens) - 1
        self._unsure = False
        for listener in self.listeners:
            listener.on_pass(len(tokens), first)

    def forget_snapshots(self) -> None:
        """Passes of other sequences may have moved its state, and left these behind."""
        self._rollback.last = 0

    def reusable(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that it need not read again."""
        return self._rollback.length_after(common_prefix(self.tokens, prompt), self.length)

    def shareable(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt that another sequence of the context can `share`."""
        common = common_prefix(self.tokens, prompt)
        return common if self.rollback == "removal" else self._rollback.last_checkpoint(common)

    def checkpoint_at(self, length: int) -> None:
        """Save a checkpoint when it has read `length` tokens, for other sequences to copy."""
        self._rollback.plan_checkpoint(length, self.length)

    def share(self, other: SequenceCache, prompt: Sequence[int]) -> None:
        """Hold the prefix of a prompt that another sequence has, sharing its cells."""
        self.trim(0)
        length = other.shareable(prompt)
        if not length:
            return
        self._unsure = True
        memory = llama_cpp.llama_get_memory(self.pointer)
        llama_cpp.llama_memory_seq_cp(memory, other.sequence, self.sequence, 0, length)
        if self.rollback == "removal" or self._rollback.take_over(other._rollback, length):
            self.tokens[:] = other.tokens[:length]
            self._unsure = False

    def _roll_back(self, length: int) -> None:
        """Roll back to `length` or further, and drop what an interrupted pass may have left."""
        length = min(length, self.length)
        if length == self.length and not self._unsure:
            return
        self._unsure = True
        length = self._rollback.back(length, self.length)
        del self.tokens[length:]
        self._unsure = False


def decode_together(passes: Sequence[Pass]) -> list[Rows]:
    """Run passes of different sequences of one context as a single pass; returns the rows of each.

    All tokens together must fit into a batch. Raises what `SequenceCache.decode` does, and
    `CacheFullError` if the context has too few free cells; then nothing was read.
    """
    if len(passes) == 1:
        cache, tokens, n_rows = passes[0]
        return [cache.decode(tokens, n_rows)]
    # llama.cpp wants sequences in ascending order.
    caches = [cast(SequenceCache, each.cache) for each in passes]
    order = sorted(range(len(passes)), key=lambda k: caches[k].sequence)
    rows = dict(zip(order, caches[0].decode_all([passes[k] for k in order]), strict=True))
    return [rows[k] for k in range(len(passes))]


def open_caches(
    model: Model,
    n_ctx: int,
    max_rows: int,
    interrupt: Event,
    *,
    is_draft: bool = False,
    n_seq: int = 1,
) -> list[SequenceCache]:
    """The caches of all sequences of a new context; see `open_context` and `SequenceCache`."""
    footprint = Footprint(model.header, model.options)
    # A draft reads token by token, and snapshots only reach back to the last pass.
    snapshots = 0 if is_draft else footprint.snapshots(max_rows - 1, n_seq)
    rows = rows_of(max_rows, n_seq)
    context = open_context(model, n_ctx, rows, interrupt, snapshots=snapshots, n_seq=n_seq)
    swa = model.options.swa_full
    caches = [SequenceCache(context, swa, max_rows, is_draft, k) for k in range(n_seq)]
    for cache in caches:
        cache.model = model
        if n_seq > 1:  # one conversation alone may not need the whole context
            cache.n_ctx = min(n_ctx, model.n_ctx_train)
    return caches


def open_cache(model: Model, n_ctx: int, max_rows: int, interrupt: Event) -> SequenceCache:
    """The cache of the only sequence of a new context."""
    return open_caches(model, n_ctx, max_rows, interrupt)[0]
