"""The cache of a block draft, which reads the target's features instead of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine import library, symbols
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.follower import Follower, groups_of
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pairs import PairBatch, Pairs
from dspark_gguf.engine.passes import run_together
from dspark_gguf.engine.protocol import Block, Pass, Rows
from dspark_gguf.engine.sequence import SequenceCache

#: Features that may wait for a draft: a round without one costs a copy instead of a pass.
_PENDING = 256


class BlockDraftCache(Follower):
    """The KV cache of a block draft for one sequence, filled as the target reads tokens.

    After each pass of the target, it copies the inputs of the draft's target layers into a buffer
    that the next injection reads. Raises what `open_context` and ``symbols.py`` do.
    """

    kind = "block"
    draft: BlockDraft

    def __init__(
        self, model: Model, draft: BlockDraft, target: SequenceCache, n_ctx: int, context: Context
    ) -> None:
        layers = draft.target_layers
        self._inputs = symbols.LayerInputs(target.pointer, layers, draft.width)
        set_nextn, self._get_nextn = symbols.functions(*symbols.STATES)
        super().__init__(model, target, n_ctx, context, draft.block_size)
        self.draft = draft
        self.max_drafts = min(draft.max_drafts, MAX_DRAFT)
        self._pending: list[int] = []
        waiting = min(_PENDING, model.options.n_ubatch, context.n_batch)
        shape = waiting, len(layers) * draft.width
        self._features = np.empty(shape, dtype=np.float32)
        self._injection = PairBatch(self._features, target.sequence, model.has_multi_rope)
        with library.listening():
            set_nextn(self.pointer, True, not draft.has_selector)
            llama_cpp.llama_set_causal_attn(self.pointer, draft.causal)
        self._listen()

    @property
    def is_chained(self) -> bool:
        """Whether a row is conditioned on the best token of the row before it."""
        return self.draft.has_markov_head

    @property
    def seen(self) -> int:
        """Tokens whose features are in its cache or in the buffer."""
        return self.length + len(self._pending)

    @property
    def room(self) -> int:
        """Maximum tokens whose features it can hold: a block must fit after them."""
        return self.n_ctx - self.draft.block_size

    def _copy(self, start: int, first: int, done: int, take: int) -> None:
        layers = [rows[first:] for rows in self._inputs.rows(first + take)]
        while done < take:
            held = len(self._pending)
            part = min(take - done, len(self._features) - held)
            for k, rows in enumerate(layers):
                place = slice(k * self.draft.width, (k + 1) * self.draft.width)
                self._features[held : held + part, place] = rows[done : done + part]
            self._pending += self._target.tokens[start + done : start + done + part]
            done += part
            if len(self._pending) == len(self._features):
                self.flush()

    def on_trim(self, length: int) -> None:
        """Drop all tokens from position `length` on."""
        del self._pending[max(0, length - self.length) :]
        super().trim(length)

    trim = on_trim

    def flush(self) -> None:
        """Read the features in the buffer."""
        inject([self])

    def opening(self, last: int, count: int = 1) -> list[int]:
        """The tokens of a block that guesses `count` tokens after `last`.

        A block's rows were trained together, but a shorter block guesses nearly as well: with a
        draft of block size five, 32.8 % instead of 34.1 % of the first guesses were right.
        """
        return [last] + [self.draft.mask_token] * (count + self._skipped - 1)

    @property
    def _skipped(self) -> int:
        """Tokens at the start of a block that yield no guess."""
        return 0 if self.draft.anchor_first else 1

    def propose(self, last: int, count: int) -> Block:
        """One pass: guesses for the `count` tokens after `last`, valid until the next call."""
        return guess_blocks([self], [self.opening(last, count)])[0]

    def decode(self, tokens: Sequence[int], n_rows: int) -> Block:  # type: ignore[override]
        """The guesses of the block `tokens`."""
        return guess_blocks([self], [tokens])[0]

    def decode_all(self, passes: Sequence[Pass]) -> list[Rows]:
        """See `SequenceCache`; one pass if it has room for all blocks.

        A shorter block is filled up and gets more guesses than it asked for: llama.cpp takes all
        blocks of a pass to have one length, and ends the process where that cannot be.
        """
        caches = [cast(BlockDraftCache, each.cache) for each in passes]
        longest, found = max(len(each.tokens) for each in passes), list[Rows]()
        masks = [self.draft.mask_token] * longest
        blocks = [[*each.tokens, *masks[len(each.tokens) :]] for each in passes]
        for group in groups_of([len(cache._pending) for cache in caches], len(self._features)):
            inject([caches[k] for k in group])
        for group in groups_of([longest] * len(blocks), self.context.max_rows):
            own = guess_blocks([caches[k] for k in group], [blocks[k] for k in group])
            # The next pass overwrites these rows.
            found += own if len(group) == len(passes) else [each.copy() for each in own]
        return found

    def guesses(self, first: int, count: int) -> Block:
        """Guesses for its block of `count` tokens, which starts at row `first` of the last pass."""
        rows, skipped = slice(first + self._skipped, first + count), self._skipped
        if self.draft.has_selector:
            lattice = self._nextn(first + count)[rows]
            return Block(walk(lattice, self.draft.selector_top_k, self.n_vocab))
        logits = self.context.rows(first, count)[skipped:]
        if not self.draft.has_confidence_head:
            return Block(logits)
        return Block(logits, self._nextn(first + count)[rows, 0].tolist())

    def _nextn(self, count: int) -> npt.NDArray[np.float32]:
        pointer = self._get_nextn(self.pointer)
        return np.ctypeslib.as_array(pointer, (count, self.draft.width)).copy()


def inject(caches: Sequence[BlockDraftCache]) -> None:
    """Read the buffered features of sequences of one context, in ascending order, in one pass."""
    caches = [cache for cache in caches if cache._pending]
    if not caches:
        return
    for cache in caches:
        cache._roll_back(cache.length)  # an earlier injection may have been interrupted
        cache._unsure = True
    first, counts = caches[0], [len(cache._pending) for cache in caches]
    batch = first._injection.first(counts[0], first.length)  # its features are in place
    if len(caches) > 1:
        batch = first._injection.of(
            [
                Pairs(cache.sequence, cache.length, (), cache._features[:count])
                for cache, count in zip(caches, counts, strict=True)
            ],
            False,
        )
    first.context.decode(batch)
    for cache in caches:
        cache.tokens += cache._pending
        cache._pending = []
        cache._unsure = False


def guess_blocks(caches: Sequence[BlockDraftCache], blocks: Sequence[Sequence[int]]) -> list[Block]:
    """Read the buffered features, then guess these blocks in one pass; valid until the next.

    The caches belong to sequences of one context, in ascending order.
    """
    inject(caches)
    lengths = [cache.length for cache in caches]
    parts, first, found = [], 0, list[Block]()
    try:
        for cache, tokens in zip(caches, blocks, strict=True):
            n_rows = 0 if cache.draft.has_selector else len(tokens)
            parts.append((cache, cache.prepare(tokens, n_rows), n_rows))
        run_together(parts)
        for cache, tokens in zip(caches, blocks, strict=True):
            found.append(cache.guesses(first, len(tokens)))
            first += len(tokens)
        return found
    finally:
        for cache, length in zip(caches, lengths, strict=True):
            cache._roll_back(length)


def walk(lattice: npt.NDArray[np.float32], k: int, n_vocab: int) -> list[npt.NDArray[np.float32]]:
    """The greedy path through DFlash2's lattice, as rows of logits that are -inf elsewhere.

    A row of the lattice holds the ids of `k` candidates, then their scores after each candidate of
    the row before.
    """
    rows: list[npt.NDArray[np.float32]] = []
    before = 0
    for position in lattice:
        row = np.full(n_vocab, -np.inf, dtype=np.float32)
        scores = position[k * (before + 1) : k * (before + 2)]
        row[position[:k].astype(np.int64)] = scores
        before = int(scores.argmax())
        rows.append(row)
    return rows
