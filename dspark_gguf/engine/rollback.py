"""How a cache rolls back: removal, snapshots, or a saved state and reading again.

==========  ===============================================  =====================================
kind        which memory                                     how far it can roll back
==========  ===============================================  =====================================
removal     attention; a sliding window with all tokens      anywhere
window      a sliding window that drops old tokens           while the window is still complete
snapshots   recurrent and hybrid, where llama.cpp keeps a    once after a pass, and never the whole
            state for each of the last tokens of a pass      pass
replay      other recurrent and hybrid models                not at all: a state is saved before a
                                                             pass that may be rolled back
==========  ===============================================  =====================================

To roll back further there are *checkpoints*: states saved at the ends of messages and during long
prefills, so that an edit of an earlier turn does not mean reading everything again. Another
sequence of the context can start from them too.
"""

from __future__ import annotations

import ctypes
from bisect import insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import llama_cpp
import numpy as np
import numpy.typing as npt

from dspark_gguf.engine import library

Kind = Literal["removal", "window", "snapshots", "replay"]

#: Checkpoints per cache: after an edit about an eighth of the conversation is read again.
_MAX_CHECKPOINTS = 8
#: Maximum bytes of a cache's states; one of each kind is kept whatever its size.
_MAX_BYTES = 256 * 2**20
#: Up to so many tokens, reading again is cheaper than the extra pass for a checkpoint.
LONG = 16
#: Saves only what cannot be removed token by token: recurrent states and windows.
_PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The memory after `length` tokens."""

    length: int
    data: npt.NDArray[np.uint8]
    is_planned: bool = False


class Rollback:
    """Rolls back one sequence of llama.cpp's `context`, as its kind of memory allows.

    `swa_full`: sliding-window layers keep all tokens. `is_head`: the context runs prediction heads,
    which use attention even if their model is recurrent.
    """

    def __init__(self, context: Any, swa_full: bool, sequence: int, is_head: bool = False) -> None:
        model = llama_cpp.llama_get_model(context)
        self._context, self._memory = context, llama_cpp.llama_get_memory(context)
        self._sequence = sequence
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._recurrent = not is_head and bool(
            llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        )
        self._window = int(llama_cpp.llama_model_n_swa(model))  # tokens; 0: no window
        #: Maximum tokens that snapshots can roll back.
        self.snapshots = int(llama_cpp.llama_n_rs_seq(context)) if self._recurrent else 0
        #: Tokens of the last pass that snapshots can roll back; -1: unknown.
        self.last = 0
        #: Lengths at which prefill stops for a checkpoint.
        self.planned: list[int] = []
        #: States at the ends of messages and during long prefills, in order of length.
        self.checkpoints: list[Checkpoint] = []
        self._saved: list[Checkpoint] = []
        #: See the table above.
        self.kind: Kind = "window" if self._window and not swa_full else "removal"
        if self._recurrent:
            self.kind = "snapshots" if self.snapshots else "replay"

    def save(self, length: int) -> None:
        """Make it possible to roll back to `length` tokens until the next `settle`."""
        if self.kind != "replay" or (self._saved and self._saved[-1].length == length):
            return
        if self._has_checkpoint(length):
            self._saved.append(self.checkpoints[-1])
        elif not self._saved or _bytes(self._saved) < _MAX_BYTES:
            self._saved.append(self._checkpoint(length))

    @contextmanager
    def holding(self, length: int) -> Iterator[None]:
        """What is read inside can be rolled back to `length` tokens, with any kind of memory."""
        kept = [] if self.kind == "removal" or not length else [self._checkpoint(length)]
        self._saved += kept
        try:
            yield
        finally:
            self._saved = [state for state in self._saved if state not in kept]

    def plan_checkpoints(self, prompt: Sequence[int], held: int) -> None:
        """Plan stops at the end of a prompt and after the control tokens that end its messages."""
        count = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        control = {
            token
            for token in set(prompt[held:])
            if 0 <= token < count and llama_cpp.llama_vocab_is_control(self._vocabulary, token)
        }
        self.planned, last = [], held
        for length in range(held + LONG + 1, len(prompt) - LONG):
            if prompt[length - 1] in control and length - last > LONG:
                self.planned.append(length)
                last = length
        self.planned.append(len(prompt))

    def plan_checkpoint(self, length: int, held: int) -> None:
        """Plan a stop at `length`; if exactly so many tokens are held, save a checkpoint now."""
        if length == held:
            self.add_checkpoint(length)
        elif length not in self.planned:
            insort(self.planned, length)

    def add_checkpoint(self, length: int) -> None:
        """Make it possible to roll back to `length` tokens in later turns."""
        if self.kind == "removal" or not length or self._has_checkpoint(length):
            return
        self.checkpoints.append(self._checkpoint(length))
        while len(self.checkpoints) > 1 and (
            len(self.checkpoints) > _MAX_CHECKPOINTS or _bytes(self.checkpoints) > _MAX_BYTES
        ):
            older = self.checkpoints[:-1]  # the newest one stays
            gaps = np.diff([0, *(each.length for each in older)])
            least = min(range(len(older)), key=lambda k: (older[k].is_planned, gaps[k]))
            del self.checkpoints[least]

    def last_checkpoint(self, length: int) -> int:
        """Length of the longest saved state of at most `length` tokens; 0: none."""
        states = [*self.checkpoints, *self._saved]
        return max((state.length for state in states if state.length <= length), default=0)

    def length_after(self, length: int, held: int) -> int:
        """How many of the `held` tokens would be left after `back` to `length`."""
        return length if self._reaches(length, held) else self.last_checkpoint(length)

    def take_over(self, other: Rollback, length: int) -> bool:
        """Restore a checkpoint of another sequence; returns whether that worked."""
        states = [*other.checkpoints, *other._saved]
        if not self._restore(next(state for state in states if state.length == length)):
            return False
        self.checkpoints = [state for state in other.checkpoints if state.length <= length]
        return True

    def _has_checkpoint(self, length: int) -> bool:
        return bool(self.checkpoints) and self.checkpoints[-1].length == length

    def forget(self) -> None:
        """Drop the saved states: the memory was changed by other means."""
        self.checkpoints.clear()
        self._saved.clear()
        self.last = -1

    def settle(self, length: int) -> None:
        """The first `length` tokens are committed: drop states that only a rejection would need.

        Snapshots, too: passes over other sequences may move a state, but leave these behind.
        """
        self._drop_after(length)
        self.last = min(self.last, 0)
        del self._saved[:-1]

    def back(self, length: int, held: int) -> int:
        """Roll back from `held` tokens to `length`.

        Returns the number of tokens left: fewer than `length` if no later state was saved.
        """
        self._drop_after(length)
        reaches, self.last = self._reaches(length, held), 0
        if reaches and self._remove(length):
            return length
        while states := [*self.checkpoints[-1:], *self._saved[-1:]]:
            state = max(states, key=lambda one: one.length)
            if self._restore(state):
                return state.length
            self._drop_after(state.length - 1)
        self._remove(-1)
        return 0

    def _reaches(self, length: int, held: int) -> bool:
        # Removing the whole sequence is safer; and an exception may have struck after the memory
        # was rolled back and before we recorded it.
        if not length or self._end() < length - 1:
            return False
        if self._recurrent:
            return held - length <= min(self.snapshots, self.last)
        # A sliding window must still hold everything the next token attends to: llama.cpp silently
        # drops older tokens and computes with the rest. This also applies if all tokens are kept,
        # because a state file only has the tokens inside the window.
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, self._sequence)
        return not self._window or first <= 0 or length >= first + self._window - 1

    def _end(self) -> int:  # the last position in the memory
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, self._sequence))

    def _remove(self, length: int) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, self._sequence, length, -1))

    def _drop_after(self, length: int) -> None:
        for states in (self.checkpoints, self._saved):
            while states and states[-1].length > length:
                states.pop()

    def _checkpoint(self, length: int) -> Checkpoint:
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, self._sequence, _PARTIAL)
        data = np.empty(size, dtype=np.uint8)
        llama_cpp.llama_state_seq_get_data_ext(
            self._context, pointer_to(data), size, self._sequence, _PARTIAL
        )
        return Checkpoint(length, data, length in self.planned)

    def _restore(self, state: Checkpoint) -> bool:
        with library.listening():
            done = llama_cpp.llama_state_seq_set_data_ext(
                self._context, pointer_to(state.data), len(state.data), self._sequence, _PARTIAL
            )
        whole = done == len(state.data)
        return whole and self._remove(state.length) and self._end() == state.length - 1


def pointer_to(data: npt.NDArray[np.uint8]) -> Any:
    """A C pointer to the data."""
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _bytes(states: list[Checkpoint]) -> int:
    return sum(len(state.data) for state in states)
