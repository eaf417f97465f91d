"""Distributions of what a function of random draws returns, without sampling."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeVar

from dspark_gguf.dist import Dist

T = TypeVar("T")


def distribution_of(run: Callable[[Any], T]) -> dict[T, Fraction]:
    """Probability of every result of `run`, a function of a random generator.

    `run` is called once for each path that its draws can take. It may call ``random()``, compare
    the result with numbers, multiply it by one, or pass it to ``numpy.searchsorted``; or make
    `WalkedDraws` of the generator. The probabilities are exact for the floats that the
    draws are compared with.
    """
    dist: dict[T, Fraction] = {}
    paths: list[list[bool]] = [[]]
    while paths:
        walk = _Walk(paths.pop())
        result = run(walk)
        dist[result] = dist.get(result, Fraction(0)) + walk.probability
        paths += walk.others
    return dist


class _Walk:
    """A generator whose draws are split only where they are compared.

    `path` is how the first comparisons turn out; after them, the lower side comes first.
    """

    def __init__(self, path: list[bool]) -> None:
        self.path, self.others = path, list[list[bool]]()
        self.probability = Fraction(1)
        self._steps = 0

    def random(self) -> _Draw:
        """A number that is only known to lie in [0, 1)."""
        return _Draw(self)

    def turn(self) -> bool:
        """The outcome of an open comparison; the other outcome gets a walk of its own."""
        if self._steps == len(self.path):
            self.others.append([*self.path, False])
            self.path.append(True)
        self._steps += 1
        return self.path[self._steps - 1]


class WalkedDraws:
    """The randomness of an answer for `distribution_of`: one number for each place.

    Whoever draws at a place uses the same number, target and draft, as with ``noise.Noise``.
    """

    def __init__(self, walk: Any) -> None:
        self._walk, self._origin = walk, 0
        self._known: dict[int, WalkedDraw] = {}

    def at(self, position: int) -> WalkedDraw:
        """The number of this place."""
        place = position - self._origin
        return self._known.setdefault(place, WalkedDraw(self._walk))

    def independent(self) -> WalkedDraws:
        """Numbers that nobody else uses, each drawn once."""
        return _Unshared(self._walk)

    def move(self, by: int) -> None:
        """The places are counted from elsewhere."""
        self._origin += by


class _Unshared(WalkedDraws):
    def at(self, position: int) -> WalkedDraw:
        return WalkedDraw(self._walk)


class WalkedDraw:
    """One place of `WalkedDraws`."""

    def __init__(self, walk: Any) -> None:
        self._walk, self._number = walk, walk.random()

    def random(self) -> Any:
        """The number, for ``Dist.draw``."""
        return self._number

    def token(self, dist: Dist) -> int:
        """A token by this place's number."""
        return dist.draw(self)  # type: ignore[arg-type]

    def scored(self, dist: Dist) -> tuple[int, float]:
        """The same, with a score that depends on the token."""
        token = self.token(dist)
        return token, 1.0 + dist.prob(token) - token

    def coin(self) -> Any:
        """Another number."""
        return self._walk.random()


class _Draw:
    """A uniform number, narrowed down by comparisons, times `scale`."""

    def __init__(self, walk: _Walk) -> None:
        self._walk, self._scale = walk, Fraction(1)
        self._low, self._high = Fraction(0), Fraction(1)

    def __mul__(self, scale: float) -> _Draw:
        self._scale *= Fraction(float(scale))
        return self

    __rmul__ = __mul__

    def __lt__(self, other: Any) -> bool:
        if other is self:
            return False
        bound = Fraction(float(other)) / self._scale
        if not self._low < bound < self._high:
            return self._low < bound
        below, width = self._walk.turn(), self._high - self._low
        self._low, self._high = (self._low, bound) if below else (bound, self._high)
        self._walk.probability *= (self._high - self._low) / width
        return below

    def __gt__(self, other: Any) -> bool:
        return other is not self and not self < other
