"""Gumbel noise for sampling, shared by the target and the draft.

A token is drawn as ``argmax(log p_i + g_i)`` with Gumbel noise g, which follows p exactly. Here g
only depends on a seed, the position in the answer and the token id. So the text only depends on the
seed, whatever was drafted; and a draft that guesses with the same noise is right far more often
than one that guesses the most probable token (Daliri, Musco, Suresh 2024, arXiv 2408.07978: with
probability at least (1 - d) / (1 + d), d the total variation distance of the two distributions).
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from dspark_gguf.dist import Dist, Ids, Probabilities

#: From splitmix64 (Steele, Lea, Flood 2014): the step from one state to the next, and its mixer.
_STEP, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1
_MIX = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)
_WORDS = np.uint64(_STEP), [(np.uint64(shift), np.uint64(factor)) for shift, factor in _MIX]
#: For more tokens than this it is faster to draw in two steps: first among so many of the most
#: probable tokens and all others as one, then among those others.
_MANY = 1024
_TINY = float(np.finfo(np.float64).tiny)
#: Up to so many tokens, plain Python is faster, above all with cold CPU caches.
_FEW = 8
#: Ids that are not tokens: the others of a large distribution, the draw among them, and a coin.
_OTHERS, _WHICH, _COIN = np.array([-1]), np.array([-2]), np.array([-3])


class Draw(Protocol):
    """The randomness at one position of an answer."""

    def token(self, dist: Dist) -> int:
        """A token of `dist`."""

    def scored(self, dist: Dist) -> tuple[int, float]:
        """The same, with its lead over the runner-up in nats; infinity if it is the only token."""

    def coin(self) -> float:
        """A number in (0, 1) that does not depend on any token."""


class Draws(Protocol):
    """The randomness of one answer."""

    def at(self, position: int) -> Draw:
        """The randomness of the token at `position`, counted from the start of the prompt."""

    def independent(self) -> Draws:
        """Other randomness, independent of all draws of this one."""

    def move(self, by: int) -> None:
        """Shift positions by `by`: the answer continues after another prompt."""


@dataclass
class Noise:
    """Gumbel noise of one answer."""

    key: int  # hash of the seed and the answer's number
    origin: int = 0  # position of the answer's first token

    @classmethod
    def of(cls, seed: int | None, answer: int = 0) -> Noise:
        """The noise of an answer in a conversation.

        `seed` is the conversation's, below 2**64; None: a random one.
        """
        return cls(_mixed(_mixed(some_seed(seed)) + answer))

    def at(self, position: int) -> GumbelDraw:
        """Noise for the token at `position`."""
        return GumbelDraw(self.key + _STEP * (position - self.origin))

    def independent(self) -> Independent:
        """Draws from a generator, for drafts under `rejection`."""
        return self._independent

    @cached_property
    def _independent(self) -> Independent:  # cached, so that no draw is repeated
        return Independent(np.random.default_rng(self.key))

    def move(self, by: int) -> None:
        """Shift positions by `by`."""
        self.origin += by


@dataclass(frozen=True, slots=True)
class GumbelDraw:
    """The noise at one position."""

    key: int

    def uniform(self, ids: Ids) -> Probabilities:
        """A number in (0, 1) for each id."""
        step, mixers = _WORDS
        state = ids.astype(np.uint64)
        state *= step
        state += np.uint64(_mixed(self.key))
        for shift, factor in mixers:
            state ^= state >> shift
            state *= factor
        state ^= state >> np.uint64(31)
        state >>= np.uint64(11)
        numbers = state.astype(np.float64)
        numbers += 0.5
        numbers *= 2.0**-53
        return numbers

    def coin(self) -> float:
        """A number in (0, 1) that does not depend on any token."""
        return float(self.uniform(_COIN)[0])

    def token(self, dist: Dist) -> int:
        """A token of `dist`."""
        return self.scored(dist)[0]

    def scored(self, dist: Dist) -> tuple[int, float]:
        """A token of `dist`, and its lead over the runner-up in nats."""
        ids, probs, others = dist.ids, dist.probs, None
        if len(ids) == 1:
            return int(ids[0]), math.inf
        if len(ids) > _MANY:
            order = np.argpartition(probs, -_MANY)
            others, many = order[:-_MANY], order[-_MANY:]
            rest = max(0.0, 1.0 - float(probs[many].sum()))
            ids, probs = np.append(ids[many], _OTHERS), np.append(probs[many], rest)
        if len(ids) <= _FEW:
            return self._of_few(ids.tolist(), probs.tolist())
        # Not log(0); a token without probability never wins.
        perturbed = np.log(np.maximum(probs, _TINY)) - np.log(-np.log(self.uniform(ids)))
        best = int(perturbed.argmax())
        won, perturbed[best] = perturbed[best], -np.inf
        gap = float(won - perturbed.max())
        if others is not None and ids[best] == _OTHERS[0]:
            others.sort()
            edges = dist.probs[others].cumsum()
            place = int(np.searchsorted(edges, self.uniform(_WHICH)[0] * edges[-1], side="right"))
            return int(dist.ids[others[min(place, len(others) - 1)]]), gap
        return int(ids[best]), gap

    def _of_few(self, ids: list[int], probs: list[float]) -> tuple[int, float]:
        """`scored` for a few tokens."""
        key, best, most, second = _mixed(self.key) - _STEP, -1, -math.inf, -math.inf
        for token, prob in zip(ids, probs, strict=True):
            number = ((_mixed(key + _STEP * token) >> 11) + 0.5) * 2.0**-53
            perturbed = math.log(max(prob, _TINY)) - math.log(-math.log(number))
            if perturbed > most:
                best, most, second = token, perturbed, most
            elif perturbed > second:
                second = perturbed
        return best, most - second


@dataclass(frozen=True, slots=True)
class Independent:
    """Draws from a generator, one after the other, whatever the position."""

    rng: np.random.Generator

    def at(self, position: int) -> Independent:
        """The same at every position."""
        return self

    def independent(self) -> Independent:
        """Itself."""
        return self

    def move(self, by: int) -> None:
        """Nothing changes."""

    def token(self, dist: Dist) -> int:
        """A token of `dist`."""
        return dist.draw(self.rng)

    def scored(self, dist: Dist) -> tuple[int, float]:
        """A token; its lead is unknown."""
        return self.token(dist), math.inf

    def coin(self) -> float:
        """A number in [0, 1)."""
        return self.rng.random()


def some_seed(seed: int | None) -> int:
    """The given seed, or a random one that is short enough to type."""
    return secrets.randbits(32) if seed is None else seed


def _mixed(word: int) -> int:
    """The mixer of splitmix64: similar words become independent."""
    word = (word + _STEP) & _MASK
    for shift, factor in _MIX:
        word = ((word ^ (word >> shift)) * factor) & _MASK
    return word ^ (word >> 31)
