"""Caches of other drafts on a target's states: several heads, an assistant, EAGLE-3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dspark_gguf.engine import library, symbols
from dspark_gguf.engine.follower import Follower
from dspark_gguf.engine.heads import EagleDraft, HeadDraft
from dspark_gguf.engine.pairs import Floats
from dspark_gguf.engine.states import RECENT, StateCache


class HeadsCache(StateCache):
    """The cache of several heads: the k-th head makes the k-th guess.

    They share positions, and each has its own layer, so each must read all tokens. A pass runs one
    head, for one conversation.
    """

    joins = False
    draft: HeadDraft

    def __init__(self, *parts: Any) -> None:
        [self._set_head] = symbols.functions(*symbols.HEAD)
        self._chain: list[int] = []
        self._complete = 0  # rows that all heads have read
        super().__init__(*parts)
        self.max_drafts = self.draft.heads

    def flush(self) -> None:
        """Read the waiting pairs with each head, except that of the newest token."""
        self._roll_back(self.length)
        length = self._complete
        for head in range(self.draft.heads if self.covered < self.seen else 0):
            self._unsure = True
            self._roll_back(length)
            self._use(head, super().flush)
        self._complete = self.length

    def adopt(self, tokens: Sequence[int]) -> None:
        """See `StateCache`: a saved state has what all heads read."""
        super().adopt(tokens)
        self._complete = self.length

    def _roll_back(self, length: int) -> None:
        """Also drops what only some heads have read, after an exception."""
        super()._roll_back(min(length, self._complete))
        self._complete = min(self._complete, self.length)

    def _use(self, head: int, work: Any, *arguments: Any) -> None:
        with library.listening():
            self._set_head(self.pointer, head)
        try:
            work(*arguments)
        finally:
            with library.listening():
                self._set_head(self.pointer, 0)

    def decode(self, tokens: Sequence[int], n_rows: int) -> Floats:
        """See `StateCache`: each head reads the whole chain; the newest token's row is dropped."""
        if not self._guessed:
            self._roll_back(self.seen)
            self.flush()
            self._own = self._states_before(self.seen, self.seen + 1).copy()
            self._chain = []
        self._unsure = True
        self._roll_back(self.length)
        self._unsure = True
        self._chain.append(tokens[-1])
        self._guessed = len(self._chain)
        states, row = self._own, self._guessed - 1
        batch = self._batch.at(self.length, self._chain, states, True)
        self._use(row, self.context.decode, batch)
        logits = self._result(row)
        self._own = np.concatenate([states, self._own])
        return logits[None]


class AssistantCache(StateCache):
    """A Gemma 4 assistant: it reads the target's KV cache and has none itself.

    All guesses of a round are made at the position of the newest token.
    """

    @property
    def covered(self) -> int:
        """Nothing waits."""
        return self.seen

    def _roll_back(self, length: int) -> None:
        """There is nothing to roll back."""

    begin = Follower.begin  # it only needs the newest state

    def on_pass(self, count: int, first: int) -> None:
        """Keep the last states and the one before: a whole pass may be rolled back."""
        part, length = min(count, RECENT), self._target.length
        same = min(length - count, len(self._said))
        before = self._states[0:0]
        if part == count and self._base < self.seen == length - count:
            before = self._states[self.seen - 1 - self._base, None].copy()
        self._base = length + 1  # not ready until the states are copied
        kept = len(before)
        self._states[:kept] = before
        self._states[kept : kept + part] = self._of_target(first + count)[first + count - part :]
        self._said[same:] = self._target.tokens[same:]
        self._base = length - part - kept

    def _settle(self) -> None:
        self._base = min(self._base, self.seen)

    def repair(self) -> None:
        """Make the target reread its last token if the state was lost."""
        if self._target.length and not self.is_ready(self._target.length):
            self._target.trim(self._target.length - 1)

    def _keep(self, tokens: Sequence[int]) -> None:
        """There is no cache to update."""

    def _place(self, guessed: int) -> int:
        return self.seen


class EagleCache(StateCache):
    """The cache of an EAGLE-3 draft, whose states are features of three of the target's layers.

    Row P of its cache is computed from token P + 1 and the fused features of token P.
    """

    kind, is_head, _first = "eagle3", False, 1
    draft: EagleDraft

    def _switch_on(self) -> None:
        layers, width = self.draft.target_layers, self.draft.target_width
        self._inputs = symbols.LayerInputs(self._target.pointer, layers, width)

    @property
    def _target_width(self) -> int:
        return len(self.draft.target_layers) * self.draft.target_width

    def _of_target(self, count: int) -> Floats:
        return np.concatenate(self._inputs.rows(count), axis=1)

    def _states_before(self, start: int, stop: int) -> Floats:
        """The features, fused by the draft's encoder, which has no cache."""
        features = super()._states_before(start, stop)
        batch = self._batch.at(self.length, (), features, False)
        self.context.encode(batch)
        pointer = self._get_states(self.pointer)
        return np.ctypeslib.as_array(pointer, (len(features), self.draft.width)).copy()
