"""Caches of drafts that read the target's hidden states: heads (MTP), assistants, EAGLE-3.

All of them read pairs: a token, and the target's *state* at the token before it. Beyond the
target's last token, a draft uses its own states. Whoever needs one row of a pass requests all of
them: for some models llama.cpp returns the first rows, whichever were requested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from dspark_gguf.config import MAX_DRAFT
from dspark_gguf.engine import library, symbols
from dspark_gguf.engine.context import Context
from dspark_gguf.engine.follower import Follower, groups_of
from dspark_gguf.engine.heads import EagleDraft, HeadDraft
from dspark_gguf.engine.model import Model
from dspark_gguf.engine.pairs import Floats, PairBatch, Pairs
from dspark_gguf.engine.protocol import Block, Pass, Rows, common_prefix
from dspark_gguf.engine.sequence import SequenceCache

#: States that may wait for a draft: a round without one costs a copy instead of a pass.
_PENDING = 256
#: States kept beyond these, so that a rollback does not make the target read again.
RECENT = MAX_DRAFT + 8
#: Number of states kept for edits, at the ends of prompts and of passes longer than this.
_KEPT, _LONG = 16, 16


class StateCache(Follower):
    """The cache of one prediction head for one sequence; further guesses use its own states.

    Row P of its cache is computed from token P and the target's state at P - 1, zero for the first.
    Raises what `open_context` and ``symbols.py`` do.
    """

    kind, is_head = "mtp", True
    draft: HeadDraft | EagleDraft
    _first = 0  # the token of its first pair

    def __init__(
        self,
        model: Model,
        draft: HeadDraft | EagleDraft,
        target: SequenceCache,
        n_ctx: int,
        context: Context,
    ) -> None:
        super().__init__(model, target, n_ctx, context, draft.rows)
        self.draft = draft
        needed = symbols.STATES + symbols.OWN_STATE
        self._set_states, self._get_states, self._get_own = symbols.functions(*needed)
        self._said: list[int] = []  # the tokens that were seen; the target may have dropped some
        # The states of these, from position `_base` on.
        self._states = np.zeros((_PENDING + RECENT, self._target_width), dtype=np.float32)
        self._base = self._end = 0
        self._kept: dict[int, Floats] = {}
        self._chunk = min(_PENDING, max(model.options.n_ubatch, draft.rows), context.n_batch)
        shape = self._chunk, max(draft.width, self._target_width)
        self._batch = PairBatch(np.zeros(shape, dtype=np.float32), target.sequence)
        self._own = np.empty((0, draft.width), dtype=np.float32)
        self._guessed = 0
        with library.listening():
            self._switch_on()
            self._set_states(self.pointer, True, True)
        self._listen()

    def _switch_on(self) -> None:
        """Make the target expose its states."""
        self._set_states(self._target.pointer, True, False)

    @property
    def _target_width(self) -> int:
        """Width of the state that it copies for each of the target's tokens."""
        return self.draft.width

    def _of_target(self, count: int) -> Floats:
        """The first rows of the target's last pass, ``[count, width]``."""
        pointer = self._get_states(self._target.pointer)
        return np.ctypeslib.as_array(pointer, (count, self.draft.width))

    @property
    def seen(self) -> int:
        """Tokens whose states it has received."""
        return len(self._said)

    @property
    def covered(self) -> int:
        """Position of the token of the next pair to read."""
        return self.length + self._first

    def is_ready(self, length: int) -> bool:
        """Whether it can draft after the first `length` tokens."""
        return self._base < self.seen == length

    def begin(self, tokens: Sequence[int]) -> None:
        """An answer begins after `tokens`: keep their prefix, make the target reread the rest."""
        self._target.reuse_prefix(tokens)
        self._roll_back(common_prefix(self.tokens, tokens[self._first :]))
        self._settle()
        self.repair()
        self._end = len(tokens)

    def repair(self) -> None:
        """Make the target reread tokens whose states this cache missed.

        A recurrent target would have to reread much for the state of a single token, so that state
        is taken as zero, which spoils one pair of many.
        """
        rereads = self._target.rollback in ("snapshots", "replay")
        if rereads and self._base == self.seen == self._target.length - 1:
            self._states[0] = 0.0
            self._said.append(self._target.tokens[-1])
        super().repair()

    def adopt(self, tokens: Sequence[int]) -> None:
        """See `SequenceCache`; call it after the target's. The newest token's state is missing."""
        super().adopt(tokens)
        self._said = self._target.tokens[: self.covered - 1]
        self._base = self.covered - 1
        self._kept = {}

    def share(self, other: SequenceCache, prompt: Sequence[int]) -> None:
        """See `SequenceCache`; call it after the target's. Copies the newest state too if known."""
        assert isinstance(other, StateCache)
        if other.is_ready(other._target.length):
            other.flush()
        super().share(other, prompt[self._first :])
        self.adopt(self.tokens)
        place, state = self._base - other._base, other._kept.get(self._base)
        if 0 <= place < len(other._said) - other._base:
            state = other._states[place]
        if state is not None and self._base < self._target.length:
            self._states[0] = state
            self._said.append(self._target.tokens[self._base])

    def on_trim(self, length: int) -> None:
        """Drop all tokens from position `length` on; the next one may be the same again."""
        self._roll_back(length + 1 - self._first if length else 0)
        del self._said[length:]
        self._kept = {place: row for place, row in self._kept.items() if place < length}
        self._settle()

    trim = on_trim

    def _settle(self) -> None:
        """Make sure that the next pair's state is available, or will be read again."""
        needed = max(self.covered - 1, 0)
        if needed >= self._base:
            return
        # Ordered so that an exception between two lines cannot pair a token with a wrong state.
        token = self._said[needed : needed + 1]
        del self._said[needed:]
        self._base = needed
        if needed in self._kept:
            self._states[0] = self._kept[needed]
            self._said += token

    def on_pass(self, count: int, first: int) -> None:
        """Copy the states of what the target has just read, unless an exception left a gap."""
        if self._base > self.seen:
            return  # an exception struck; `begin` repairs it
        start = max(self._target.length - count - self._first, 0)
        read = self._target.tokens[start + self._first :]
        if self.length > start and self.tokens[start:] != read[: self.length - start]:
            self._roll_back(start + common_prefix(self.tokens[start:], read))
            self._settle()
        super().on_pass(count, first)

    def _copy(self, start: int, first: int, done: int, take: int) -> None:
        rows = self._of_target(first + take)[first:]
        while done < take:
            held = self.seen - self._base
            if held == len(self._states):
                self.flush()
                held, self._base = min(held, RECENT), self.seen
                self._states[:held] = self._states[len(self._states) - held :].copy()
                self._base = self.seen - held
            part = min(take - done, len(self._states) - held)
            self._states[held : held + part] = rows[done : done + part]
            self._said += self._target.tokens[start + done : start + done + part]
            done += part
        # For edits: keep the states at the end of the prompt and of long passes.
        for row in {self._end - 1 - start, take - 1 if take > _LONG else -1}:
            if 0 <= row < take:
                self._kept[start + row] = rows[row].copy()
        while len(self._kept) > _KEPT:
            del self._kept[min(self._kept)]

    def _states_before(self, start: int, stop: int) -> Floats:
        """The state before each token from `start` to `stop`."""
        place = start - 1 - self._base
        if start:
            return self._states[place : place + stop - start]
        zeros = np.zeros((1, self._target_width), dtype=np.float32)
        return np.concatenate([zeros, self._states[: stop - 1]])

    def flush(self) -> None:
        """Read the waiting pairs, except that of the newest token."""
        self._roll_back(self.length)
        while self.covered < self.seen:
            stop = min(self.covered + self._chunk, self.seen)
            tokens = self._said[self.covered : stop]
            states = self._states_before(self.covered, stop)
            batch = self._batch.at(self._place(0), tokens, states, False)
            self._unsure = True
            self.context.decode(batch)
            self._keep(tokens)

    def opening(self, last: int, count: int = 1) -> list[int]:
        """The tokens of all waiting pairs, and `last`, which goes with the newest state."""
        self._guessed = 0
        return [*self._said[self.covered :], last]

    def decode(self, tokens: Sequence[int], n_rows: int) -> Floats:
        """The row of the next guess, ``[1, n_vocab]``: after an `opening`, of the first one.

        Later guesses follow a token that was drawn from the row before.
        """
        return guess_together([self], [tokens[-1]])[0][None]

    def decode_all(self, passes: Sequence[Pass]) -> list[Rows]:
        """See `SequenceCache`; one pass if it has room for everything."""
        if not self.joins:
            return super().decode_all(passes)
        caches = [cast(StateCache, each.cache) for each in passes]
        most, found = min(self.context.max_rows, self._batch.rows), list[Rows]()
        for group in groups_of([len(each.tokens) for each in passes], most):
            rows = guess_together([caches[k] for k in group], [passes[k].tokens[-1] for k in group])
            # The next pass overwrites these rows.
            found += [row[None] if len(group) == len(passes) else row[None].copy() for row in rows]
        return found

    def next_pairs(self, token: int) -> Pairs:
        """The pairs to read for the next guess, after `token`."""
        if self._guessed:
            # Guessed tokens are dropped before anything else is read.
            return Pairs(self.sequence, self._place(self._guessed - 1), [token], self._own)
        self._roll_back(self.seen - self._first)
        if self.seen - self.covered >= self.draft.rows:
            self.flush()
        tokens = [*self._said[self.covered :], token]
        states = self._states_before(self.covered, self.seen + 1)
        return Pairs(self.sequence, self._place(0), tokens, states)

    def end_guess(self, pairs: Pairs, row: int) -> Floats:
        """A pass has read these pairs; returns its logits at `row`."""
        if not self._guessed:
            self._keep(pairs.tokens)
        self._guessed += 1
        return self._result(row)

    def _keep(self, tokens: Sequence[int]) -> None:
        """Keep tokens that were read with the target's states."""
        self.tokens += tokens
        self._unsure = False

    def _place(self, guessed: int) -> int:
        """The position after `guessed` guessed tokens."""
        return self.length + guessed

    def _result(self, row: int) -> Floats:
        pointer = self._get_own(self.pointer, row)
        self._own = np.ctypeslib.as_array(pointer, (1, self.draft.width)).copy()
        return cast(Floats, self.context.rows(row, 1)[0])

    def propose(self, last: int, count: int) -> Block:
        """Greedy guesses for the `count` tokens after `last`."""
        rows = [self.decode(self.opening(last), 1)[0].copy()]
        while len(rows) < count:
            rows.append(self.decode([int(rows[-1].argmax())], 1)[0].copy())
        return Block(rows)


def guess_together(caches: Sequence[StateCache], tokens: Sequence[int]) -> list[Floats]:
    """The rows of the next guesses, each after its token, from one pass; raises like `decode`.

    The caches belong to sequences of one context, in ascending order.
    """
    parts = [cache.next_pairs(token) for cache, token in zip(caches, tokens, strict=True)]
    for cache in caches:
        cache._unsure = True
    first = caches[0]
    first.context.decode(first._batch.of(parts, True))
    rows, end = [], 0
    for cache, pairs in zip(caches, parts, strict=True):
        end += len(pairs.tokens)
        rows.append(cache.end_guess(pairs, end - 1))
    return rows
