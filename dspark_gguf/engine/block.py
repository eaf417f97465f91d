"""The cache of a block draft: it is filled with the target's features, not with tokens."""

from __future__ import annotations

import ctypes
from threading import Event
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.engine import library, symbols
from dspark_gguf.engine.context import open_context
from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.footprint import Footprint
from dspark_gguf.engine.gguf import read_header
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.protocol import Block, Rows
from dspark_gguf.engine.sequence import SequenceCache, rollback_of

#: Features are kept until there are so many, or until a draft is asked for: rounds without a draft
#: then cost a copy and no pass.
_PENDING = 256


class BlockDraftCache(SequenceCache):
    """One sequence in the memory of a block draft, filled as the target reads it.

    It listens to the target's cache: after each of the target's passes what entered the draft's
    target layers is copied, once, into the buffer that the next injection reads; what the target
    takes back, it takes back. `length` tokens are in its cache, `seen` counts the waiting ones too.

    Args:
        model: the draft's weights.
        draft: what its header says.
        target: the target's cache, which it must not outlive.
        n_ctx: most tokens it can hold.
        interrupt: as in `open_context`.

    Raises:
        EngineError: this build lacks the entry points.
        ResourceError: no memory for its cache.

    """

    kind = "block"

    def __init__(
        self, model: Model, draft: BlockDraft, target: SequenceCache, n_ctx: int, interrupt: Event
    ) -> None:
        symbols.require_all()
        rows = draft.block_size
        context = open_context(model, n_ctx, rows, interrupt, features_of=target.context)
        super().__init__(context, rollback_of(model, context), rows)
        self.model, self._target, self.draft = model, target, draft
        self.cache_bytes = Footprint(read_header(model.path), model.options).cache_bytes(n_ctx)
        self.most_drafts = draft.most_drafts
        self._pending: list[int] = []
        layers = draft.target_layers
        rows = min(_PENDING, model.options.n_ubatch, context.n_batch)
        self._features = np.empty((rows, len(layers) * draft.width), dtype=np.float32)
        self._injection = _Injection(self._features, is_mrope=model.has_multi_rope)
        set_layer = symbols.function("llama_set_embeddings_layer_inp")
        set_nextn = symbols.function("llama_set_embeddings_nextn")
        with library.listening():
            for layer in layers:
                set_layer(target.pointer, layer, True)
            set_nextn(self.pointer, True, not draft.has_selector)
            llama_cpp.llama_set_causal_attn(self.pointer, draft.causal)
        self._get_layer = symbols.function("llama_get_embeddings_layer_inp")
        self._get_nextn = symbols.function("llama_get_embeddings_nextn")
        # What the target read before anybody listened has to be read again.
        target.trim(0)
        target.listeners.append(self)

    @property
    def is_chained(self) -> bool:
        """Whether a row is conditioned on the best token of the row before it."""
        return self.draft.has_markov_head

    @property
    def seen(self) -> int:
        """Tokens whose features it has."""
        return self.length + len(self._pending)

    @property
    def room(self) -> int:
        """Most tokens whose features it takes: a block has to fit behind them."""
        return self.n_ctx - self.draft.block_size

    def repair(self) -> None:
        """Make the target forget what it read without our seeing it (after an exception)."""
        if self.seen < min(self._target.length, self.room):
            self._target.trim(self.seen)

    def passed(self, count: int) -> None:
        """The target has read `count` tokens more: take their features.

        Those that it had to read again are known. Nothing is taken after a gap: a pass that an
        exception hid from us.
        """
        start = self._target.length - count
        done, take = self.seen - start, min(count, self.room - start)
        if done < 0 or take <= done:
            return
        layers = [
            np.ctypeslib.as_array(self._get_layer(self._target.pointer, layer), (count, width))
            for layer, width in zip(self.draft.target_layers, self._widths(), strict=True)
        ]
        while done < take:
            first = len(self._pending)
            part = min(take - done, len(self._features) - first)
            for k, rows in enumerate(layers):
                place = slice(k * self.draft.width, (k + 1) * self.draft.width)
                self._features[first : first + part, place] = rows[done : done + part]
            self._pending += self._target.tokens[start + done : start + done + part]
            done += part
            if len(self._pending) == len(self._features):
                self.flush()

    def trimmed(self, length: int) -> None:
        """All tokens from position `length` on are void."""
        del self._pending[max(0, length - self.length) :]
        self.trim(length)

    def flush(self) -> None:
        """Read the features that wait.

        Raises:
            EngineError: llama.cpp failed.

        """
        if not self._pending:
            return
        self._take_back(self.length)  # where an earlier injection was interrupted
        count = len(self._pending)
        batch = self._injection.at(self.length, count)
        self._unsure = True
        self.context.decode(batch)
        self.tokens += self._pending
        self._pending = []
        self._unsure = False

    def propose(self, last: int, count: int) -> Block:
        """One pass: guesses for the `count` tokens that follow `last`.

        The block is gone from the cache afterwards; its rows are valid until the next call.
        """
        self.flush()
        length = self.length
        skipped = 0 if self.draft.anchor_first else 1
        tokens = [last] + [self.draft.mask_token] * (count + skipped - 1)
        try:
            if self.draft.has_selector:
                self.decode(tokens, 0)
                lattice = self._nextn(len(tokens))[skipped:]
                return Block(walk(lattice, self.draft.selector_top_k, self.n_vocab))
            rows = _Tail(self.decode(tokens, len(tokens)), skipped)
            if not self.draft.has_confidence_head:
                return Block(rows)
            return Block(rows, self._nextn(len(tokens))[skipped:, 0].tolist())
        finally:
            self._take_back(length)

    def _nextn(self, count: int) -> npt.NDArray[np.float32]:
        pointer = self._get_nextn(self.pointer)
        return np.ctypeslib.as_array(pointer, (count, self.draft.width)).copy()

    def _widths(self) -> list[int]:
        return [self.draft.width] * len(self.draft.target_layers)


