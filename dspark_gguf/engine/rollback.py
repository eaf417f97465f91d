"""How a cache takes back tokens: removal, snapshots, or a saved state from which it reads again.

==========  ===============================================  =====================================
kind        which memory                                     what it takes back
==========  ===============================================  =====================================
removal     attention; a sliding window that is kept whole   anything
window      a sliding window that forgets                    as far as the window is still there
snapshots   recurrent and hybrid, where llama.cpp keeps a    once after a pass, and never the whole
            state for each of the last tokens of a pass      pass
replay      other recurrent and hybrid models                nothing: a state is saved before a
                                                             pass that may be taken back
==========  ===============================================  =====================================

Behind what a kind takes back lie *marks*: states saved at the ends of prompts and in long reads, so
that an edit of an earlier turn does not begin from nothing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

import llama_cpp
import numpy as np
import numpy.typing as npt

Kind = Literal["removal", "window", "snapshots", "replay"]

#: Marks of one cache: an edit then reads about an eighth of the conversation again.
_MOST_MARKS = 8
#: Memory that the states of one cache may take; one of each kind is kept whatever its size.
_MOST_BYTES = 256 * 2**20
#: The part of a memory that cannot be removed: recurrent states, and windows.
_PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
#: Of a pass that may or may not have happened.
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class _State:
    """What the memory was after `length` tokens."""

    length: int
    data: npt.NDArray[np.uint8]


class Rollback:
    """Takes back tokens of one context, by whatever way its memory has.

    Args:
        context: llama.cpp's context.
        recurrent: whether its memory has a state that each token changes.
        window: tokens that its sliding-window layers see; 0: it has none.
        whole: whether these keep what lies behind their window all the same.
        sequence: the number of the sequence in the context.

    """

    def __init__(
        self, context: Any, recurrent: bool, window: int, whole: bool, sequence: int = 0
    ) -> None:
        self._context, self._memory = context, llama_cpp.llama_get_memory(context)
        self._sequence = sequence
        self._recurrent, self._window, self._whole = recurrent, window, whole
        #: Most tokens that snapshots take back.
        self.snapshots = int(llama_cpp.llama_n_rs_seq(context)) if recurrent else 0
        self._last = 0  # tokens of the last pass that can be taken back from snapshots
        self._marks: list[_State] = []
        self._saved: list[_State] = []

    @property
    def kind(self) -> Kind:
        """See the module."""
        if self._recurrent:
            return "snapshots" if self.snapshots else "replay"
        return "window" if self._window and not self._whole else "removal"

    def save(self, length: int) -> None:
        """Make it possible to come back to `length` tokens, those of now, until the next `settle`.

        Costs nothing where the kind does not need it.
        """
        if self.kind != "replay" or (self._saved and self._saved[-1].length == length):
            return
        if self._marks and self._marks[-1].length == length:
            self._saved.append(self._marks[-1])
        elif not self._saved or _bytes(self._saved) < _MOST_BYTES:
            self._saved.append(self._state(length))

    def mark(self, length: int) -> None:
        """Make it possible to come back to `length` tokens, those of now, in later turns."""
        if self.kind == "removal" or not length:
            return
        if self._marks and self._marks[-1].length == length:
            return
        self._marks.append(self._state(length))
        while len(self._marks) > 1 and (
            len(self._marks) > _MOST_MARKS or _bytes(self._marks) > _MOST_BYTES
        ):
            lengths = [0, *(mark.length for mark in self._marks)]
            gaps = np.diff(lengths)[:-1]  # the newest one stays
            del self._marks[int(gaps.argmin())]

    def passed(self, count: int) -> None:
        """A pass of `count` tokens is done."""
        self._last = count - 1

    def forget(self) -> None:
        """The memory was filled by other means: no state that was saved fits it."""
        self._marks.clear()
        self._saved.clear()
        self.lost()

    def lost(self) -> None:
        """A pass may have happened, in whole or in part or not at all."""
        self._last = _UNKNOWN

    def settle(self, length: int) -> None:
        """What stands before `length` will not be taken back but by an edit."""
        self._drop_after(length)
        del self._saved[:-1]

    def back(self, length: int, held: int) -> int:
        """Take back all of the `held` tokens from position `length` on.

        Returns:
            How many are held now: fewer than `length` where no younger state was there.

        """
        self._drop_after(length)
        if self._reaches(length, held) and self._remove(length):
            self._last = 0
            return length
        self._last = 0
        while states := [*self._marks[-1:], *self._saved[-1:]]:
            state = max(states, key=lambda one: one.length)
            if self._restore(state):
                return state.length
            self._drop_after(state.length - 1)
        # Alone in its context as yet; of several, the others would have to stay.
        llama_cpp.llama_memory_seq_rm(self._memory, self._sequence, -1, -1)
        return 0

    def _reaches(self, length: int, held: int) -> bool:
        if not length:
            return False  # a clear memory is surer than an empty one
        if llama_cpp.llama_memory_seq_pos_max(self._memory, self._sequence) < length - 1:
            return False  # an exception struck after the memory went back, and before we noted it
        if self._recurrent:
            return held - length <= min(self.snapshots, self._last)
        # Even where the window is kept whole: a file holds no more of it than can be seen.
        return self._is_still_seen(length)

    def _is_still_seen(self, length: int) -> bool:
        """Whether a sliding window still has all that a token after `length` others looks at.

        llama.cpp removes tokens behind it without a word, and then computes from what is left.
        """
        first = llama_cpp.llama_memory_seq_pos_min(self._memory, self._sequence)
        return not self._window or first <= 0 or length >= first + self._window - 1

    def _remove(self, length: int) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, self._sequence, length, -1))

    def _drop_after(self, length: int) -> None:
        for states in (self._marks, self._saved):
            while states and states[-1].length > length:
                states.pop()

    def _state(self, length: int) -> _State:
        size = llama_cpp.llama_state_seq_get_size_ext(self._context, self._sequence, _PARTIAL)
        data = np.empty(size, dtype=np.uint8)
        llama_cpp.llama_state_seq_get_data_ext(
            self._context, _pointer(data), size, self._sequence, _PARTIAL
        )
        return _State(length, data)

    def _restore(self, state: _State) -> bool:
        done = llama_cpp.llama_state_seq_set_data_ext(
            self._context, _pointer(state.data), len(state.data), self._sequence, _PARTIAL
        )
        last = state.length - 1
        return (
            done == len(state.data)
            and self._remove(state.length)
            and llama_cpp.llama_memory_seq_pos_max(self._memory, self._sequence) == last
        )


def _pointer(data: npt.NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _bytes(states: list[_State]) -> int:
    return sum(len(state.data) for state in states)
