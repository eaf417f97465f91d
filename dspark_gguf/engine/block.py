"""The cache of a block draft, which reads the target's features instead of tokens."""

from __future__ import annotations

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.engine import library, symbols
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.dflash import BlockDraft
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pairs import PairBatch
from dspark_gguf.engine.protocol import Block
from dspark_gguf.engine.sequence import SequenceCache

#: This many features may wait until a draft is wanted: a round without one costs a copy, no pass.
_PENDING = 256


class BlockDraftCache(Follower):
    """The memory of a block draft for one sequence, filled as the target reads it.

    After each pass of the target, it copies the inputs of the draft's target layers into a buffer
    that the next injection reads. Errors as `open_context` and ``symbols.py``.
    """

    kind = "block"
    draft: BlockDraft

    def __init__(
        self, model: Model, draft: BlockDraft, target: SequenceCache, n_ctx: int, context: Context
    ) -> None:
        needed = symbols.LAYERS + symbols.STATES
        set_layer, self._get_layer, set_nextn, self._get_nextn = symbols.functions(*needed)
        super().__init__(model, target, n_ctx, context, draft.block_size)
        self.draft = draft
        self.most_drafts = draft.most_drafts
        self._pending: list[int] = []
        waiting = min(_PENDING, model.options.n_ubatch, context.n_batch)
        shape = waiting, len(draft.target_layers) * draft.width
        self._features = np.empty(shape, dtype=np.float32)
        self._injection = PairBatch(self._features, target.sequence, model.has_multi_rope)
        with library.listening():
            for layer in draft.target_layers:
                set_layer(target.pointer, layer, True)
            set_nextn(self.pointer, True, not draft.has_selector)
            llama_cpp.llama_set_causal_attn(self.pointer, draft.causal)
        self._listen()

    @property
    def is_chained(self) -> bool:
        """Whether a row is conditioned on the best token of the row before it."""
        return self.draft.has_markov_head

    @property
    def seen(self) -> int:
        """Tokens whose features it has, in its cache or waiting."""
        return self.length + len(self._pending)

    @property
    def room(self) -> int:
        """Most tokens whose features it takes: a block must fit after them."""
        return self.n_ctx - self.draft.block_size

    def _copy(self, start: int, first: int, done: int, take: int) -> None:
        shape, pointer = (first + take, self.draft.width), self._target.pointer
        layers = [
            np.ctypeslib.as_array(self._get_layer(pointer, layer), shape)[first:]
            for layer in self.draft.target_layers
        ]
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
        """All tokens from position `length` on are void."""
        del self._pending[max(0, length - self.length) :]
        self.trim(length)

    def flush(self) -> None:
        """Read the waiting features."""
        if not self._pending:
            return
        self._take_back(self.length)  # an earlier injection may have been interrupted
        batch = self._injection.first(len(self._pending), self.length)
        self._unsure = True
        self.context.decode(batch)
        self.tokens += self._pending
        self._pending = []
        self._unsure = False

    def propose(self, last: int, count: int) -> Block:
        """One pass: guesses for the `count` tokens after `last`, valid until the next call."""
        self.flush()
        length = self.length
        skipped = 0 if self.draft.anchor_first else 1
        tokens = [last] + [self.draft.mask_token] * (count + skipped - 1)
        try:
            if self.draft.has_selector:
                self.decode(tokens, 0)
                lattice = self._nextn(len(tokens))[skipped:]
                return Block(walk(lattice, self.draft.selector_top_k, self.n_vocab))
            rows = self.decode(tokens, len(tokens))[skipped:]
            if not self.draft.has_confidence_head:
                return Block(rows)
            return Block(rows, self._nextn(len(tokens))[skipped:, 0].tolist())
        finally:
            self._take_back(length)

    def _nextn(self, count: int) -> npt.NDArray[np.float32]:
        pointer = self._get_nextn(self.pointer)
        return np.ctypeslib.as_array(pointer, (count, self.draft.width)).copy()


def walk(lattice: npt.NDArray[np.float32], k: int, n_vocab: int) -> list[npt.NDArray[np.float32]]:
    """The greedy path through DFlash2's lattice, as rows of logits that know only its candidates.

    A row of the lattice holds the ids of `k` candidates, then for each candidate of the row before
    the scores of these.
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
