"""Caches of drafts that go on from their target's states: heads (MTP), assistants, EAGLE-3.

All of them read pairs: a token, and the *state* that the target had at the token before it. Where
the target has not been yet, a draft goes on from its own states. One row of a pass that is read
from flags all its rows: of some models llama.cpp returns the first rows, however few are flagged.
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

#: So many states may wait until a draft is wanted: a round without one costs a copy, no pass.
_PENDING = 256
#: States behind these stay, so that what a round takes back needs no second look at the target.
RECENT = MAX_DRAFT + 8
#: States where reading may go on after an edit: at the ends of prompts and of long passes.
_KEPT, _LONG = 16, 16


class StateCache(Follower):
    """The memory of one prediction head for one sequence; it guesses on from its own states.

    Row P of its cache is made of token P and the target's state at P - 1, which is zero for the
    first. Errors as `open_context` and ``symbols.py``.
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
        """Make the target hand out what it reads."""
        self._set_states(self._target.pointer, True, False)

    @property
    def _target_width(self) -> int:
        """Numbers that it copies of each of the target's tokens."""
        return self.draft.width

    def _of_target(self, count: int) -> Floats:
        """The first rows of the target's last pass, ``[count, width]``."""
        pointer = self._get_states(self._target.pointer)
        return np.ctypeslib.as_array(pointer, (count, self.draft.width))

    @property
    def seen(self) -> int:
        """Tokens whose states it has had."""
        return len(self._said)

    @property
    def covered(self) -> int:
        """The token of the next pair that it would read."""
        return self.length + self._first

    def is_ready(self, length: int) -> bool:
        """Whether it can go on from the first `length` tokens."""
        return self._base < self.seen == length

    def begin(self, tokens: Sequence[int]) -> None:
        """An answer begins after `tokens`: keep what is true of them, and see what is missing."""
        self._target.reuse_prefix(tokens)
        self._take_back(common_prefix(self.tokens, tokens[self._first :]))
        self._settle()
        self.repair()
        self._end = len(tokens)

    def repair(self) -> None:
        """Make the target read again what it read unseen.

        A recurrent target would have to read much again for the state of one token: there, that
        state is taken to be zero, which spoils one pair of many.
        """
        rereads = self._target.rollback in ("snapshots", "replay")
        if rereads and self._base == self.seen == self._target.length - 1:
            self._states[0] = 0.0
            self._said.append(self._target.tokens[-1])
        super().repair()

    def adopt(self, tokens: Sequence[int]) -> None:
        """As any cache, after the target did so; the state of the newest token is missing."""
        super().adopt(tokens)
        self._said = self._target.tokens[: self.covered - 1]
        self._base = self.covered - 1
        self._kept = {}

    def share(self, other: SequenceCache, prompt: Sequence[int]) -> None:
        """As any cache, after the target did so; also the state of the newest token, if known."""
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
        """All tokens from position `length` on are void; the next one may be the same again."""
        self._take_back(length + 1 - self._first if length else 0)
        del self._said[length:]
        self._kept = {place: row for place, row in self._kept.items() if place < length}
        self._settle()

    trim = on_trim

    def _settle(self) -> None:
        """See to it that the state of the next pair is there, or will be read again."""
        needed = max(self.covered - 1, 0)
        if needed >= self._base:
            return
        # In an order that an exception between two lines leaves no state in another one's place.
        token = self._said[needed : needed + 1]
        del self._said[needed:]
        self._base = needed
        if needed in self._kept:
            self._states[0] = self._kept[needed]
            self._said += token

    def on_pass(self, count: int, first: int) -> None:
        """Copy the states of what the target has just read, unless an exception left a gap."""
        if self._base > self.seen:
            return  # an exception struck: `begin` mends it
        start = max(self._target.length - count - self._first, 0)
        read = self._target.tokens[start + self._first :]
        if self.length > start and self.tokens[start:] != read[: self.length - start]:
            self._take_back(start + common_prefix(self.tokens[start:], read))
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
        # Where reading may begin again: at the end of the prompt, and of long passes.
        for row in {self._end - 1 - start, take - 1 if take > _LONG else -1}:
            if 0 <= row < take:
                self._kept[start + row] = rows[row].copy()
        while len(self._kept) > _KEPT:
            del self._kept[min(self._kept)]

    def _states_before(self, start: int, stop: int) -> Floats:
        """What goes with the tokens from `start` to `stop`: the state before each."""
        place = start - 1 - self._base
        if start:
            return self._states[place : place + stop - start]
        zeros = np.zeros((1, self._target_width), dtype=np.float32)
        return np.concatenate([zeros, self._states[: stop - 1]])

    def flush(self) -> None:
        """Read the pairs that wait, but for that of the newest token."""
        self._take_back(self.length)
        while self.covered < self.seen:
            stop = min(self.covered + self._chunk, self.seen)
            tokens = self._said[self.covered : stop]
            states = self._states_before(self.covered, stop)
            batch = self._batch.at(self._place(0), tokens, states, False)
            self._unsure = True
            self.context.decode(batch)
            self._keep(tokens)

    def opening(self, last: int, count: int = 1) -> list[int]:
        """All pairs that wait, and `last` with the newest state."""
        self._guessed = 0
        return [*self._said[self.covered :], last]

    def decode(self, tokens: Sequence[int], n_rows: int) -> Floats:
        """The row of the next guess, ``[1, n_vocab]``: the first one after an `opening`.

        The others are after a token that was guessed with the row before.
        """
        return guess_together([self], [tokens[-1]])[0][None]

    def decode_all(self, passes: Sequence[Pass]) -> list[Rows]:
        """As any cache; of one pass, if that has room for all that they read."""
        if not self.joins:
            return super().decode_all(passes)
        caches = [cast(StateCache, each.cache) for each in passes]
        most, found = min(self.context.max_rows, self._batch.rows), list[Rows]()
        for group in groups_of([len(each.tokens) for each in passes], most):
            rows = guess_together([caches[k] for k in group], [passes[k].tokens[-1] for k in group])
            # The next pass is made in the place of these rows.
            found += [row[None] if len(group) == len(passes) else row[None].copy() for row in rows]
        return found

    def next_pairs(self, token: int) -> Pairs:
        """What the next guess, after `token`, reads."""
        if self._guessed:
            # What is guessed is cut off again before anything else is read.
            return Pairs(self.sequence, self._place(self._guessed - 1), [token], self._own)
        self._take_back(self.seen - self._first)
        if self.seen - self.covered >= self.draft.rows:
            self.flush()
        tokens = [*self._said[self.covered :], token]
        states = self._states_before(self.covered, self.seen + 1)
        return Pairs(self.sequence, self._place(0), tokens, states)

    def end_guess(self, pairs: Pairs, row: int) -> Floats:
        """A pass has read these; its logits at `row`."""
        if not self._guessed:
            self._keep(pairs.tokens)
        self._guessed += 1
        return self._result(row)

    def _keep(self, tokens: Sequence[int]) -> None:
        """These were read with the target's states, and stay."""
        self.tokens += tokens
        self._unsure = False

    def _place(self, guessed: int) -> int:
        """The position after so many guessed tokens."""
        return self.length + guessed

    def _result(self, row: int) -> Floats:
        pointer = self._get_own(self.pointer, row)
        self._own = np.ctypeslib.as_array(pointer, (1, self.draft.width)).copy()
        return cast(Floats, self.context.rows(row, 1)[0])

    def propose(self, last: int, count: int) -> Block:
        """Guesses for the `count` tokens after `last`, each the best one of its row."""
        rows = [self.decode(self.opening(last), 1)[0].copy()]
        while len(rows) < count:
            rows.append(self.decode([int(rows[-1].argmax())], 1)[0].copy())
        return Block(rows)


def guess_together(caches: Sequence[StateCache], tokens: Sequence[int]) -> list[Floats]:
    """The rows of the next guesses, each after its token, from one pass; errors as `decode`.

    The caches are those of sequences of one context, in ascending order.
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
