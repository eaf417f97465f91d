"""The grammar of one answer: where it stands, what it leaves, and which choice is likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dspark_gguf.dist import Dist
from dspark_gguf.sampling import Row, Sampler

if TYPE_CHECKING:
    from dspark_gguf.engine.grammar import Grammar

Ids = npt.NDArray[np.int32]

#: Of a draft's row, so many of the most probable tokens are held against the grammar.
_TOP = 64


@dataclass(slots=True)
class RunningRate:
    """How often something was so, of late."""

    value: float  # what is believed, at first and later
    weight: float  # of this belief, in observations

    def add(self, so: bool) -> None:
        """Once more, or once not; each observation takes 2 % off the weight of the past."""
        self.weight = 0.98 * self.weight + 1.0
        self.value += (so - self.value) / self.weight


@dataclass
class Choices:
    """Which token was taken where a grammar left few: the next time, the same is likely.

    Its guesses are compared with what was taken even where they were not used, so it learns how
    sure each one is without trying it.
    """

    text: Sequence[bytes]  # the bytes of each token
    end_tokens: frozenset[int] = frozenset()
    #: (last token, tokens allowed) -> token.
    taken: dict[tuple[int, bytes], int] = field(default_factory=dict)
    #: How often the same token is taken again, the longest spelling is taken, and all of another
    #: drafter's tokens are right.
    again: RunningRate = field(default_factory=lambda: RunningRate(0.9, 5.0))
    longest: RunningRate = field(default_factory=lambda: RunningRate(0.5, 2.0))
    whole: RunningRate = field(default_factory=lambda: RunningRate(0.5, 2.0))

    def likely(self, last: int, allowed: Ids) -> tuple[int, float] | None:
        """The token to propose after `last` and how sure it is; None without a reason for one."""
        if len(allowed) == 1:
            return int(allowed[0]), 1.0
        token, share = self._guess(last, allowed)
        return None if token is None else (token, share.value)

    def observe(self, last: int, allowed: Ids, token: int) -> None:
        """`token` came after `last`."""
        if len(allowed) > 1:
            guess, share = self._guess(last, allowed)
            if guess is not None:
                share.add(guess == token)
            self.taken[last, allowed.tobytes()] = token

    def _guess(self, last: int, allowed: Ids) -> tuple[int | None, RunningRate]:
        if (known := self.taken.get((last, allowed.tobytes()))) is not None:
            return known, self.again
        # Forced: each spells a beginning of the longest, as "na", "nam" and "name" do.
        longest = max(allowed.tolist(), key=lambda token: len(self.text[token]), default=None)
        if longest is None:
            return None, self.longest
        text = self.text[longest]
        whole = all(text.startswith(self.text[each]) for each in allowed)
        return (longest if whole else None), self.longest


class AnswerGrammar:
    """The grammar of one answer, at the end of its committed tokens."""

    length = 0  # tokens that are committed

    def __init__(self, state: Grammar, choices: Choices) -> None:
        self.state, self.choices = state, choices

    def best(self, row: Row, count: int) -> Ids:
        """At least the `count` most probable ids that may come next; 0: all of them."""
        return self.state.best(row, count)

    def follow(self, last: int, token: int) -> None:
        """`token`, which the grammar allows, is committed after `last`."""
        self.choices.observe(last, self.state.few(), token)
        self.state.accept(token)
        self.length += 1


def allowed_prefix(state: Grammar, tokens: Sequence[int]) -> int:
    """How many of `tokens`, from the first, fit; `state` moves on by as many."""
    for count, token in enumerate(tokens):
        if not state.allows(token):
            return count
        state.accept(token)
    return len(tokens)


class Constrained:
    """For a `ModelDrafter`: the distribution of its next token among those that fit the grammar."""

    def __init__(self, sampler: Sampler, grammar: AnswerGrammar) -> None:
        self._sampler, self._grammar = sampler, grammar
        self._ahead: Grammar | None = None
        self._read = 0

    def history(self, tokens: Sequence[int]) -> Sequence[int]:
        """A draft begins after `tokens`, whose last ones may be drafted too."""
        fresh = tokens[self._grammar.length :]
        ahead = self._grammar.state.fork()
        self._ahead = ahead if allowed_prefix(ahead, fresh) == len(fresh) else None
        self._read = 0
        return self._sampler.history(tokens)

    def __call__(self, row: Row, history: Sequence[int], drafted: Sequence[int] = ()) -> Dist:
        """The distribution after `drafted`; as if without a grammar where that is off its track."""
        if self._ahead is not None:
            fresh = drafted[self._read :]
            self._read = len(drafted)
            if allowed_prefix(self._ahead, fresh) < len(fresh):
                self._ahead = None
        dist = self._sampler(row, history, drafted)
        if self._ahead is None or self._ahead.allows(dist.top):
            return dist
        return self._sampler(row, history, drafted, self)

    def best(self, row: Row, count: int) -> Ids:
        """As `Follower`, for the grammar at the end of the draft; only the best are looked at."""
        assert self._ahead is not None
        ids = np.arange(len(row))
        if len(row) > _TOP:
            ids = np.argpartition(row, -_TOP)[-_TOP:]
        return self._ahead.among(ids[np.argsort(-row[ids])].astype(np.int32))