class _Injection:
    """A batch of features, in memory of our own: the target's rows are copied into it directly."""

    def __init__(self, features: npt.NDArray[np.float32], is_mrope: bool) -> None:
        rows = len(features)
        self._features, self._is_mrope = features, is_mrope
        # A multi-axis rotary embedding wants four positions a token, axis by axis.
        self._positions = np.zeros(4 * rows, dtype=np.int32)
        self._sequences = np.zeros(rows, dtype=np.int32)
        self._counts = np.ones(rows, dtype=np.int32)
        self._outputs = np.zeros(rows, dtype=np.int8)
        address = self._sequences.ctypes.data
        self._rows = (ctypes.POINTER(ctypes.c_int32) * rows)(
            *(ctypes.cast(address + 4 * k, ctypes.POINTER(ctypes.c_int32)) for k in range(rows))
        )
        batch = llama_cpp.llama_batch()
        batch.embd = features.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        batch.pos = self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = ctypes.cast(self._rows, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))
        batch.logits = self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        self._batch = batch

    def at(self, position: int, count: int) -> Any:
        """The batch of the first `count` rows, from `position` on."""
        axes = 3 if self._is_mrope else 1
        steps = np.arange(position, position + count, dtype=np.int32)
        self._positions[: axes * count] = np.tile(steps, axes)
        if self._is_mrope:
            self._positions[3 * count : 4 * count] = 0
        self._batch.n_tokens = count
        return self._batch


class _Tail:
    """Rows but the first few."""

    def __init__(self, rows: Rows, skipped: int) -> None:
        self._rows, self._skipped = rows, skipped

    def __len__(self) -> int:
        return len(self._rows) - self._skipped

    def __getitem__(self, k: int) -> npt.NDArray[np.float32]:
        return self._rows[k + self._skipped]


def walk(lattice: Rows, top_k: int, n_vocab: int) -> list[npt.NDArray[np.float32]]:
    """The greedy path through DFlash2's lattice, as rows that know only its candidates.

    A row of the lattice holds the candidates' ids, then for each candidate of the position before
    it the scores of all of its own.
    """
    rows: list[npt.NDArray[np.float32]] = []
    before = 0
    for k in range(len(lattice)):
        position = lattice[k]
        row = np.full(n_vocab, -np.inf, dtype=np.float32)
        scores = position[top_k * (before + 1) : top_k * (before + 2)]
        row[position[:top_k].astype(np.int64)] = scores
        before = int(scores.argmax())
        rows.append(row)
    return rows
