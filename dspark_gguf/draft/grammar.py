"""What a grammar forces is proposed without any draft; what it forbids is not proposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dspark_gguf.dist import Dist
from dspark_gguf.sampling import Row

_MOST_FORCED = 16


class State(Protocol):
    """A grammar at one point of a text; see `engine.grammar.Grammar`."""

    def fork(self) -> State:
        """The same, to try tokens on."""

    def accept(self, token: int) -> None:
        """Go on after a token that fits."""

    def fits(self, token: int) -> bool:
        """Whether it may come next."""

    def few(self) -> npt.NDArray[np.int32]:
        """All that may come next, or none where the choice is wide."""

    def among(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Those that may come next."""


@dataclass
class Choices:
    """Which token was taken where a grammar left few: the next time, the same is likely.

    Attributes:
        text: the bytes of each token.
        end_tokens: after which nothing is proposed.
        taken: (last token, tokens allowed) -> token.

    """

    text: Sequence[bytes]
    end_tokens: frozenset[int] = frozenset()
    taken: dict[tuple[int, bytes], int] = field(default_factory=dict)

    def likely(self, last: int, allowed: npt.NDArray[np.int32]) -> int | None:
        """The token to propose after `last`; None without a reason to prefer one."""
        if not len(allowed):
            return None
        known = self.taken.get((last, allowed.tobytes()))
        if known is not None:
            return known
        # Forced: each spells a beginning of the longest, as "na", "nam" and "name" do.
        longest = max(allowed.tolist(), key=lambda token: len(self.text[token]))
        text = self.text[longest]
        return longest if all(text.startswith(self.text[each]) for each in allowed) else None

    def observe(self, last: int, allowed: npt.NDArray[np.int32], token: int) -> None:
        """`token` came after `last`."""
        if len(allowed) > 1:
            self.taken[last, allowed.tobytes()] = token


def forced(state: State, last: int, choices: Choices, most: int = _MOST_FORCED) -> list[int]:
    """Tokens that `state`, which moves on, all but dictates after `last`; at most `most`."""
    found: list[int] = []
    while len(found) < most:
        token = choices.likely(last, state.few())
        if token is None:
            break
        state.accept(token)
        found.append(token)
        if token in choices.end_tokens:
            break
        last = token
    return found


def fitting(state: State, tokens: Sequence[int]) -> int:
    """How many of `tokens`, from the first, fit; `state` moves on by as many."""
    for count, token in enumerate(tokens):
        if not state.fits(token):
            return count
        state.accept(token)
    return len(tokens)


class FittingGreedy:
    """For a `ModelDrafter`: its most probable token among those that fit.

    Args:
        state: the grammar after the committed tokens, now and later.

    Attributes:
        committed: how many tokens those are: to be kept up to date.

    """

    _TOP = 64

    def __init__(self, state: State) -> None:
        self.state, self.committed = state, 0
        self._ahead: State | None = None
        self._read = 0

    def history(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """A draft after `tokens` begins."""
        fresh = tokens[self.committed :]
        ahead = self.state.fork()
        self._ahead = ahead if fitting(ahead, fresh) == len(fresh) else None
        self._read = 0
        return ()

    def __call__(self, row: Row, history: Sequence[int], drafted: Sequence[int] = ()) -> Dist:
        """The one-point law of the best token after `drafted`."""
        if self._ahead is not None:
            fresh = drafted[self._read :]
            self._read = len(drafted)
            if fitting(self._ahead, fresh) < len(fresh):
                self._ahead = None
        best = int(np.argmax(row))
        if self._ahead is None or self._ahead.fits(best):
            return Dist.point(best)
        top = np.argpartition(row, -self._TOP)[-self._TOP :] if len(row) > self._TOP else None
        ids = np.arange(len(row)) if top is None else top
        left = self._ahead.among(ids[np.argsort(-row[ids])].astype(np.int32))
        return Dist.point(int(left[0]) if len(left) else best)
